"""Releases that upstream has published and that are not locked yet: each carried, proven and made a branch of, or told.

All of it happens in a git worktree of its own. Of the checkout, nothing changes but that it has one more branch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from overlay_tools import console
from overlay_tools.api_check.contract_file import contract_path, load_contract
from overlay_tools.downstream.changes import Changes, compare_releases
from overlay_tools.downstream.follow import nearest_of
from overlay_tools.downstream.port import Port
from overlay_tools.errors import (
    ContractError,
    FetchError,
    LockError,
    MatrixError,
    OverlayError,
    ToolError,
    WatchError,
    YankedError,
)
from overlay_tools.git_settings import users_environment
from overlay_tools.patches.lint import load_checked_series
from overlay_tools.patches.series import load_series
from overlay_tools.proving.inputs import Inputs
from overlay_tools.proving.results import Result, commit_of, load_results, save_results
from overlay_tools.proving.runner import ReleasePlan, describe, run_matrix
from overlay_tools.proving.stages import run_stage
from overlay_tools.settings import Project, load_project
from overlay_tools.subprocesses import git, run
from overlay_tools.upstream.asked import AskedRelease
from overlay_tools.upstream.lockfile import Release, load_lock
from overlay_tools.wheels.overlay_files import check_ranges

# What a branch changes; .ci/propose pushes none that changes more.
_OURS = ("patches", "upstream.lock", "ci/results.json")
_IDENTITY = re.compile(r"(.*) <(.*)> \d+ [+-]\d+")
_FAILED = re.compile(r"^(?:FAILED|ERROR) .*", re.MULTILINE)
_SHOWN = 20  # tests that failed


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What became of a release that is not locked.

    `outcome`: a `branch` was made of it, or a `report`, for a person has to settle something; one of them was `there`
    before; or it was `skipped`. `branch`, its name, or empty; `why`, in words; `changes`, where it was compared;
    `results`, of the stages that ran; `failed`, the tests that did not pass; `commit`, the branch's; `base`, another
    branch that it goes on from, or empty; `index`, the URL of the package index that was named, or empty.
    """

    release: str
    outcome: Literal["branch", "report", "there", "skipped"]
    branch: str = ""
    why: Sequence[str] = ()
    changes: Changes | None = None
    results: Sequence[Result] = ()
    failed: Sequence[str] = ()
    commit: str = ""
    base: str = ""
    index: str = ""

    @property
    def described(self) -> bool:
        """Tell whether there is more to read of it: what it holds, or what a person has to settle."""
        return self.outcome in ("branch", "report")


class Watcher:
    """Looks after a checkout.

    Parameters: `stages`, those to prove a release with; `python`, as "3.12", the one to prove them with.
    Raises WatchError if it is no git repository with a commit, or git does not know whose commits to make.
    """

    def __init__(self, project: Project, cache: Path, stages: Sequence[str], python: str | None = None) -> None:
        self.project, self.cache, self.stages, self.python = project, cache, stages, python
        self.tree = project.root / ".nox" / "watching"
        self.reports = project.root / ".nox" / "watched"  # .nox/watch is the session's environment
        self.head = self._git("rev-parse", "--verify", "HEAD^{commit}").strip()
        if not self.head:
            raise WatchError(f"{project.root} is not a git repository with a commit.", hint="Watch a clone of it.")
        self.author = _identity(project.root)
        if self._git("for-each-ref", "refs/heads/watch") and not self._git("for-each-ref", "refs/heads/watch/*"):
            raise WatchError(
                "There is a branch `watch`, so that git can make none of the name watch/VERSION.",
                hint="Give it another name: `git branch -m watch NAME`.",
            )

    def newest(self) -> str:
        """Return the newest release that is locked where this goes on from.

        Raises OverlayError if the project's own files have faults, WatchError if another run is in progress or a file
        that the release is locked from is not committed.
        """
        with _only_run(self.tree), console.step("Check what is committed"), self._checked_out(self.head) as project:
            newest = [*load_lock(project.lock).values()][-1]
            lacking = [
                f"upstream.lock: {wheel.path} of sglang {newest.version} is in the checkout, but not committed."
                for wheel in newest.wheels
                if not wheel.file.exists() and (self.project.root / wheel.path).exists()
            ]
            if lacking:
                hint = "Commit it, or move it out of the checkout and lock it there: `nox -s lock -- PATH`."
                raise WatchError(*lacking, hint=hint)
            return newest.version

    def look(self, versions: Sequence[str], index: str, write: Callable[[Seen], None]) -> Iterator[Seen]:
        """Look at releases, oldest first, and yield what became of each.

        Parameters: `write`, which keeps the description of a branch or a report; a branch is made once it has one.
        Raises WatchError if another run is in progress and, once all were looked at, if one cannot be had or installed.
        """
        base, failed = "", dict[str, OverlayError]()
        with _only_run(self.tree), self._cleared():
            for version in versions:
                console.line(f"sglang {version}", style="bold")
                try:
                    seen, base = self._look(version, index, base, write)
                except (FetchError, ToolError) as error:  # it keeps no other from being looked at
                    failed[version] = error
                else:
                    yield seen
        if failed:
            problems = [f"sglang {version}: {line}" for version, error in failed.items() for line in error.problems]
            hints = dict.fromkeys(error.hint for error in failed.values() if error.hint)
            raise WatchError(*problems, hint=" ".join(hints))

    def _look(self, version: str, index: str, base: str, write: Callable[[Seen], None]) -> tuple[Seen, str]:
        """Return what became of one release, and the branch that the next one goes on from."""
        if ref := self._branch_of(version):
            why = ["There is a branch already."]
            if self._goes_on_from_head(ref):
                try:
                    AskedRelease(version=version, index=index).look_up(self.project.root)
                    base = ref
                except LockError as error:  # it was yanked since
                    why += error.problems
            return Seen(release=version, outcome="there", branch=ref, why=why), base
        if self._reported(version):
            where = self.reports / f"{version}.md"
            return Seen(release=version, outcome="there", why=[f"There is a report of this commit: {where}"]), base
        seen = replace(self._carry(version, index, base), base=base, index=index)
        if seen.described:
            write(seen)
        if seen.outcome == "branch":
            # The old value says that there must be none: whoever has made one in the meantime keeps it.
            self._git("update-ref", f"refs/heads/{seen.branch}", seen.commit, "")
        return seen, seen.branch or base

    def _carry(self, version: str, index: str, base: str) -> Seen:
        """Carry one release and prove it, on top of a branch or, if that is empty, of what was checked out."""
        try:
            release = AskedRelease(version=version, index=index).look_up(self.project.root)
        except YankedError as error:
            return Seen(release=version, outcome="skipped", why=error.problems)
        except LockError as error:
            return Seen(release=version, outcome="report", why=error.problems)
        with self._checked_out(base or self.head) as project:
            lock = load_lock(project.lock)
            changes = None
            try:
                changes = compare_releases(project, self.cache, lock[nearest_of([*lock], version)], release)
                Port(project, self.cache, announce=False).start(version, lambda _: release)
            except (ContractError, FetchError, ToolError):  # the fault is not the release's
                raise
            except OverlayError as error:
                return Seen(release=version, outcome="report", why=self._named(error.problems), changes=changes)
            self._commit(project, f"Take sglang {version}", _message(changes))
            results, failed, why = self._prove(project, release)
            if why:
                return Seen(release=version, outcome="report", why=why, changes=changes, results=results, failed=failed)
            if results:
                said = "\n".join(f"{result.stage}: {describe(result)}" for result in results)
                self._commit(project, f"Record what the tests said of sglang {version}", said)
            commit, branch = self._git("rev-parse", "HEAD", cwd=self.tree).strip(), f"watch/{version}"
        return Seen(release=version, outcome="branch", branch=branch, changes=changes, results=results, commit=commit)

    def _prove(self, project: Project, release: Release) -> tuple[list[Result], list[str], list[str]]:
        """Run the stages; return their results, the tests that failed, and why it is not proven, nothing if it is.

        Raises OverlayError if it is not the release that is at fault.
        """
        version, logs = release.version, project.root / ".nox" / "releases" / "logs"
        logs.mkdir(parents=True)
        # Of a time when it was locked before there may be results.
        save_results(project.results, [row for row in load_results(project.results).values() if row.release != version])
        stopped: Sequence[str] = ()
        try:
            if self._prove_static(project, release, logs):
                self._prove_others(project, version)
        except (FetchError, ToolError):
            raise
        except MatrixError as error:
            cause = error.__cause__
            if isinstance(cause, FetchError | ToolError):
                raise cause from None
            ran = {stage for found, stage in load_results(project.results) if found == version} - {"static"}
            if not (cause or ran):
                raise
            stopped = cause.problems if isinstance(cause, OverlayError) else ()
        except OverlayError as error:
            stopped = error.problems
        found = load_results(project.results)
        results = [found[version, stage] for stage in self.stages if (version, stage) in found]
        failed = [line for stage in self.stages for line in _failures(logs / f"{version}-{stage}.log")]
        why = [f"{result.stage}: {describe(result)}." for result in results if not result.green]
        why += [f"{stage}: it has no result." for stage in self.stages if (version, stage) not in found]
        return results, failed, [*why, *self._named(stopped)]

    def _prove_static(self, project: Project, release: Release, logs: Path) -> bool:
        """Run the static stage if it is asked for, which needs no environment; tell whether to go on."""
        if "static" not in self.stages:
            return True
        inputs = Inputs(project, load_series(project.patches)).parts(release, "static")
        log, commit = logs / f"{release.version}-static.log", commit_of(project.root)
        with console.step("  static"):
            result = run_stage(project.root, release.version, "static", Path(sys.executable), log, commit, inputs)
        results = {**load_results(project.results), (release.version, "static"): result}
        save_results(project.results, results.values())
        console.line(f"    {describe(result)}", style="green" if result.green else "red")
        return result.green

    def _prove_others(self, project: Project, version: str) -> None:
        """Run the other stages that are asked for, in an environment."""
        left = [stage for stage in self.stages if stage != "static"]
        cache = os.environ.get("UV_CACHE_DIR")
        try:
            if left:
                run_matrix(project, [ReleasePlan(version=version, stages=left)], self.python)
        finally:  # a run has a cache of its own, which goes with the worktree
            os.environ.pop("UV_CACHE_DIR", None)
            os.environ.update({"UV_CACHE_DIR": cache} if cache else {})

    def _branch_of(self, version: str) -> str:
        """Return the branch of a release, here or on a remote, or an empty text."""
        names = (f"refs/heads/watch/{version}", f"refs/remotes/*/watch/{version}")  # git lists the first one first
        return self._git("for-each-ref", "--count=1", "--format=%(refname:short)", *names).strip()

    def _reported(self, version: str) -> bool:
        """Tell whether a release was told of at the commit that is checked out, by the same stages."""
        path = self.reports / f"{version}.json"
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            return bool(said == self.note(said["outcome"]) and said["outcome"] == "report")
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def note(self, outcome: str) -> dict[str, object]:
        """Return what is to be kept of a release, so that the next run looks at it no more."""
        return {"outcome": outcome, "commit": self.head, "stages": list(self.stages)}

    def _goes_on_from_head(self, ref: str) -> bool:
        return git(["merge-base", "--is-ancestor", self.head, ref], cwd=self.project.root).returncode == 0

    @contextmanager
    def _checked_out(self, commit: str) -> Iterator[Project]:
        """Check a commit out beside the checkout until the block ends.

        Raises OverlayError if the project's own files have faults: they would be taken for those of each release.
        """
        with self._cleared():
            self._git("worktree", "add", "--quiet", "--detach", str(self.tree), commit)
            try:
                project = load_project(self.tree)
                lock = load_lock(project.lock)
                load_checked_series(project.patches, list(lock))
                check_ranges(project, lock)
                load_contract(contract_path(project))
                yield project
            except OverlayError as error:
                error.problems = tuple(self._named(error.problems))
                raise

    def _named(self, problems: Sequence[str]) -> list[str]:
        """Name files as they are in any checkout: the worktree goes."""
        return [problem.replace(f"{self.tree}/", "") for problem in problems]

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        """Remove the worktree, also that of a run that was killed, and then once more."""
        try:
            self._clear()
            yield
        finally:
            self._clear()

    def _clear(self) -> None:
        # One that a killed run has begun is locked. `git worktree prune` would forget those on a disk that is away too.
        git(["worktree", "remove", "--force", "--force", str(self.tree)], cwd=self.project.root)
        shutil.rmtree(self.tree, ignore_errors=True)

    def _commit(self, project: Project, subject: str, body: str) -> None:
        name, email = self.author
        present = [path for path in _OURS if (project.root / path).exists()]
        self._git("add", "--all", "--", *present, cwd=self.tree)
        words = ["-c", f"user.name={name}", "-c", f"user.email={email}", "commit", "--quiet", "--file=-"]
        done = git(words, cwd=self.tree, stdin=f"{subject}\n\n{body}\n")
        if done.returncode:
            raise WatchError(
                f"{subject}: git cannot commit it: {done.stderr.strip()}", hint="Mend that, and run again."
            )

    def _git(self, *words: str, cwd: Path | None = None) -> str:
        done = git(words, cwd=cwd or self.project.root)
        if done.returncode and words[0] != "rev-parse":
            raise WatchError(f"git {words[0]} failed: {done.stderr.strip()}", hint="Mend that, and run this again.")
        return done.stdout


def _identity(root: Path) -> tuple[str, str]:
    """Return the name and the address that git gives commits in a checkout.

    Raises WatchError if it would have to guess.
    """
    words = ["git", "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT"]
    env = {name: None for name in users_environment() if not name.startswith("GIT_COMMITTER_")}
    done = run(words, cwd=root, env=env, check=False)
    found = _IDENTITY.fullmatch(done.stdout.strip())
    if done.returncode or found is None:
        raise WatchError(
            "git does not know in whose name to commit.",
            hint="`git config user.name NAME` and `git config user.email ADDRESS` say it.",
        )
    return found[1], found[2]


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(exist_ok=True)
    try:
        held = FileLock(folder.with_suffix(".lock")).acquire(blocking=False)
    except Timeout:
        raise WatchError("Another run looks at this checkout.", hint="Wait for it, or end it.") from None
    with held:
        yield


def _message(changes: Changes) -> str:
    return "\n".join(f"{h.hook}: {h.outcome}{f': {h.note}' if h.note else ''}" for h in changes.hunks)


def _failures(log: Path) -> list[str]:
    """Return the lines of pytest's summary in a log that name what failed: a test may write such lines too."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    _, found, summary = text.rpartition("short test summary info")
    return _FAILED.findall(summary)[:_SHOWN] if found else []
