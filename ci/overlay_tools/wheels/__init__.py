"""The wheels that this project ships: built, described by a manifest, verified."""
