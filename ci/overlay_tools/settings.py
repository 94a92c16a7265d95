"""Where things are in a checkout, and what its pyproject.toml settles."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from overlay_tools.errors import OverlayError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SETTINGS = {"default": str, "revision": int, "replaces": list, "plugin": list}


@dataclass(frozen=True, kw_only=True, slots=True)
class Project:
    """A checkout and its settings.

    `default`: a release; `revision`: N of `X+overlay.N`; `replaces`: upstream files in whose place the overlay has its
    own; `plugin`: the releases on which the plugin is proven.
    """

    root: Path
    default: str
    revision: int
    replaces: frozenset[str]
    plugin: tuple[str, ...]

    @property
    def lock(self) -> Path:
        """Return the path of upstream.lock."""
        return self.root / "upstream.lock"

    @property
    def overlay(self) -> Path:
        """Return the folder of the overlay's own files."""
        return self.root / "overlay"

    @property
    def patches(self) -> Path:
        """Return the folder of the hooks."""
        return self.root / "patches"

    @property
    def results(self) -> Path:
        """Return the path of what the tests said of each release."""
        return self.root / "ci" / "results.json"

    @property
    def dist(self) -> Path:
        """Return the folder that built wheels go to."""
        return self.root / "dist"


def load_project(root: Path) -> Project:
    """Read `[tool.sglang-overlay]` of the checkout at `root`.

    Raises OverlayError if pyproject.toml is absent, malformed, or lacks a setting or has one of another type.
    """
    path = root / "pyproject.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["sglang-overlay"]
    except OSError as error:
        raise OverlayError(f"{path}: {error.strerror}.", hint="Run this in a checkout of sglang-overlay.") from None
    except tomllib.TOMLDecodeError as error:
        raise OverlayError(f"{path}: {error}.", hint="Mend the file, or restore it from git.") from None
    except KeyError:
        raise OverlayError(f"{path} has no table [tool.sglang-overlay].", hint="Restore the table from git.") from None
    wrong = [
        f"{path}: [tool.sglang-overlay] {name} must be a {kind.__name__}, not {table.get(name)!r}."
        for name, kind in _SETTINGS.items()
        if not isinstance(table.get(name), kind)
    ] + [
        f"{path}: [tool.sglang-overlay] has an unknown setting: {name!r}." for name in sorted(table.keys() - _SETTINGS)
    ]
    if not wrong and table["revision"] < 1:
        wrong = [f"{path}: [tool.sglang-overlay] revision must be 1 or more."]
    if wrong:
        raise OverlayError(*wrong, hint=f"It takes {', '.join(_SETTINGS)}.")
    return Project(
        root=root,
        default=table["default"],
        revision=table["revision"],
        replaces=frozenset(table["replaces"]),
        plugin=tuple(table["plugin"]),
    )


def cache_dir() -> Path:
    """Return the folder outside the tree that keeps base wheels; `SGLANG_OVERLAY_CACHE` moves it."""
    return Path(os.environ.get("SGLANG_OVERLAY_CACHE") or platformdirs.user_cache_path("sglang-overlay"))
