"""Compare what is installed with the manifests of this project's wheels, and see that Python takes it from there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath

from installer.records import RecordEntry

from overlay_tools.archive.mode import read_with_mode
from overlay_tools.archive.record import parse_record, proves
from overlay_tools.errors import VerifyError
from overlay_tools.wheels.installed import PACKAGES, Installed, find_installed, find_leftovers
from overlay_tools.wheels.interpreter import SearchPath, ask
from overlay_tools.wheels.manifest import MANIFEST, load_manifest
from overlay_tools.wheels.verify import Contents, Verified, differences_from_manifest, differences_from_record, shown

# What installers write into .dist-info beside the wheel's own files (PyPA, "Recording installed projects"; uv).
_INSTALLERS = ("INSTALLER", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json")
_ANEW = "Install the wheel anew, after deleting what is left of it if it cannot be uninstalled."
_ELSEWHERE = "Uninstall the other one, or take it off Python's path: PYTHONPATH, a .pth file, the working folder."


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What was compared in an environment or a folder, and a line for each thing that was not."""

    verified: Sequence[Verified]
    remarks: Sequence[str]


def verify_environment(python: str) -> Found:
    """Compare what an interpreter imports of this project's wheels with their manifests.

    It is looked for where that interpreter looks: its site-packages, the user's, PYTHONPATH and the working folder.
    Beside a plugin, upstream's sglang is compared with its RECORD.
    Raises VerifyError if it is no interpreter, has none of this project's wheels, or imports one of their packages from
    anywhere else than where the wheel is installed.
    """
    path = ask(python, {*PACKAGES.values()})
    by_package: dict[str, list[Installed]] = {}
    for folder in path.folders:
        for one in find_installed(folder):
            by_package.setdefault(one.package, []).append(one)
    if plugins := by_package.keys() - {*PACKAGES.values()}:  # of names that are known only now
        path = ask(python, plugins | {*PACKAGES.values()})
    if stray := sorted(path.packages.keys() - by_package.keys()):
        raise VerifyError(
            *(f"Python imports {name} from {path.describe(name)}, which nothing installed brings." for name in stray),
            hint="Delete it if an uninstalled one has left it, or take it off Python's path.",
        )
    chosen, remarks = {}, []
    for package, all_of_it in by_package.items():
        chosen[package] = one = next((one for one in all_of_it if one.ours), all_of_it[0])
        if all_of_it[0] is not one:
            raise VerifyError(f"Python takes {all_of_it[0].where}, not {one.where}.", hint=_ELSEWHERE)
        remarks += [f"{other.where} is not used: it comes after {one.place}" for other in all_of_it[1:]]
    found = _verify(f"The environment of {python}", chosen, path)
    return Found(verified=found.verified, remarks=[*found.remarks, *remarks])


def verify_folder(folder: Path) -> Found:
    """Compare what is installed in a folder, as with `pip install --target`, with the manifests of its wheels.

    Raises VerifyError if it has none of this project's wheels, or a package of theirs that is no longer installed.
    """
    installed = find_installed(folder)
    if left := list(find_leftovers(folder, installed)):
        raise VerifyError(
            *(f"{path} belongs to nothing that is installed in {folder}." for path in left),
            hint="Delete it if an uninstalled one has left it, and install the wheel anew.",
        )
    return _verify(str(folder), {one.package: one for one in installed}, None)


def _verify(where: str, chosen: Mapping[str, Installed], path: SearchPath | None) -> Found:
    """Compare one distribution of each package.

    Parameters: `where`, what an error calls the place; `path`, where Python imports them from, if that is known.
    """
    sglang, has_plugin = chosen.get("sglang"), any(one.plugin for one in chosen.values())
    compared = [one for one in chosen.values() if one.ours]
    if not has_plugin and (sglang is None or not sglang.ours):
        what = f"{sglang.folder.name}, which is not an overlay build of sglang" if sglang else "no sglang"
        raise VerifyError(f"{where} has {what}.", hint="Install a wheel of dist/ there.")
    if has_plugin and sglang is not None and not sglang.ours:
        compared.append(sglang)
    if path:
        _check_imports(compared, path)
    there = {"sglang": sglang, "kernels": chosen.get("sgl_kernel"), "plugin": has_plugin}
    remarks = [f"{where} has no {what}" for what, found in there.items() if not found]
    remarks += [f"{one.where} is upstream's: not compared" for one in chosen.values() if one not in compared]
    return Found(verified=[_compare(one) for one in compared], remarks=remarks)


def _check_imports(compared: Iterable[Installed], path: SearchPath) -> None:
    """Raise VerifyError if Python imports a package from anywhere else than where its distribution is."""
    elsewhere = [
        f"Python imports {one.package} from {path.describe(one.package)}, not from {one.where}."
        for one in compared
        if one.package in path.packages
        and not one.editable
        and path.packages[one.package].resolve() != (one.place / one.package).resolve()
    ]
    if elsewhere:
        raise VerifyError(*elsewhere, hint=_ELSEWHERE)


def _compare(one: Installed) -> Verified:
    if one.editable:
        raise VerifyError(
            f"{one.where} is an editable install of {one.editable}: nothing says what its files should be.",
            hint="Uninstall it, and install a wheel.",
        )
    try:
        record = parse_record((one.folder / "RECORD").read_bytes(), str(one.folder / "RECORD"))
        manifest = load_manifest((one.folder / MANIFEST).read_bytes(), str(one.folder / MANIFEST)) if one.ours else None
        contents, written = _contents(one, record), _written(one, record)
        if not any(path.startswith(f"{one.package}/") for path in contents.present):
            what = f"missing: {one.package} and all that is in it: {one} is half removed"
            return Verified(name=str(one), files=len(contents.record), differences=[what], place=one.place)
        differences = [
            *differences_from_record(contents, manifest),
            *_written_otherwise(one, {path: record[path] for path in written}),
            *(differences_from_manifest(contents, manifest) if manifest else ()),
        ]
    except OSError as error:
        raise VerifyError(f"{error.filename}: {error.strerror}.", hint=_ANEW) from None
    return Verified(
        name=str(one), files=len(contents.record), differences=differences, place=one.place, upstreams=not one.ours
    )


def _contents(one: Installed, record: Mapping[str, RecordEntry]) -> Contents:
    """Return the wheel's own files, without what installers write beside them."""
    dist_info = one.folder.name
    of_installers = {f"{dist_info}/{name}" for name in _INSTALLERS}
    scripts = _written(one, record)
    own = {
        path: entry
        for path, entry in record.items()
        if path not in of_installers | scripts and not (_is_cache(path) and entry.hash_ is None)
    }
    # Foreign files are looked for in the wheel's own packages only: other distributions share the folder.
    tops = {PurePosixPath(path).parts[0] for path in own if not _is_outside(path)} | {dist_info, one.package}
    present = {path for top in tops for path in _files(one.place, top) if path not in of_installers}

    def read(name: str) -> bytes | None:
        path = one.place / name
        if _is_outside(name) or not path.is_file():
            return None
        return read_with_mode(path)

    return Contents(
        dist_info=dist_info,
        record=own,
        unhashed={f"{dist_info}/RECORD"},
        present={path for path in present if not _is_cache(path)},
        read=read,
    )


def _written(one: Installed, record: Iterable[str]) -> set[str]:
    """Return the paths in RECORD of the commands that installers have made of the wheel's entry points."""
    try:
        points = Distribution.at(one.folder).entry_points
    except (TypeError, ValueError):  # the file is damaged, and will be found to differ
        return set()
    commands = {f"bin/{point.name}" for point in points if point.group in ("console_scripts", "gui_scripts")}
    return {path for path in record if re.sub(r"^(\.\./)+", "", path) in commands}


def _written_otherwise(one: Installed, scripts: Mapping[str, RecordEntry]) -> Iterator[str]:
    """Yield a line for each command that is not as its installer made it."""
    for path, entry in sorted(scripts.items()):
        # With --target, pip moves them to bin/, and its RECORD keeps the place that they had before.
        file = next((file for file in (one.place / path, one.place / "bin" / Path(path).name) if file.is_file()), None)
        if file is None:
            yield f"missing: {shown(path)} (a command that the installer made)"
        elif entry.hash_ is None or not proves(entry.hash_, file.read_bytes()):
            yield f"differs: {shown(path)} (a command that the installer made)"


def _files(place: Path, top: str) -> Iterator[str]:
    """Yield the paths of all files in a folder of a place, or of the file `top` itself; links to folders are files."""

    def fail(error: OSError) -> None:
        raise error

    if (place / top).is_file():
        yield top
    for folder, folders, files in os.walk(place / top, onerror=fail if (place / top).is_dir() else None):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from ((Path(folder) / name).relative_to(place).as_posix() for name in [*files, *links])


def _is_outside(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts


def _is_cache(path: str) -> bool:
    return path.endswith(".pyc") and PurePosixPath(path).parent.name == "__pycache__"
