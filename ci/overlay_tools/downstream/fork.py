"""A fork of upstream's, as a wheel or a checkout: its files beside those of a release, and the release it came from."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from overlay_tools.archive.mode import is_executable, read_with_mode, with_mode
from overlay_tools.archive.reader import WheelReader
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.foreign_patch import HINT, FileChange, ForeignPatch, new_file, slug
from overlay_tools.errors import OverlayError, UsageError, WorktreeError
from overlay_tools.subprocesses import git_bytes
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import Lock
from overlay_tools.upstream.source_tree import source_wheel
from overlay_tools.user_files import read_text

_VERSION_FILE = "sglang/_version.py"  # each build writes its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Fork:
    """The files of a fork under sglang/.

    `crcs`: the CRC of each, by path in a wheel; `read` gives a file's content; `metadata`: METADATA of a wheel, also of
    one that is unpacked or installed. A checkout has none, and may lack what a build adds; `links`: what is a link in
    it, as paths in a wheel; `names`: of all its files, those that are left alone too; `besides`: what else a wheel has,
    by its first folder; `entry_points`: the wheel's file of that name, if it has one.
    """

    path: Path
    crcs: Mapping[str, int]
    read: Callable[[str], bytes]
    metadata: bytes | None
    links: Sequence[str]
    names: Set[str]
    besides: Set[str] = frozenset()
    entry_points: bytes | None = None


def is_fork(source: Path) -> bool:
    """Tell whether a source is a fork's wheel or checkout, rather than patches."""
    return source.suffix == ".whl" or _root_of(source) is not None


def open_fork(source: Path, exclude: Sequence[str], stack: ExitStack) -> Fork:
    """Open a wheel, or a checkout: of a git repository, the files that it tracks.

    Parameters: `exclude`, patterns of paths in a wheel to leave alone; `stack` closes the wheel.
    Raises WheelError if the wheel cannot be read; WorktreeError if there is no sglang/ in it, or files of the checkout
    are not as git keeps them.
    """
    root = _root_of(source)
    links: list[str] = []
    besides, entry_points = frozenset[str](), None
    if root is None:
        wheel = stack.enter_context(WheelReader(source))
        besides, entry_points = _besides(wheel), _entry_points(wheel)
        crcs, read, metadata = crcs_of(wheel), wheel.read, wheel.get(f"{wheel.dist_info}/METADATA")
    else:
        found = root

        def read(name: str) -> bytes:
            return read_with_mode(found / name)

        names = _files_of(source, root.resolve(), exclude)
        links = [name for name in names if (root / name).is_symlink()]
        crcs = {name: zlib.crc32(read(name)) for name in names if not (root / name).is_symlink()}
        metadata = _metadata_of(root)
    kept = {name: crc for name, crc in crcs.items() if not _excluded(name, exclude)}
    if not kept:
        raise WorktreeError(f"{source} has no file under sglang/: it is not a fork of SGLang.", hint=HINT)
    shown = [name for name in links if not _excluded(name, exclude)]
    return Fork(
        path=source,
        crcs=kept,
        read=read,
        metadata=metadata,
        links=shown,
        names={*crcs, *links},
        besides=besides,
        entry_points=entry_points,
    )


def _besides(wheel: WheelReader) -> frozenset[str]:
    """Return what a wheel has beside sglang/ and its own .dist-info."""
    return frozenset(name.partition("/")[0] for name in wheel.members) - {"sglang", wheel.dist_info}


def _entry_points(wheel: WheelReader) -> bytes | None:
    return wheel.get(f"{wheel.dist_info}/entry_points.txt")


def crcs_of(wheel: WheelReader) -> dict[str, int]:
    """Return the CRC of each file of a wheel's sglang/."""
    return {
        name: info.CRC
        for name, info in wheel.members.items()
        if name.startswith("sglang/") and not name.endswith("/") and name != _VERSION_FILE
    }


def find_base(fork: Fork, lock: Lock, cache: Path, exclude: Sequence[str]) -> tuple[str, int]:
    """Return the locked release in which the fewest files differ from a fork's, and how many do."""
    counts = {}
    for version, release in lock.items():
        with WheelReader(fetch(release, source_wheel(release), cache)) as wheel:
            base = {name: crc for name, crc in crcs_of(wheel).items() if not _excluded(name, exclude)}
        counts[version] = sum(base.get(name) != fork.crcs.get(name) for name in base.keys() | fork.crcs.keys())
    best = min(counts, key=lambda version: counts[version])
    return best, counts[best]


def check_excluded(fork: Fork, base: WheelReader, version: str, exclude: Sequence[str]) -> None:
    """Raise UsageError if a pattern matches nothing: what it was to leave alone would be brought in."""
    names = fork.names | crcs_of(base).keys()
    if unused := [pattern for pattern in exclude if not any(_excluded(name, [pattern]) for name in names)]:
        raise UsageError(
            *(f"--exclude {pattern} matches no file of {fork.path} or of sglang {version}." for pattern in unused),
            hint="Paths are as in a wheel: sglang/multimodal_gen, not python/sglang/multimodal_gen.",
        )


def compare(fork: Fork, base: WheelReader, version: str, exclude: Sequence[str]) -> list[ForeignPatch]:
    """Return what a fork changes of a release, a patch a file: changed ones first, then new, then deleted ones."""
    old = {name: crc for name, crc in crcs_of(base).items() if not _excluded(name, exclude)}
    changes: list[FileChange] = []
    for name in sorted(fork.crcs.keys() & old.keys()):
        if fork.crcs[name] != old[name]:
            before = base.read(name)
            after = with_mode(fork.read(name), executable=is_executable(before))
            if b"\0" in before or b"\0" in after:
                changes.append(FileChange(name=name, left_out="it is binary, which a hook cannot express"))
            else:
                changes.append(FileChange(name=name, diff=make_diff({name: before}, {name: after})))
    changes += [new_file(name, fork.read(name)) for name in sorted(fork.crcs.keys() - old.keys())]
    linked = tuple(f"{name}/" for name in fork.links)
    gone = [name for name in sorted(old.keys() - fork.crcs.keys()) if not f"{name}/".startswith(linked)]
    native = [name for name in gone if name.endswith(".so")]
    changes += [FileChange(name=name, deleted=True) for name in gone if name not in native]
    changes += [FileChange(name=name, left_out="it is a link, which a wheel cannot hold") for name in fork.links]
    changes += [
        FileChange(name=name, left_out="it is outside sglang/, the one package of the wheel")
        for name in sorted(fork.besides - _besides(base))
    ]
    if fork.entry_points not in (None, _entry_points(base)):
        changes.append(FileChange(name="entry_points.txt", left_out="commands and other entry points stay upstream's"))
    if fork.metadata is not None:  # a checkout has no such files
        changes += [
            FileChange(name=name, left_out="it is native: its name is another for each Python") for name in native
        ]
    return [
        ForeignPatch(
            title=change.name,
            path=fork.path,
            name=slug(change.name.removeprefix("sglang/").removesuffix(".py")),
            header={
                "Subject": f"{'Delete' if change.deleted else 'Change'} {change.name} as {fork.path.name} does,"
                f" from {version} on"
            },
            files=[change],
        )
        for change in changes
    ]


def _root_of(source: Path) -> Path | None:
    """Return the folder that has the sglang/ of a checkout or of an unpacked wheel, None if there is none."""
    roots = (source / "python", source, *([source.parent] if source.name == "sglang" else []))
    return next((root for root in roots if (root / "sglang" / "__init__.py").is_file()), None)


def _metadata_of(root: Path) -> bytes | None:
    """Return METADATA of the wheel that was unpacked or installed into a folder, None if none was."""
    for record in sorted(root.glob("*.dist-info/RECORD")):
        if "\nsglang/__init__.py," in "\n" + read_text(record):
            return (record.parent / "METADATA").read_bytes()
    return None


def _files_of(source: Path, root: Path, exclude: Sequence[str]) -> list[str]:
    """Return the files of a checkout, those that git tracks, or of an installation, by their paths in a wheel."""
    names = _tracked_files(source, root, exclude)
    if "sglang/__init__.py" not in names:  # an installation may lie in a repository too, which ignores it
        names = [path.relative_to(root).as_posix() for path in (root / "sglang").rglob("*")]
    found = {name for name in names if (root / name).is_file() or (root / name).is_symlink()}
    return sorted(name for name in found if "__pycache__" not in name.split("/") and name != _VERSION_FILE)


def _tracked_files(source: Path, root: Path, exclude: Sequence[str]) -> list[str]:
    """Return what the repository around a folder tracks under its sglang/, as paths in a wheel.

    Raises WorktreeError if git has left out files of it, or converted line ends: that would pass for the fork's doing.
    """
    top = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), None)
    if top is None:
        return []
    tags = _list_files(top, root, "-t", " ")
    skipped = [name for name, tag in tags.items() if tag == "S" and not (root / name).exists()]
    # git would fetch a file that it has skipped, to look at its line ends.
    ends = {} if skipped else _list_files(top, root, "--eol", "\t")
    crlf = [name for name, said in ends.items() if said.split()[:2] == ["i/lf", "w/crlf"] and "eol=crlf" not in said]
    if lacking := [name for name in skipped if not _excluded(name, exclude)]:
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise WorktreeError(
            f"{source} is a sparse checkout: it lacks {lacking[0]}{more}.",
            hint=f"`git -C {top} sparse-checkout disable` brings them back; --exclude leaves files alone.",
        )
    if converted := [name for name in crlf if not _excluded(name, exclude)]:
        raise WorktreeError(
            f"{source}: {converted[0]} ends its lines with CRLF, where git keeps LF: core.autocrlf was on.",
            hint=f"Commit your work, and import a clone: `git clone -c core.autocrlf=false {top} FOLDER`.",
        )
    return list(tags)


def _list_files(top: Path, root: Path, option: str, separator: str) -> dict[str, str]:
    """Return what git says of the files that a repository tracks under a sglang/, by their paths in a wheel.

    Parameters: `option`, which tells git to say it; `separator`, what then stands before a path.
    """
    package = (root / "sglang").relative_to(top).as_posix()
    done = git_bytes(["--literal-pathspecs", "ls-files", option, "-z", "--", package], cwd=top)
    if done.returncode != 0:
        raise OverlayError(f"{top}: git cannot list its files: {done.stderr.decode(errors='replace').strip()}")
    entries = (entry.partition(separator) for entry in done.stdout.decode("utf-8", "surrogateescape").split("\0"))
    return {f"sglang{path.removeprefix(package)}": said for said, _, path in entries if path}


def _excluded(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) or name.startswith(f"{pattern.rstrip('/')}/") for pattern in patterns)
