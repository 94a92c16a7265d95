"""A whole fork, of hundreds of changed files: brought in, built as the fork has it, and carried to the next release."""

from __future__ import annotations

import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from overlay_tools import console
from overlay_tools.patches.hooked_tree import HookedTree
from overlay_tools.patches.series import load_series
from overlay_tools.settings import cache_dir
from overlay_tools.subprocesses import run
from overlay_tools.upstream.source_tree import open_source_tree
from overlay_tools.wheels.overlay_files import read_package

from bench.port.scratch_checkout import ROOT, ScratchCheckout

FORK = "sglang-kt==0.7.2"  # on the package index
BASE, NEXT = "0.5.9", "0.5.10.post1"
EXCLUDED = "sglang/multimodal_gen"
SECONDS = 180


def test_a_fork_is_brought_in_built_and_carried_on(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    wheel = pytestconfig.getoption("--fork") or download(tmp_path)
    checkout = ScratchCheckout(tmp_path / "checkout")
    ours = own_files(checkout)
    with console.step(f"Import {wheel.name}"):
        imported = checkout.run("import", wheel, "--exclude", EXCLUDED, "--yes")
    assert not imported.error, imported.output + imported.error
    with console.step(f"Build sglang {BASE}"):
        built = checkout.run("build", BASE)
    assert not built.error, built.error
    (made,) = (checkout.folder / "dist").glob(f"sglang-{BASE}*.whl")
    theirs, files = contents(wheel), contents(made)
    different = {name for name in {*theirs, *files} if theirs.get(name) != files.get(name)}
    own = [hook for hook in load_series(ROOT / "patches") if not hook.due.contains(NEXT, prereleases=True)]
    leave = [word for hook in own for word in ("--leave", hook.name)]
    others = [version for version in checkout.lock if version != BASE]
    with console.step(f"Build the other {len(others)} releases"):
        unbuilt = {version: error for version in others if (error := checkout.run("build", version).error)}
    with console.step(f"Port to {NEXT}"):
        ported = checkout.run("port", NEXT, "--take", "*", *leave)
    outcomes = Counter(outcome for _, outcome in ported.outcomes)
    console.table(
        f"{FORK}, but for {EXCLUDED}, on sglang {BASE}",
        [
            ("import", f"{imported.took}   (promised: below {SECONDS} s)"),
            ("what it says", next(line for line in imported.output.splitlines() if " brought in, " in line)),
            ("same as in the fork", f"{len(theirs) - len(different & theirs.keys()):6} files"),
            ("different by our own hooks and files", f"{len(different & ours):6} files"),
            ("different", f"{len(different - ours):6} files   (promised: none)"),
            ("other releases that are still built", f"{len(others) - len(unbuilt):6} of {len(others)}"),
            (f"port to {NEXT}", ported.took),
            *((f"  {outcome}", f"{n:6} hunks") for outcome, n in outcomes.most_common()),
        ],
    )
    assert imported.seconds < SECONDS
    assert different - ours == set()
    assert unbuilt == {}
    assert outcomes.total() > 0, ported.error


def download(folder: Path) -> Path:
    """Fetch the fork's wheel from the package index."""
    words: list[str | Path] = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, FORK]
    with console.step(f"Download {FORK}"):
        run([sys.executable, "-m", "pip", *words])
    (wheel,) = folder.glob("*.whl")
    return wheel


def own_files(checkout: ScratchCheckout) -> set[str]:
    """Return the files that differ from upstream's without a fork: by our own hooks, or because they are ours."""
    project = checkout.project
    with open_source_tree(checkout.lock[BASE], cache_dir()) as sources:
        hooked = HookedTree.apply(sources, load_series(project.patches)).touched
    return {*hooked, *read_package(project, "sglang", BASE), "sglang/_version.py"}


def contents(wheel: Path) -> Mapping[str, int]:
    """Return the checksum of each file of sglang's that a wheel has, but for those that are left alone."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            info.filename: info.CRC
            for info in archive.infolist()
            if info.filename.startswith("sglang/") and not info.is_dir() and not info.filename.startswith(EXCLUDED)
        }
