"""The plan of an export: which releases take the hooks that a worktree adds or changes, and why others do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from overlay_tools.downstream.committed_hooks import ASKED, CommittedHook
from overlay_tools.downstream.diff import make_diff
from overlay_tools.downstream.hook_needs import HookNames, read_names
from overlay_tools.downstream.queue import PatchQueue
from overlay_tools.patches.apply import apply_if_fits, apply_series
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.model import Hook, Patch
from overlay_tools.patches.relocate import applies_unchanged
from overlay_tools.upstream.source_tree import SourceTree
from overlay_tools.user_files import read_text
from overlay_tools.wheels.overlay_files import compile_all


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Whether a release takes a hook as it is now, and why.

    `due_before`: whether it took any variant until now; `same`: whether nothing but the header changes.
    """

    hook: str
    release: str
    taken: bool
    why: str
    due_before: bool
    same: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What is to be exported.

    `hooks`: the series; `committed`: the hooks of the worktree, which is of the release `version`; `wanted`: the
    releases beside that one that are to take what is new or changed, None for those where it belongs; `patches`: the
    folder that the hooks are for.
    """

    hooks: Sequence[Hook]
    committed: Mapping[str, CommittedHook]
    version: str
    wanted: SpecifierSet | None
    patches: Path


@dataclass(frozen=True, slots=True)
class _Seen:
    """A hook that was decided on: what its lines say, and the releases that have it like that."""

    hook: str
    names: HookNames
    releases: Sequence[str]
    changed: bool


class ExportPlan:
    """The series as it is to be, made hook by hook.

    Parameters: `sources`, the locked releases, oldest first; `barred`, why a release is not to take a hook, by both.
    `queue` is the series, `decisions` what was decided, `releases` the files with all hooks applied.
    """

    def __init__(
        self, exported: Exported, sources: Mapping[str, SourceTree], barred: Mapping[tuple[str, str], str]
    ) -> None:
        self.exported, self.barred = exported, barred
        self.queue = PatchQueue(exported.hooks, list(sources))
        self.releases = {version: HookedTree(tree) for version, tree in sources.items()}
        self.decisions: list[Decision] = []
        self._seen: list[_Seen] = []
        series = {hook.name: hook for hook in exported.hooks}
        for name in {**series, **exported.committed}:  # a new hook goes to the end of the series
            taken = {v: series[name].variant(v) if name in series else None for v in self.releases}
            if name in exported.committed:
                taken |= self._renew(exported.committed[name], taken)
            for v, patch in taken.items():
                if patch is not None:
                    _apply(patch, self.releases[v])

    def files(self) -> dict[str, str]:
        """Return the content of patches/ by path."""
        return self.queue.files(read_text(self.exported.patches / "series"))

    @property
    def widened(self) -> list[str]:
        """Return the hooks that become due for releases where they were not."""
        return list(dict.fromkeys(each.hook for each in self.decisions if each.taken and not each.due_before))

    def taken_by(self, version: str) -> list[str]:
        """Return the hooks with new or changed lines that a release takes."""
        return [each.hook for each in self.decisions if each.taken and not each.same and each.release == version]

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the table of the decisions: hook, releases, and why they take it or do not."""
        grouped: dict[tuple[str, str], list[str]] = {}
        for each in self.decisions:
            grouped.setdefault((each.hook, each.why), []).append(each.release)
        return [(hook, name_ranges(found, list(self.releases)), why) for (hook, why), found in grouped.items()]

    def _renew(self, hook: CommittedHook, taken: Mapping[str, Patch | None]) -> dict[str, Patch]:
        """Decide which releases take a hook as it is now, and let them.

        Parameters: `taken`, the variant that each release has taken so far.
        Returns the new variant for each release that takes it; none, if the hook is as it was.
        """
        version, old = self.exported.version, taken[self.exported.version]
        same = old is not None and apply_if_fits(old, hook.before) == hook.after
        names = read_names(hook, old)
        if old is not None and same:
            self._seen.append(_Seen(hook.name, names, [v for v in taken if taken[v] is not None], changed=False))
            if all(old.header[name] == hook.header[name] for name in ("Subject", *ASKED)):
                return {}
        diff = old.diff if old is not None and same else make_diff(hook.before, hook.after, hook.renamed)
        self.queue.add_variant(hook.name, [version], hook.header, diff)
        new = self.queue.variant(hook.name, version, self.exported.patches)
        if same:  # what another variant serves stays with it, and the header goes to all that have the diff
            why = {v: "" for v in taken if taken[v] is old}
        else:
            why = {v: self._why_not(new, names, v, is_new=old is None) for v in taken if taken[v] is old}
        for v in taken:
            if v in why or taken[v] is not None:
                self._decide(hook.name, v, taken[v], why.get(v, "it is another variant"), same=same)
        fitting = [v for v in why if not why[v]]
        for v in fitting:
            self.queue.take(hook.name, v, like=version)
        if not same:
            self._seen.append(_Seen(hook.name, names, fitting, changed=True))
        return dict.fromkeys(fitting, new)

    def _why_not(self, new: Patch, names: HookNames, version: str, *, is_new: bool) -> str:
        """Say why a release does not take a new or changed hook, "" if it does."""
        made_on, wanted = self.exported.version, self.exported.wanted
        if version == made_on:
            return ""
        if wanted is not None and not wanted.contains(version, prereleases=True):
            return "outside --releases"
        if wanted is None and is_new and Version(version) < Version(made_on):
            return f"older than {made_on}, on which it was made"
        lacking = [each for each in self._seen if version not in each.releases]
        if needed := [each.hook for each in lacking if names.needs(each.names, changed=each.changed)]:
            return f"it may need {', '.join(needed)}, which is not there"
        if (new.hook, version) in self.barred:
            return self.barred[new.hook, version]
        fits = applies_unchanged(new, self.releases[made_on], self.releases[version])
        return "" if fits else "it does not fit"

    def _decide(self, hook: str, version: str, old: Patch | None, why_not: str, *, same: bool) -> None:
        if why_not:
            why = f"keeps {old.path.name}: {why_not}" if old else f"not due: {why_not}"
        else:
            why = "takes the new header" if same else "takes the change" if old else "becomes due"
        self.decisions.append(
            Decision(hook=hook, release=version, taken=not why_not, why=why, due_before=old is not None, same=same)
        )


def _apply(patch: Patch, release: HookedTree) -> None:
    touched = apply_series([patch], release.read, f"sglang {release.sources.version}")
    compile_all(touched)
    release.touched.update(touched)


def name_ranges(some: Iterable[str], versions: Sequence[str]) -> str:
    """Name releases, those that follow each other as a range."""
    runs: list[list[str]] = []
    for version in some:
        if runs and versions.index(runs[-1][-1]) + 1 == versions.index(version):
            runs[-1].append(version)
        else:
            runs.append([version])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
