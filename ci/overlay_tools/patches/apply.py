"""Exact application: a hunk fits where its lines stand, unchanged and once, or it does not apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from unidiff import PatchedFile

from overlay_tools.errors import PatchError
from overlay_tools.patches.model import Patch, locate, sides, target_of
from overlay_tools.subprocesses import git


def apply_series(patches: Sequence[Patch], read: Callable[[str], bytes | None], base: str) -> dict[str, bytes]:
    """Apply patches in order, all of them or none.

    Parameters: `read` gives the content of a file of the base, or None if it has no such file; `base` is what an error
    calls it.
    Returns the new content of every touched file.
    Raises PatchError if a patch does not apply exactly, or does not have the effect that it states.
    """
    touched: dict[str, bytes] = {}
    for patch in patches:
        with TemporaryDirectory() as folder:
            tree = Path(folder)
            before = {target_of(file): _before(patch, file, touched, read, base) for file in patch.files}
            for name, content in before.items():
                path = tree / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            done = git(["apply", "-p1", "--whitespace=nowarn", "-"], cwd=tree, stdin=patch.diff)
            if done.returncode != 0:
                raise _refused(patch, before, done.stderr, base)
            after = {name: (tree / name).read_bytes() for name in before}
        # git's exit status alone proves nothing: see `subprocesses.git`.
        for file in patch.files:
            _check_effect(patch, file, before[target_of(file)], after[target_of(file)])
        touched |= after
    return touched


def _before(
    patch: Patch, file: PatchedFile, touched: dict[str, bytes], read: Callable[[str], bytes | None], base: str
) -> bytes:
    name = target_of(file)
    content = touched[name] if name in touched else read(name)
    if content is None:
        raise PatchError(f"{patch.path}: {base} has no {name}.", hint="Upstream moved or removed it: move the hook.")
    for hunk in file:
        places = _find_in(content, sides(hunk)[0])
        if len(places) > 1:
            raise PatchError(
                f"{locate(patch, hunk)}: the hunk fits {name} of {base} at lines {', '.join(map(str, places))}.",
                hint="Give it more context, so that it fits once.",
            )
    return content


def _refused(patch: Patch, before: dict[str, bytes], stderr: str, base: str) -> PatchError:
    """Say of every hunk that stopped git why it did."""
    faults, upstream = [], []
    for file in patch.files:
        name = target_of(file)
        for hunk in file:
            old, new = sides(hunk)
            if _find_in(before[name], old):
                continue
            if _find_in(before[name], new):
                upstream.append(f"{locate(patch, hunk)}: {name} of {base} already holds what the hunk makes of it.")
            elif _find_in(before[name], old, loosely=True):
                faults.append(f"{locate(patch, hunk)}: the hunk fits {name} of {base} only if white space is ignored.")
            else:
                faults.append(f"{locate(patch, hunk)}: the lines that the hunk expects are not in {name} of {base}.")
    if upstream and not faults:
        return PatchError(*upstream, hint="It is upstream: end `Applies` before this release.")
    return PatchError(
        *(faults + upstream or [f"{patch.path} does not apply to {base}:\n{stderr.strip()}"]),
        hint="Hunks apply exactly or not at all: add a variant for this release.",
    )


def _check_effect(patch: Patch, file: PatchedFile, before: bytes, after: bytes) -> None:
    name = target_of(file)
    grown = after.count(b"\n") - before.count(b"\n")
    stands = all(_find_in(after, sides(hunk)[1]) for hunk in file)
    if before == after or grown != file.added - file.removed or not stands:
        raise PatchError(f"{patch.path}: git reports success, but {name} is not what the diff makes of it.")


def find_block(lines: Sequence[str], block: Sequence[str], *, loosely: bool = False) -> list[int]:
    """Return where a block of lines stands among others, each place by its first line, counted from 1."""
    wanted = list(block)
    if loosely:
        lines, wanted = (["".join(line.split()) for line in some] for some in (lines, wanted))
    size = len(wanted)
    starts = (n for n, line in enumerate(lines) if line == wanted[0])
    return [n + 1 for n in starts if list(lines[n : n + size]) == wanted]


def _find_in(content: bytes, block: Sequence[str], *, loosely: bool = False) -> list[int]:
    return find_block(content.decode("utf-8", "surrogateescape").split("\n"), block, loosely=loosely)
