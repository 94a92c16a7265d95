"""A wheel as a file: read, written around the compressed bytes of what did not change, and its RECORD."""
