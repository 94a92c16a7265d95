"""overlay/: the files of its packages, read and compiled."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

from overlay_tools.archive.mode import ANY_X, with_mode
from overlay_tools.checkout import check_whole, is_scratch, own_paths
from overlay_tools.errors import BuildError
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import TOO_DEEP
from overlay_tools.user_files import read_data

_PACKAGES = ("sglang", "sgl_kernel", "sglang_overlay_plugin", "sglang_overlay_plugin_start.py")
_DOCUMENTS = ("README.md", "CHANGELOG.md")  # beside the packages, for a reader of the repository; in no wheel
_LEFT_BY_MERGES = (".orig", ".rej")  # by git mergetool and patch


def read_package(project: Project, package: str, version: str | None) -> dict[str, bytes]:
    """Return the files of one of the overlay's packages that a release takes, by their path in a wheel.

    Parameters: `version`, the release, None for the files of every release.
    A file that is executable is so in the wheel. What is hidden, an editor's or Python's cache is left out.
    Raises BuildError if a file is a symbolic link, was left by a merge, or has a name that not every installer takes as
    it is, the overlay holds anything beside its packages, README.md and CHANGELOG.md, or the ranges of releases in
    pyproject.toml do not go with its files; OverlayError if a command that writes overlay/ was killed midway.
    """
    check_whole(project.root)
    overlay = project.overlay
    if strays := sorted(path for path in overlay.iterdir() if not _belongs(path)):
        raise BuildError(
            *(f"{path} goes into no wheel." for path in strays),
            hint=f"overlay/ holds {', '.join(_PACKAGES)}, and beside them {' and '.join(_DOCUMENTS)}.",
        )
    paths = own_paths(overlay / package)
    if linked := [path for path in paths if path.is_symlink()]:
        raise BuildError(*(f"{path} is a symbolic link." for path in linked), hint="Put the file itself there.")
    _check_patterns(project)
    files = {path.relative_to(overlay).as_posix(): path for path in paths if path.is_file()}
    if whys := {f"overlay/{name}": why for name in files if (why := why_in_no_wheel(name))}:
        raise BuildError(
            *(f"{name!a} goes into no wheel: {why}." for name, why in whys.items()),
            hint="Rename it; remove it if it is left over.",
        )
    return {
        name: _read(project.root, path)
        for name, path in files.items()
        if version is None or project.takes(version, name)
    }


def why_in_no_wheel(name: str) -> str:
    """Return why no wheel can be built with a file, by its path there, "" if one can.

    A backslash or a colon is part of a path on some machines; a line break in RECORD is not read by all; and what
    cannot be printed, a person cannot tell from something else. SGLang and the plugin look for models by the names of
    modules.
    """
    path = PurePosixPath(name)
    if not name.isprintable() or {"\\", ":"} & {*name}:
        return "its name has a backslash, a colon, or what cannot be printed"
    if path.suffix in _LEFT_BY_MERGES:
        return "it was left by a merge or a patch"
    if path.suffix == ".py" and not path.stem.isidentifier():
        return f"a module cannot be named {path.stem!r}"
    return ""


def names_of(overlay: Path) -> list[str]:
    """Return the paths in a wheel of the overlay's files, of all packages and releases."""
    return [
        path.relative_to(overlay).as_posix()
        for package in _PACKAGES
        for path in own_paths(overlay / package)
        if path.is_file()
    ]


def is_tiles(name: str) -> bool:
    """Tell whether a path in a wheel is that of tiles of upstream's fused MoE kernel, which it looks for by name."""
    return PurePosixPath(name).match("configs/triton_*/*.json") and name.startswith("sglang/")


def check_ranges(project: Project, versions: Iterable[str]) -> None:
    """Raise BuildError with each range of pyproject.toml that does not go with overlay/, or holds for no release."""
    _check_patterns(project)
    versions = list(versions)
    if faults := [
        f"{row.where}: no locked release is in the range {str(row.releases)!r} of {row.pattern}: it goes into no wheel."
        for row in project.files
        if not any(row.releases.contains(version, prereleases=True) for version in versions)
    ] + [
        f"{rule.where}: no locked release is in the range {str(rule.releases)!r} of these dependencies."
        for rule in project.dependencies
        if not any(rule.releases.contains(version, prereleases=True) for version in versions)
    ]:
        raise BuildError(*faults, hint=f"upstream.lock holds {', '.join(versions)}.")


def _check_patterns(project: Project) -> None:
    names = names_of(project.overlay) if project.files else []
    faults = []
    for row in project.files:
        matched = [name for name in names if row.matches(name)]
        if not matched:
            faults.append(f"{row.where}: overlay/ has no file {row.pattern}.")
        faults += [
            f"{row.where}: {name} goes into a wheel for every release, so its releases cannot be limited."
            for name in matched
            if not name.startswith("sglang/")
        ]
    for name in names:
        if len(rows := [row for row in project.files if row.matches(name)]) > 1:
            faults.append(f"{rows[1].where}: {rows[1].pattern} and {rows[0].pattern} both match {name}.")
    if faults:
        raise BuildError(
            *faults, hint="[tool.sglang-overlay.files] gives files of overlay/sglang, each once, a range of releases."
        )


def read_file(path: Path) -> bytes:
    """Return the content of a file that goes into a wheel.

    Raises BuildError if it cannot be read.
    """
    return read_data(path, BuildError, "Restore the file, or make it readable.")


def read_own(root: Path, name: str) -> bytes | None:
    """Return a file of a checkout's overlay/ by its path in a wheel, None if there is none.

    Raises BuildError if it cannot be read.
    """
    path = root / "overlay" / name
    return _read(root, path) if path.is_file() else None


def _read(root: Path, path: Path) -> bytes:
    data = read_file(path)
    # On a disk without modes, as Windows' under Linux, every file is executable, the licence too.
    return with_mode(data, executable=_runs(path) and not _runs(root / "LICENSE"))


def _runs(path: Path) -> bool:
    return path.exists() and bool(path.stat().st_mode & ANY_X)


def as_overlay(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return files by their path in the checkout, which are given by that in a wheel."""
    return {f"overlay/{name}": data for name, data in files.items()}


def compile_all(content: Mapping[str, bytes | None]) -> None:
    """Compile every Python file among `content`, by path, None for one that is gone.

    Raises BuildError with the line of each syntax error.
    """
    faults = [
        fault
        for name, data in content.items()
        if data is not None and name.endswith(".py") and (fault := _syntax_fault(name, data))
    ]
    if faults:
        raise BuildError(*faults, hint="Mend the file in overlay/, or the patch that changes it.")


@lru_cache(maxsize=1024)  # an import or an export compiles the same files several times
def _syntax_fault(name: str, data: bytes) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(data, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return f"{name}:{getattr(error, 'lineno', None) or 1}: {error}."
    except TOO_DEEP:
        return f"{name}: nested too deeply."
    return ""


def _belongs(path: Path) -> bool:
    return path.name in _PACKAGES or is_scratch(Path(path.name)) or (path.name in _DOCUMENTS and path.is_file())
