"""Checkpoints on disk: adopted from stock ones, or made for a demonstration."""
