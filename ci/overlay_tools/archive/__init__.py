"""A wheel as a file: reading one, writing one, and its RECORD."""
