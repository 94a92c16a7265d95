"""Tiles of upstream's fused MoE kernel, for a checkpoint's shape on this machine's GPU."""
