"""The wheels that this project ships: planned, written, described by a manifest, and verified."""
