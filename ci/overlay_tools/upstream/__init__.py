"""Upstream's releases: looked up on the index, pinned in upstream.lock, downloaded, and read."""
