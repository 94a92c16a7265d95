"""Build, verify, serve and test sglang-overlay's drop-in wheels."""

__version__ = "1.0"
