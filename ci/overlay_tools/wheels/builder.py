"""The build: a pinned base wheel, the series and the overlay make a drop-in wheel, written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from packaging.utils import canonicalize_name

from overlay_tools.archive.reader import WheelReader
from overlay_tools.archive.record import RecordRow, format_record, record_row
from overlay_tools.archive.writer import WheelWriter
from overlay_tools.errors import BuildError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.model import Hook, Patch
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import LockedWheel, Release
from overlay_tools.wheels.manifest import MANIFEST, Manifest, describe_base, describe_patches, tree_hash
from overlay_tools.wheels.overlay_files import _read, compile_all, read_package

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
    """A wheel in dist/: where it is, its size in bytes and sha256, what was done to its base, seconds it took."""

    path: Path
    size: int
    sha256: str
    base: LockedWheel | None
    patches: Sequence[Patch]
    added: Sequence[str]
    seconds: float


def build_sglang(
    project: Project, release: Release, wheel: LockedWheel, base_path: Path, hooks: Sequence[Hook]
) -> BuiltWheel:
    """Build the drop-in wheel of one release.

    Parameters: `wheel`, which of the release's wheels is the base; `base_path`, where it is,
    checked against the lock; `hooks`, the series.
    Raises OverlayError of the kind that fits, before anything in dist/ has changed.
    """
    started = time.perf_counter()
    version = f"{release.version}+overlay.{project.revision}"
    patches = [patch for hook in hooks if (patch := hook.variant(release.version))]
    added = read_package(project.overlay, "sglang")
    with WheelReader(base_path) as base:

        def read(name: str) -> bytes | None:
            return base.read(name) if name in base.members else None

        touched = apply_series(patches, read, f"sglang {release.version}")
        origins = _origins(project, touched, added, base)
        content = {**touched, **added}
        compile_all(content)
        content[_VERSION_FILE] = _version_module(base, release.version, version)
        origins[_VERSION_FILE] = "version"

        dist_info = f"sglang-{version}.dist-info"
        renamed = {
            name: name.replace(base.dist_info, dist_info, 1) if name.startswith(base.dist_info + "/") else name
            for name in base.members
            if name not in content and name not in {f"{base.dist_info}/{file}" for file in ("METADATA", "RECORD")}
        }
        own = {
            f"{dist_info}/METADATA": _metadata(base, release.version, version),
            f"{dist_info}/licenses/NOTICE.sglang-overlay": _read(project.root / "NOTICE"),
        }
        recorded = base.record().values()
        rows = [
            RecordRow(path=renamed[row.path], digest=row.digest, size=row.size)
            for row in recorded
            if row.path in renamed
        ]
        unrecorded = {name for name in renamed if not name.endswith("/")} - {row.path for row in recorded}
        if unrecorded:
            raise BuildError(*(f"RECORD of {base_path} does not list {name}." for name in sorted(unrecorded)))

        def write(writer: WheelWriter) -> None:
            upstream = {old: new for old, new in renamed.items() if old == new}
            writer.copy(base, upstream)
            _add(writer, rows, content)
            writer.copy(base, {old: new for old, new in renamed.items() if old not in upstream})
            manifest = Manifest(
                distribution="sglang",
                version=version,
                base=describe_base(wheel),
                patches=describe_patches(patches),
                files=_describe(content, origins),
                tree=tree_hash([*rows, *(record_row(name, data) for name, data in own.items())]),
            )
            _finish(writer, rows, {**own, f"{dist_info}/{MANIFEST}": manifest.dump()}, dist_info)

        name = f"sglang-{version}-{'-'.join(wheel.name.removesuffix('.whl').split('-')[2:])}.whl"
        path, size, digest = _write(project.dist / name, write)
    return BuiltWheel(
        path=path,
        size=size,
        sha256=digest,
        base=wheel,
        patches=patches,
        added=sorted(added),
        seconds=time.perf_counter() - started,
    )


def build_kernel(project: Project, release: Release) -> BuiltWheel:
    """Build the CPU kernel wheel that satisfies a release's kernel pin on a machine without a GPU.

    Raises BuildError if the overlay has no kernels or one of its files does not compile.
    """
    content = read_package(project.overlay, "sgl_kernel")
    if not content:
        raise BuildError(f"{project.overlay / 'sgl_kernel'} holds no file.", hint="Restore the CPU kernels.")
    compile_all(content)
    version = f"{release.kernel_version}+cpu.{project.revision}"
    return build_own(project, release.kernel.name, version, content, _KERNEL_METADATA, {})


def build_own(
    project: Project, name: str, version: str, content: Mapping[str, bytes], metadata: str, beside: Mapping[str, bytes]
) -> BuiltWheel:
    """Build a wheel that holds nothing of upstream's, for every Python and machine.

    Parameters: `content`, its files; `metadata`, the lines of METADATA that are its own; `beside`, further files of its
    .dist-info.
    """
    started = time.perf_counter()
    stem = f"{canonicalize_name(name).replace('-', '_')}-{version}"
    dist_info = f"{stem}.dist-info"
    own = {
        f"{dist_info}/METADATA": (_OWN_METADATA.format(name=name, version=version) + metadata).encode(),
        f"{dist_info}/WHEEL": _OWN_WHEEL.encode(),
        **{f"{dist_info}/{file}": data for file, data in beside.items()},
        f"{dist_info}/licenses/LICENSE": _read(project.root / "LICENSE"),
        f"{dist_info}/licenses/NOTICE": _read(project.root / "NOTICE"),
    }

    def write(writer: WheelWriter) -> None:
        rows: list[RecordRow] = []
        _add(writer, rows, content)
        manifest = Manifest(
            distribution=name,
            version=version,
            base=None,
            patches=[],
            files=_describe(content, dict.fromkeys(content, "added")),
            tree=tree_hash([*rows, *(record_row(path, data) for path, data in own.items())]),
        )
        _finish(writer, rows, {**own, f"{dist_info}/{MANIFEST}": manifest.dump()}, dist_info)

    path, size, digest = _write(project.dist / f"{stem}-py3-none-any.whl", write)
    return BuiltWheel(
        path=path,
        size=size,
        sha256=digest,
        base=None,
        patches=(),
        added=sorted(content),
        seconds=time.perf_counter() - started,
    )


def _origins(
    project: Project, touched: Mapping[str, bytes], added: Mapping[str, bytes], base: WheelReader
) -> dict[str, str]:
    faults = [f"overlay/{name} is also changed by a patch." for name in sorted(added.keys() & touched.keys())]
    upstream = added.keys() & base.members.keys()
    faults += [f"overlay/{name} exists upstream." for name in sorted(upstream - project.replaces - touched.keys())]
    faults += [
        f"overlay/{name} is declared as a replacement and is not there." for name in project.replaces - added.keys()
    ]
    if faults:
        raise BuildError(
            *faults,
            hint="Choose another name, or list a file that is meant to replace upstream's in `replaces` of "
            "[tool.sglang-overlay] in pyproject.toml.",
        )
    return dict.fromkeys(touched, "patched") | {name: "replaced" if name in upstream else "added" for name in added}


def _version_module(base: WheelReader, old: str, new: str) -> bytes:
    """Return sglang/_version.py, as setuptools-scm writes it, for the new version."""
    text = base.read(_VERSION_FILE).decode("utf-8")
    local = new.partition("+")[2]
    text, strings = re.subn(rf"(?m)^(__version__ = version = )'{re.escape(old)}'$", rf"\1'{new}'", text)
    text, tuples = re.subn(r"(?m)^(__version_tuple__ = version_tuple = \(.*)\)$", rf"\1, '{local}')", text)
    if strings != 1 or tuples != 1:
        raise BuildError(
            f"{_VERSION_FILE} of {base.path} does not give its version in the way that this tool knows.",
            hint="Teach `build._version_module` the new form.",
        )
    return text.encode("utf-8")


def _metadata(base: WheelReader, old: str, new: str) -> bytes:
    head, separator, body = base.read(f"{base.dist_info}/METADATA").partition(b"\n\n")
    head, count = re.subn(
        rb"(?m)^Version: " + re.escape(old.encode()) + rb"(?=\r?$)", b"Version: " + new.encode(), head
    )
    if count != 1:
        raise BuildError(f"METADATA of {base.path} does not give {old} as its version.", hint="It is no such release.")
    return head + separator + body


def _add(writer: WheelWriter, rows: list[RecordRow], content: Mapping[str, bytes]) -> None:
    for name in sorted(content):
        writer.add(name, content[name])
        rows.append(record_row(name, content[name]))


def _finish(writer: WheelWriter, rows: list[RecordRow], own: Mapping[str, bytes], dist_info: str) -> None:
    _add(writer, rows, own)
    record = f"{dist_info}/RECORD"
    unlike = {name for name in writer.names if not name.endswith("/")} ^ {row.path for row in rows}
    if unlike:
        raise BuildError(*(f"RECORD and the members differ in {name}." for name in sorted(unlike)), hint="Report this.")
    writer.add(record, format_record([*rows, RecordRow(path=record, digest="", size="")]))
    writer.finish()


def _describe(content: Mapping[str, bytes], origins: Mapping[str, str]) -> dict[str, list[str]]:
    return {name: [origins[name], hashlib.sha256(data).hexdigest()] for name, data in content.items()}


def _write(path: Path, write: Callable[[WheelWriter], None]) -> tuple[Path, int, str]:
    """Write a wheel whole under another name, and only then let it take its place."""
    try:
        with _exclusive(path.parent), _partial(path) as (stream, part):
            writer = WheelWriter(stream)
            write(writer)
            stream.flush()
            os.fsync(stream.fileno())
            part.chmod(0o644)
            part.replace(path)
    except OSError as error:
        raise BuildError(f"{error.filename or path}: {error.strerror}.", hint="Make dist/ writable.") from None
    return path, writer.size, writer.sha256


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder against other builds, and clear away what a build that was killed has left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in folder.glob(".*.part"):
            left.unlink()
        yield
    finally:
        os.close(handle)


@contextmanager
def _partial(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
