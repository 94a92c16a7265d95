"""What the tests of a plugin project ask of settings, of which it has none: each project has a copy of this file."""

from __future__ import annotations

from pathlib import Path


class Settings:
    """Say that every release has all models of the project."""

    def takes(self, version: str, name: str) -> bool:
        """Tell whether a release takes a file: it does."""
        return True


def load_project(root: Path) -> Settings:
    """Return the settings of the project at `root`."""
    return Settings()
