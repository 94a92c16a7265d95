"""Where the files of a drop-in wheel come from, and which cannot stand beside what its base has."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path, PurePosixPath

from overlay_tools.archive.reader import WheelReader
from overlay_tools.errors import BuildError
from overlay_tools.settings import Project
from overlay_tools.wheels.version_files import VERSION_FILE


def origins_of(
    project: Project, version: str, patched: Mapping[str, bytes | None], added: Mapping[str, bytes], base: WheelReader
) -> dict[str, str]:
    """Return where each patched or added file comes from, as the manifest says it.

    Raises BuildError if a file of the overlay is in the way of upstream's, or of a patch, or a patch changes what the
    build writes itself.
    """
    upstream = added.keys() & base.members.keys()
    faults = [f"overlay/{name} is also changed by a patch." for name in sorted(added.keys() & patched.keys())]
    faults += [f"overlay/{name} exists upstream." for name in sorted(upstream - project.replaces - patched.keys())]
    faults += _shadowed(added.keys() - upstream, base.members.keys() | patched.keys() | added.keys())
    faults += [
        f"overlay/{name} is listed in `replaces`, but there is no such file."
        for name in sorted(project.replaced(version) - added.keys())
    ]
    if VERSION_FILE in patched:
        raise BuildError(f"A hook changes {VERSION_FILE}, which each build writes.", hint="Take that out of the hook.")
    if VERSION_FILE in added:
        raise BuildError(
            f"overlay/{VERSION_FILE}: each build writes this file itself.", hint="Take it out of overlay/."
        )
    if faults:
        raise BuildError(
            *faults,
            hint="Choose another name, list a file that is meant to replace upstream's in `replaces` of"
            " [tool.sglang-overlay] in pyproject.toml, or limit it to other releases in [tool.sglang-overlay.files].",
        )
    origins = {name: "patched" if name in base.members else "renamed" for name in patched}
    return origins | {name: "replaced" if name in upstream else "added" for name in added}


def _shadowed(new: Set[str], every: Set[str]) -> list[str]:
    """Say of new files which module and package have one name: Python imports the package, and never the module."""
    modules = {name for name in every if name.endswith(".py")}
    packages = {str(folder) for name in modules for folder in PurePosixPath(name).parents}
    pairs = {name for name in modules if name.removesuffix(".py") in packages}
    return [
        f"{module} and the folder {folder}/ would be one module: overlay/ has {sorted(ours)[0]}."
        for module in sorted(pairs)
        if (folder := module.removesuffix(".py"))
        and (ours := {name for name in new & modules if name == module or name.startswith(f"{folder}/")})
    ]


def check_folders(changed: Set[str], kept: Set[str], base: Path) -> None:
    """Raise BuildError if a file would have the name of a folder.

    Parameters: `changed`, the paths of new and changed files; `kept`, those of what the base wheel has besides.
    """
    files = {name for name in kept if not name.endswith("/")} | changed
    faults = [
        f"{name} would lie in {parent}, which is a file."
        for name in sorted(changed)
        for parent in map(str, PurePosixPath(name).parents)
        if parent in files
    ]
    folders = {str(parent) for name in kept if not name.endswith("/") for parent in PurePosixPath(name).parents}
    faults += [f"{name} would be a file, and is a folder of {base.name}." for name in sorted(changed & folders)]
    if faults:
        raise BuildError(*faults, hint="Choose another name for what the overlay or a hook adds.")
