"""The build: a pinned base wheel, the series and the overlay make a drop-in wheel.

Each build first plans every member of its wheel, and then writes the wheel once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name

from overlay_tools.archive.mode import is_executable
from overlay_tools.archive.reader import WheelReader
from overlay_tools.errors import BuildError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.model import Hook, Patch, variants_of
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import LockedWheel, Release
from overlay_tools.wheels.dependencies import Change, change_requirements, with_own_kernel
from overlay_tools.wheels.dist import write_wheel
from overlay_tools.wheels.manifest import (
    SBOM,
    Manifest,
    describe_base,
    describe_files,
    describe_modes,
    describe_patches,
    tree_hash,
)
from overlay_tools.wheels.overlay_files import compile_all, read_file, read_package
from overlay_tools.wheels.plan import PlannedMember, complete, copied_members, new_members, record_entries

_VERSION_FILE = "sglang/_version.py"
_KERNEL_METADATA = """\
Summary: CPU reference kernels for SGLang, in plain PyTorch
Requires-Dist: torch
"""
_OWN_METADATA = """\
Metadata-Version: 2.4
Name: {name}
Version: {version}
License-Expression: Apache-2.0
License-File: LICENSE
License-File: NOTICE
Requires-Python: >=3.10
"""
_OWN_WHEEL = """\
Wheel-Version: 1.0
Generator: sglang-overlay-tools
Root-Is-Purelib: true
Tag: py3-none-any
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltWheel:
    """A wheel in dist/: its path, size in bytes and sha256, what was done to its base, how many seconds that took.

    `added`: the overlay's files in it; `left_out`: those of the same package that only other releases take;
    `dependencies`: each requirement that was changed, before and after.
    """

    path: Path
    size: int
    sha256: str
    base: LockedWheel | None
    patches: Sequence[Patch]
    added: Sequence[str]
    seconds: float
    left_out: Sequence[str] = ()
    dependencies: Sequence[Change] = ()


def build_sglang(
    project: Project, release: Release, wheel: LockedWheel, base_path: Path, hooks: Sequence[Hook]
) -> BuiltWheel:
    """Build the drop-in wheel of one release.

    Parameters: `wheel`, the one of the release's wheels that is the base; `base_path`, where it is, checked against
    the lock; `hooks`, the series.
    Raises OverlayError of the kind that fits, before anything in dist/ has changed.
    """
    started = time.perf_counter()
    version = project.overlay_version(release.version)
    dist_info = f"sglang-{version}.dist-info"
    patches = variants_of(hooks, release.version)
    added = read_package(project, "sglang", release.version)
    with WheelReader(base_path) as base:
        applied = apply_series(patches, base.get, f"sglang {release.version}")
        patched = {name: data for name, data in applied.items() if data is not None}
        removed = sorted(applied.keys() - patched.keys())
        origins = {**_origins(project, release.version, applied, added, base), _VERSION_FILE: "version"}
        _check_folders(patched.keys() | added.keys(), base.members.keys() - removed, base.path)
        compile_all({**patched, **added})
        changed = {**patched, **added, _VERSION_FILE: _version_module(base, release.version, version)}
        description, dependencies = change_requirements(project, release, _metadata(base, release.version, version))
        files = describe_files(changed, origins)
        metadata = {
            f"{dist_info}/METADATA": description,
            f"{dist_info}/licenses/NOTICE.sglang-overlay": read_file(project.root / "NOTICE"),
            f"{dist_info}/{SBOM}": _bill("sglang", version, description, files, wheel, patches),
        }
        members = [*_kept(base, dist_info, {*changed, *removed}), *new_members(changed), *new_members(metadata)]
        manifest = Manifest(
            distribution="sglang",
            version=version,
            base=describe_base(wheel),
            patches=describe_patches(patches),
            files=files,
            tree=tree_hash(record_entries(members), dist_info),
            dependencies=[list(change) for change in dependencies],
            removed=removed,
            modes=describe_modes(patched, {name for name in patched if is_executable(base.get(name) or b"")}),
        )
        name = f"sglang-{version}-{'-'.join(wheel.name.removesuffix('.whl').split('-')[2:])}.whl"
        path, size, sha256 = write_wheel(project, name, complete(members, dist_info, manifest), base)
    return BuiltWheel(
        path=path,
        size=size,
        sha256=sha256,
        base=wheel,
        patches=patches,
        added=sorted(added),
        left_out=sorted(read_package(project, "sglang", None).keys() - added.keys()),
        dependencies=dependencies,
        seconds=time.perf_counter() - started,
    )


def build_kernel(project: Project, release: Release) -> BuiltWheel:
    """Build the CPU kernel wheel that satisfies a release's kernel pin on a machine without a GPU.

    Raises BuildError if the overlay has no kernels or one of its files does not compile.
    """
    content = read_package(project, "sgl_kernel", release.version)
    if not content:
        raise BuildError(f"There are no files in {project.overlay / 'sgl_kernel'}.", hint="Restore the CPU kernels.")
    compile_all(content)
    release = with_own_kernel(project, release)
    version = f"{release.kernel_version}+cpu.{project.revision}"
    return build_own(project, release.kernel.name, version, content, _KERNEL_METADATA, {})


def build_own(
    project: Project, name: str, version: str, content: Mapping[str, bytes], metadata: str, beside: Mapping[str, bytes]
) -> BuiltWheel:
    """Build a wheel that holds only files of this project, for every Python and machine.

    Parameters: `content`, its files; `metadata`, lines of METADATA beside those that every wheel has; `beside`, more
    files of its .dist-info.
    """
    started = time.perf_counter()
    stem = f"{canonicalize_name(name).replace('-', '_')}-{version}"
    dist_info = f"{stem}.dist-info"
    description = (_OWN_METADATA.format(name=name, version=version) + metadata).encode()
    described = describe_files(content, dict.fromkeys(content, "added"))
    files = {
        "METADATA": description,
        SBOM: _bill(name, version, description, described),
        "WHEEL": _OWN_WHEEL.encode(),
        "licenses/LICENSE": read_file(project.root / "LICENSE"),
        "licenses/NOTICE": read_file(project.root / "NOTICE"),
        **beside,
    }
    members = [
        *new_members(content),
        *new_members({f"{dist_info}/{file}": data for file, data in files.items()}),
    ]
    manifest = Manifest(
        distribution=name,
        version=version,
        base=None,
        patches=[],
        files=described,
        tree=tree_hash(record_entries(members), dist_info),
    )
    path, size, sha256 = write_wheel(project, f"{stem}-py3-none-any.whl", complete(members, dist_info, manifest))
    return BuiltWheel(
        path=path,
        size=size,
        sha256=sha256,
        base=None,
        patches=(),
        added=sorted(content),
        seconds=time.perf_counter() - started,
    )


def _bill(
    name: str,
    version: str,
    metadata: bytes,
    files: Mapping[str, Sequence[str]],
    base: LockedWheel | None = None,
    patches: Sequence[Patch] = (),
) -> bytes:
    from overlay_tools.wheels.sbom import describe_wheel  # what it imports costs every command that may build a moment

    return describe_wheel(name, version, base=base, patches=patches, files=files, metadata=metadata)


def _origins(
    project: Project, version: str, patched: Mapping[str, bytes | None], added: Mapping[str, bytes], base: WheelReader
) -> dict[str, str]:
    """Return where each patched or added file comes from, as the manifest says it.

    Raises BuildError if a file of the overlay is in the way of upstream's, or of a patch, or a patch changes what the
    build writes itself.
    """
    upstream = added.keys() & base.members.keys()
    faults = [f"overlay/{name} is also changed by a patch." for name in sorted(added.keys() & patched.keys())]
    faults += [f"overlay/{name} exists upstream." for name in sorted(upstream - project.replaces - patched.keys())]
    faults += [
        f"overlay/{name} is listed in `replaces`, but there is no such file."
        for name in sorted(project.replaced(version) - added.keys())
    ]
    if _VERSION_FILE in patched:
        raise BuildError(f"A hook changes {_VERSION_FILE}, which each build writes.", hint="Take that out of the hook.")
    if _VERSION_FILE in added:
        raise BuildError(
            f"overlay/{_VERSION_FILE}: each build writes this file itself.", hint="Take it out of overlay/."
        )
    if faults:
        raise BuildError(
            *faults,
            hint="Choose another name, list a file that is meant to replace upstream's in `replaces` of"
            " [tool.sglang-overlay] in pyproject.toml, or limit it to other releases in [tool.sglang-overlay.files].",
        )
    origins = {name: "patched" if name in base.members else "renamed" for name in patched}
    return origins | {name: "replaced" if name in upstream else "added" for name in added}


def _check_folders(changed: Set[str], kept: Set[str], base: Path) -> None:
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


def _kept(base: WheelReader, dist_info: str, changed: Set[str]) -> list[PlannedMember]:
    """Plan copies of what upstream's wheel keeps: all but its changed and removed files, METADATA and RECORD."""
    made_anew = {*changed, f"{base.dist_info}/METADATA", f"{base.dist_info}/RECORD"}
    old, new = f"{base.dist_info}/", f"{dist_info}/"
    return copied_members(
        base,
        {
            name: new + name.removeprefix(old) if name.startswith(old) else name
            for name in base.members
            if name not in made_anew
        },
    )


def _version_module(base: WheelReader, old: str, new: str) -> bytes:
    """Return sglang/_version.py, as setuptools-scm writes it, with the new version in place of the old one."""
    text = base.read(_VERSION_FILE).decode("utf-8")
    text, strings = re.subn(rf"(?m)^(__version__ = version = )'{re.escape(old)}'$", rf"\1'{new}'", text)
    local, of_base = new.partition("+")[2], old.partition("+")[2]
    last = f", '{re.escape(of_base)}'" if of_base else ""
    text, tuples = re.subn(rf"(?m)^(__version_tuple__ = version_tuple = \(.*){last}\)$", rf"\1, '{local}')", text)
    if strings != 1 or tuples != 1:
        raise BuildError(
            f"{_VERSION_FILE} of {base.path} does not give its version in the form that this tool knows.",
            hint="Teach `_version_module` in wheels/builder.py the new form.",
        )
    return text.encode("utf-8")


def _metadata(base: WheelReader, old: str, new: str) -> bytes:
    """Return METADATA with the new version in place of the old one."""
    head, separator, body = base.read(f"{base.dist_info}/METADATA").partition(b"\n\n")
    head, count = re.subn(
        rb"(?m)^Version: " + re.escape(old.encode()) + rb"(?=\r?$)", b"Version: " + new.encode(), head
    )
    if count != 1:
        raise BuildError(
            f"METADATA of {base.path} does not give {old} as its version.", hint="Lock the release's own wheel."
        )
    return head + separator + body
