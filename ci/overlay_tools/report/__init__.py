"""The status of every release, on the terminal and as a page."""
