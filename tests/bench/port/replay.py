"""The series ported as it was written: from the oldest release alone to each later one in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from overlay_tools.downstream.port import Port
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.downstream.selection import Wanted
from overlay_tools.downstream.transaction import write_patches
from overlay_tools.errors import PortError
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.model import Hook
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project, load_project
from overlay_tools.upstream.lockfile import Lock, Release, dump_lock
from overlay_tools.upstream.source_tree import open_source_tree


def replay(project: Project, lock: Lock, cache: Path) -> Counter[str]:
    """Port the oldest release's hooks to each later one, and compare what comes out with what patches/ makes.

    Returns how many hunks came out how.
    Raises PortError at the first release that needs a person.
    """
    oldest, *later = lock
    hooks = [hook for hook in load_series(project.patches) if hook.variant(oldest)]  # the others came later
    counts = Counter[str]()
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        _copy_oldest(project, copy, hooks, lock)
        for version in later:
            counts.update(_port(copy, cache, hooks, version, lock.__getitem__))
        replayed = load_series(copy / "patches")
    for version in lock:  # the effect, not the report
        with open_source_tree(lock[version], cache) as sources:
            made = HookedTree.apply(sources, replayed).touched
            assert made == HookedTree.apply(sources, hooks).touched, f"{version}: not what patches/ makes of it"
    return counts


def _copy_oldest(project: Project, copy: Path, hooks: Sequence[Hook], lock: Lock) -> None:
    """Make a checkout that has locked the oldest release alone, with the hooks that are due there."""
    oldest, *later = lock
    for name in ("overlay", "ci", "NOTICE", "LICENSE", "pyproject.toml"):
        (copy / name).symlink_to(project.root / name)
    (copy / "upstream.lock").write_text(dump_lock({oldest: lock[oldest]}), encoding="utf-8")
    queue = PatchQueue(hooks, list(lock))
    for hook in hooks:
        for version in later:
            queue.drop(hook.name, version)
    names = "".join(f"{hook.name}\n" for hook in hooks)  # due in every release, as when they were written
    write_patches(copy / "patches", queue.files("") | {"series": names})


def _port(copy: Path, cache: Path, hooks: Sequence[Hook], version: str, query: Callable[[str], Release]) -> list[str]:
    """Port to one release; return the outcome of each hunk."""
    port = Port(load_project(copy), cache)
    try:
        reports = port.start(version, query)
    except PortError:
        # What a person does where a hook ends, since upstream has its lines there.
        due = {hook.name for hook in load_series(copy / "patches") if hook.due.contains(version, prereleases=True)}
        ended = sorted(due - {hook.name for hook in hooks if hook.variant(version)})
        if not ended:
            raise
        reports = port.resume(Wanted(drop=ended))
    return [report.outcome.split()[0] for report in reports if report.outcome != "not due"]
