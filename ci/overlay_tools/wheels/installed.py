"""What is installed in a folder of Python's: distributions of sglang, of its kernels and of plugins."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from overlay_tools.errors import VerifyError
from overlay_tools.wheels.manifest import MANIFEST

# The package that each distribution brings, by its name. Plugins of other names are found by what their files say.
PACKAGES = {
    "sglang": "sglang",
    "sglang-kernel": "sgl_kernel",
    "sgl-kernel": "sgl_kernel",
    "sglang-overlay-plugin": "sglang_overlay_plugin",
}
_PLUGIN = "sglang-overlay-plugin"
_KINDS = (".dist-info", ".egg-info", ".egg-link")
_OURS = re.compile(r".+\+(.+\.)?(overlay|cpu)\.\d+")
_START = re.compile(r'(?:^|")(\w+)_start\.py\b', re.MULTILINE)  # in RECORD or the manifest: a plugin's own file
_LEFT_BY_PIP = "~"  # what pip puts in place of a name's first letter while it removes or replaces something


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """A distribution that is installed: its name, its version, and the folder, or file, that says so.

    `package`: the package that it brings; `plugin`: whether it is a plugin of this project's.
    """

    project: str
    version: str
    folder: Path
    package: str
    plugin: bool

    def __str__(self) -> str:
        return f"{self.project} {self.version}".rstrip()

    @property
    def where(self) -> str:
        """Return what an error calls it: its name, its version and its place."""
        return f"{self} in {self.place}"

    @property
    def place(self) -> Path:
        """Return the folder that it is installed in."""
        return self.folder.parent

    @property
    def ours(self) -> bool:
        """Tell whether this project built it."""
        return self.plugin or (self.folder / MANIFEST).exists() or bool(_OURS.fullmatch(self.version))

    @property
    def editable(self) -> str:
        """Return what its source is, as a URL or a path, if it was installed in editable form."""
        if self.folder.suffix != ".dist-info":
            return str(self.folder)
        try:
            origin = json.loads((self.folder / "direct_url.json").read_bytes())
            return str(origin["url"]) if origin["dir_info"]["editable"] else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def find_installed(place: Path) -> list[Installed]:
    """Return what is installed in a folder.

    Raises VerifyError if two distributions there bring one package, or if what is there has been removed or replaced in
    part only.
    """
    found: dict[str, Installed] = {}
    for path in sorted(_listed(place)):
        if path.name.startswith(_LEFT_BY_PIP) and (
            _read_name("s" + path.name[1:])[0] in _LEFT_NAMES or _plugin_package(path)
        ):
            raise VerifyError(
                f"{path} is what an interrupted pip has left of another installation.",
                hint="Delete it, and install the wheel anew.",
            )
        if path.suffix in _KINDS:
            project, version = _read_name(path.name.removesuffix(path.suffix))
            plugin = PACKAGES[_PLUGIN] if project == _PLUGIN else _plugin_package(path)
            if (package := plugin or PACKAGES.get(project)) is None:
                continue
            one = Installed(project=project, version=version, folder=path, package=package, plugin=bool(plugin))
            if package in found:
                raise VerifyError(
                    f"{place} has two distributions of {package}: {found[package].folder.name} and {path.name}.",
                    hint="Uninstall both, delete what is then left of them, and install one.",
                )
            found[package] = one
    return list(found.values())


def find_leftovers(place: Path, found: Sequence[Installed]) -> Iterator[Path]:
    """Yield the folders in a folder of Python's that are packages of ours which no distribution there brings."""
    packages = {one.package for one in found}
    yield from (place / name for name in sorted({*PACKAGES.values()} - packages) if (place / name).is_dir())


def _plugin_package(folder: Path) -> str | None:
    """Return the package of a plugin of this project's, whatever it is named, by what its .dist-info folder lists."""
    listed = "".join(_text(folder / name) for name in ("RECORD", MANIFEST))
    if not (folder / MANIFEST).exists() and f"/{MANIFEST}," not in listed:
        return None
    found = _START.search(listed)
    return found.group(1) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_name(stem: str) -> tuple[str, str]:
    """Return the name and the version that the name of a .dist-info folder gives, without its suffix."""
    name, _, version = stem.partition("-")
    return canonicalize_name(name), version


_LEFT_NAMES = {*PACKAGES, *(canonicalize_name(package) for package in PACKAGES.values())}


def _listed(place: Path) -> list[Path]:
    try:
        return list(place.iterdir())
    except OSError as error:
        raise VerifyError(f"{place}: {error.strerror}.", hint="Name a folder that packages are installed in.") from None
