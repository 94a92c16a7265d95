"""A series of 70 hooks, as a team would come with: brought in, changed, built, and carried over six releases."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from overlay_tools import console
from overlay_tools.patches.series import load_series
from overlay_tools.settings import cache_dir
from overlay_tools.subprocesses import run
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.upstream.source_tree import open_source_tree

from bench.port.made_up_series import MadeUpSeries, make_up
from bench.port.release_repository import ReleaseRepository
from bench.port.scratch_checkout import ROOT, Ended, ScratchCheckout

RELEASES = ("0.5.16", "0.5.17", "0.5.18", "0.5.19", "0.5.20", "0.5.21", "0.5.22")
CHAINED = 10
CHANGED = 5  # hooks, in the worktree
EXPORT = 20  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """What it took to carry the series to a release: how often a person settled something, and what `port` found."""

    rounds: int
    outcomes: Counter[str]
    commands: Sequence[Ended]

    @property
    def promised(self) -> int:
        """Return how many rounds are promised: one, and another where hooks wait for the lines of others."""
        return 2 if self.outcomes["waits"] else 1

    @property
    def summary(self) -> str:
        """Return it in words."""
        found = ", ".join(f"{n} {outcome}" for outcome, n in self.outcomes.most_common())
        seconds, cpu = (sum(times) for times in zip(*((each.seconds, each.cpu) for each in self.commands), strict=True))
        took = f"{seconds:6.1f} s, of the processor {cpu:5.1f} s"
        return f"{took}, rounds: {self.rounds}   (promised: at most {self.promised}): {found}"


@pytest.fixture
def checkout(tmp_path: Path) -> ScratchCheckout:
    return ScratchCheckout(tmp_path / "checkout")


@pytest.fixture
def series(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[MadeUpSeries]:
    """Make up the series, at places that no hook of ours changes."""
    lock = load_lock(ROOT / "upstream.lock")
    own = {file.path for hook in load_series(ROOT / "patches") for patch in hook.variants for file in patch.files}
    count, seed = pytestconfig.getoption("--hooks"), pytestconfig.getoption("--seed")
    with ExitStack() as stack, console.step(f"Make up {count} hooks"):
        sources = [stack.enter_context(open_source_tree(lock[version], cache_dir())) for version in RELEASES]
        repository = ReleaseRepository(tmp_path / "git", sources)
        yield make_up(repository, own, count, CHAINED, seed)


def test_a_series_is_brought_in_and_carried_on(
    pytestconfig: pytest.Config, tmp_path: Path, checkout: ScratchCheckout, series: MadeUpSeries
) -> None:
    base, *later = RELEASES
    imported = import_(checkout, series, tmp_path / "patches")
    with console.step(f"Edit {CHANGED} of them"):
        edited = succeed(checkout.run("edit", base))
        change(checkout.folder / ".nox" / "worktrees" / base, series, pytestconfig.getoption("--seed"))
    with console.step("Export them"):
        exported = succeed(checkout.run("export", base, "--yes"))
    with console.step(f"Build sglang {base}"):
        built = succeed(checkout.run("build", base))
    wrong = [f"{base}: {name}" for name in differences(checkout, series, 0)]
    rows = []
    for release, version in enumerate(later, 1):
        with console.step(f"Carry them to sglang {version}"):
            carried = carry(checkout, series, release)
        succeed(checkout.run("build", version))
        wrong += [f"{version}: {name}" for name in differences(checkout, series, release)]
        rows.append((version, carried))
    promised = f"   (promised: below {EXPORT} s)"
    steps = [("import", imported, ""), ("edit", edited, ""), ("export", exported, promised), ("build", built, "")]
    console.table(
        f"{len(series.hooks)} hooks, {CHAINED} of them chained on others, seed {pytestconfig.getoption('--seed')}",
        [
            *((name, f"{ended.took}{promised}") for name, ended, promised in steps),
            *((f"port to {version}", carried.summary) for version, carried in rows),
            ("files that are not as they must be", f"{len(wrong):4}   (promised: none)"),
        ],
    )
    assert wrong == []
    assert exported.seconds < EXPORT
    assert [version for version, carried in rows if carried.rounds > carried.promised] == []


def import_(checkout: ScratchCheckout, series: MadeUpSeries, folder: Path) -> Ended:
    """Bring in the series as a folder of patches."""
    folder.mkdir()
    for number, hook in enumerate(series.hooks):
        (folder / f"{hook.name}.patch").write_text(series.mail(number), encoding="utf-8")
    (folder / "series").write_text("".join(f"{hook.name}.patch\n" for hook in series.hooks), encoding="utf-8")
    with console.step("Import them"):
        return succeed(checkout.run("import", folder, "--base", RELEASES[0], "--yes"))


def change(worktree: Path, series: MadeUpSeries, seed: int) -> None:
    """Change the commits of some hooks, as a person would with `git rebase -i`."""
    git: list[str | Path] = ["git", "-C", worktree, "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for hook in series.change(CHANGED, seed):
        (worktree / hook.file).write_bytes(series.content(hook.file, 0))
        run([*git, "commit", "--quiet", "--all", "--message", f"fixup! {hook.name}"])
    run([*git, "rebase", "--quiet", "-i", "--autosquash", "overlay"], env={"GIT_SEQUENCE_EDITOR": "true"})


def carry(checkout: ScratchCheckout, series: MadeUpSeries, release: int) -> Carried:
    """Port to a release; where hooks are open, put into the worktree what the files must be, and go on."""
    commands = [checkout.run("port", RELEASES[release], "--take", "made-up-*")]
    outcomes = Counter(outcome for hook, outcome in commands[0].outcomes if hook.startswith("made-up-"))
    while commands[-1].error and checkout.is_porting and len(commands) <= len(series.hooks):
        waiting = {hook for hook, outcome in commands[-1].outcomes if outcome == "waits"}
        for file in series.files:
            (checkout.worktree / file).write_bytes(series.content(file, release, without=waiting))
        commands.append(checkout.run("port", "--continue"))
    succeed(commands[-1])
    return Carried(rounds=len(commands) - 1, outcomes=outcomes, commands=commands)


def differences(checkout: ScratchCheckout, series: MadeUpSeries, release: int) -> list[str]:
    """Return the files of a release's built wheel that are not what they must be."""
    (wheel,) = (checkout.folder / "dist").glob(f"sglang-{RELEASES[release]}+*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return [file for file in series.files if archive.read(file) != series.content(file, release)]


def succeed(ended: Ended) -> Ended:
    """Return a command that has ended as it should."""
    assert not ended.error, ended.output + ended.error
    return ended
