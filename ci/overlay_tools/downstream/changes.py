"""What is otherwise in one release than in another, as far as the hooks and the overlay go: nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from overlay_tools import console
from overlay_tools.api_check.architectures import NewArchitecture, find_new_architectures
from overlay_tools.api_check.base_mentions import BaseMention, find_base_mentions
from overlay_tools.api_check.contract import Finding, FoundReferences, find_references, judge
from overlay_tools.api_check.name_changes import NameChange, find_name_changes
from overlay_tools.api_check.overlay_code import read_overlay
from overlay_tools.api_check.references import overlay_references
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.downstream.follow import STAYS, Follower, HunkReport, LockedReleases
from overlay_tools.downstream.not_due import NotDue
from overlay_tools.downstream.overlay_plan import left_behind
from overlay_tools.downstream.port_state import PortState
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.downstream.staging import staged_project
from overlay_tools.errors import PatchError
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.lint import load_checked_series
from overlay_tools.patches.model import Hook
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import Lock, Release, load_lock
from overlay_tools.upstream.source_tree import SourceTree, open_source_tree
from overlay_tools.user_files import read_text

_PINS = ("requires_python", "torch", "transformers", "kernel")


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What is otherwise in the release `new` than in `old`.

    `pins`: what it pins of others, each with both versions; `hunks`: what becomes of each hunk; `without`: hooks that
    did not find their place, so that all else was looked at without them; `findings`: what of the contract does not
    hold; `left`: files of overlay/ that `new` does not take; `mentions`: new places that name a base; `names`: what the
    overlay uses and that has changed; `architectures`: the new ones.
    """

    old: str
    new: str
    pins: Sequence[tuple[str, str, str]]
    hunks: Sequence[HunkReport]
    without: Sequence[str]
    findings: Sequence[Finding]
    left: Sequence[str]
    mentions: Sequence[BaseMention]
    names: Sequence[NameChange]
    architectures: Sequence[NewArchitecture]

    @property
    def open(self) -> int:
        """Return how many things are for a person to settle before the overlay fits the new release."""
        return len(self.without) + len(self.findings) + sum(not mention.classified for mention in self.mentions)


def compare_releases(project: Project, cache: Path, old: Release, new: Release) -> Changes:
    """Compare two releases, locked or not.

    Raises FetchError or WheelError if one cannot be had; PatchError or ContractError if patches/ or ci/contract.toml
    has faults to begin with.
    """
    lock = load_lock(project.lock)
    hooks = load_checked_series(project.patches, list(lock))
    with ExitStack() as stack:
        with console.step(f"Open sglang {old.version} and {new.version}"):
            before, after = (stack.enter_context(open_source_tree(release, cache)) for release in (old, new))
        with console.step("Follow the hooks"):
            follower = _follow(project, lock, hooks, old, after, cache, stack)
        without = [*(relocated.patch.hook for relocated in follower.open), *follower.waiting]
        staged = stack.enter_context(_with_hooks(project, lock, new, follower.queue, without))
        with console.step("Check the contract and base mentions"):
            found = find_references(staged, after)
            judged = judge(staged, new.version, found.references)
            findings = [item for item in judged if item.problem and not item.waived]
            mentions = _new_mentions(find_base_mentions(project, before), find_base_mentions(staged, after))
        with console.step("Compare what the overlay uses"):
            names = find_name_changes(_references_of(project, before), found)
            architectures = find_new_architectures(before, found.resolver)
    return Changes(
        old=old.version,
        new=new.version,
        pins=[
            (name.replace("_", "-"), was, now)
            for name in _PINS
            if (was := str(getattr(old, name))) != (now := str(getattr(new, name)))
        ],
        hunks=[report for report in follower.reports if report.outcome != STAYS],
        without=[] if new.version in lock else without,
        findings=findings,
        left=left_behind(project, old.version, new.version),
        mentions=mentions,
        names=names,
        architectures=architectures,
    )


def _follow(
    project: Project, lock: Lock, hooks: Sequence[Hook], old: Release, after: SourceTree, cache: Path, stack: ExitStack
) -> Follower:
    """Follow the hooks from one release into another one, from the locked ones if the first is not locked."""
    version = after.version
    known = {old.version: old} if old.version in lock else {v: r for v, r in lock.items() if v != version}
    locked = LockedReleases(known, cache, stack)
    queue = PatchQueue(hooks, sorted({*lock, version}, key=Version))
    state = PortState(release=old)
    follower = Follower(HookedTree(after), locked, queue, None, state, project.patches)
    nothing_asked = NotDue((), [hook.name for hook in hooks], None)
    for number, hook in enumerate(hooks):
        if not any(hook.variant(other) for other in known):
            if hook.variant(version):
                follower.reports.append(HunkReport(hook.name, "", "due", f"from sglang {version} on"))
        elif hook.due.contains(version, prereleases=True):
            follower.follow(hook, hooks[:number])
        else:
            follower.consider(hook, hooks[:number], nothing_asked)
    return follower


@contextmanager
def _with_hooks(
    project: Project, lock: Lock, new: Release, queue: PatchQueue, without: Sequence[str]
) -> Iterator[Project]:
    """Give the checkout as it is if a release is locked, or else one whose hooks are those that were followed."""
    if new.version in lock:
        yield project
        return
    for name in without:
        queue.drop(name, new.version)
    files = queue.files(read_text(project.patches / "series"))
    with staged_project(project, files, queue.versions) as staged:
        yield staged.project


def _references_of(project: Project, sources: SourceTree) -> FoundReferences:
    """Return what is used of a release: by the overlay alone, where the hooks are not made for the release."""
    try:
        return find_references(project, sources)
    except PatchError:
        resolver = NameResolver(sources, read_overlay(project, sources.version))
        found = list(overlay_references(resolver, resolver.overlay.files))
        return FoundReferences(references=found, resolver=resolver)


def _new_mentions(before: Sequence[BaseMention], after: Sequence[BaseMention]) -> list[BaseMention]:
    """Return the mentions of a base that a release has, and another one has not at the same place."""
    known = Counter((mention.file, mention.scope, mention.what) for mention in before)
    found = []
    for mention in after:
        key = mention.file, mention.scope, mention.what
        known[key] -= 1
        if known[key] < 0 or not mention.classified:
            found.append(mention)
    return found
