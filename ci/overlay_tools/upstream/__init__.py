"""Upstream's releases: pinned in upstream.lock, asked of the index, downloaded, and read."""
