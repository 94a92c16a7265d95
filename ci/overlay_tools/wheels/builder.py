"""The build: a pinned base wheel, the series and the overlay make a drop-in wheel.

Each build first plans every member of its wheel, and then writes the wheel once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

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
from overlay_tools.wheels.origins import check_folders, origins_of
from overlay_tools.wheels.overlay_files import as_overlay, compile_all, read_file, read_package
from overlay_tools.wheels.plan import PlannedMember, complete, copied_members, new_members, record_entries
from overlay_tools.wheels.provenance import Subject, describe_build, make_statement
from overlay_tools.wheels.version_files import VERSION_FILE, metadata_of, version_module

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
        origins = {**origins_of(project, release.version, applied, added, base), VERSION_FILE: "version"}
        check_folders(patched.keys() | added.keys(), base.members.keys() - removed, base.path)
        compile_all({**patched, **as_overlay(added)})
        changed = {**patched, **added, VERSION_FILE: version_module(base, release.version, version)}
        description, dependencies = change_requirements(project, release, metadata_of(base, release.version, version))
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
            modes=describe_modes(changed, {name for name in changed if is_executable(base.get(name) or b"")}),
        )
        name = f"sglang-{version}-{'-'.join(wheel.name.removesuffix('.whl').split('-')[2:])}.whl"
        provenance = describe_build(
            project, "sglang", name, added, release=release.version, base=wheel, patches=patches
        )
        path, size, sha256 = _write(project, name, complete(members, dist_info, manifest), provenance, base)
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
    compile_all(as_overlay(content))
    release = with_own_kernel(project, release)
    version = project.kernel_version(release.kernel_version)
    return build_own(
        project,
        release.kernel.name,
        version,
        content,
        _KERNEL_METADATA,
        {},
        overlay=content,
        release=release.version,
    )


def build_own(
    project: Project,
    name: str,
    version: str,
    content: Mapping[str, bytes],
    metadata: str,
    beside: Mapping[str, bytes],
    *,
    overlay: Mapping[str, bytes],
    release: str = "",
) -> BuiltWheel:
    """Build a wheel that holds only files of this project, for every Python and machine.

    Parameters: `content`, its files; `metadata`, lines of METADATA beside those that every wheel has; `beside`, more
    files of its .dist-info; `overlay`, the files of overlay/ that its own are made of; `release`, the one that it is
    for, "" if it is for several.
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
        modes=describe_modes(content, set()),
    )
    file = f"{stem}-py3-none-any.whl"
    provenance = describe_build(project, name, file, overlay, release=release)
    path, size, sha256 = _write(project, file, complete(members, dist_info, manifest), provenance)
    return BuiltWheel(
        path=path,
        size=size,
        sha256=sha256,
        base=None,
        patches=(),
        added=sorted(content),
        seconds=time.perf_counter() - started,
    )


def _write(
    project: Project,
    name: str,
    members: Sequence[PlannedMember],
    provenance: Mapping[str, object],
    base: WheelReader | None = None,
) -> tuple[Path, int, str]:
    def describe(sha256: str) -> bytes:
        return make_statement(provenance, Subject(name=name, sha256=sha256))

    return write_wheel(project, name, members, describe, base)


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
