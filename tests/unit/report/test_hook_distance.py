"""How far hooks are from upstream, measured and shown."""

from __future__ import annotations

import re
import subprocess
from datetime import date
from io import StringIO

import pytest
from overlay_tools.patches.series import load_series
from overlay_tools.report.collect import collect_status
from overlay_tools.report.hook_distance import HookDistance, measure_hooks
from overlay_tools.report.html import render_page
from overlay_tools.report.terminal import print_status
from rich.console import Console

from unit.conftest import HEADER, LOADER, PATCH, Miniature
from unit.proving.test_results import committed


def measure(mini: Miniature, today: date | None = None) -> dict[str, HookDistance]:
    hooks = load_series(mini.root / "patches")
    return {hook.name: hook for hook in measure_hooks(mini.root, hooks, list(mini.lock), today or date.today())}


def test_a_hook_is_as_many_releases_behind_as_its_variant_has_survived(mini: Miniature) -> None:
    mini.lock_release("1.2", None)
    mini.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    hook = measure(mini)["choose"]
    assert (hook.first, hook.last, hook.made_on, hook.behind, hook.variants) == ("1.0", "1.2", "1.0", 2, 1)
    assert hook.cells[1:4] == ("1.0 to 1.2", "1.0, 2 releases behind 1.2", "1")
    mini.patch.write_text(PATCH.replace(">=1.0,<=1.1", "<1.1"))
    mini.write("patches/choose/1.1.patch", PATCH.replace(">=1.0,<=1.1", ">=1.1"))
    hook = measure(mini)["choose"]
    assert (hook.made_on, hook.behind, hook.variants) == ("1.1", 1, 2)
    assert hook.cells[2] == "1.1, 1 release behind 1.2"
    mini.write("patches/choose/1.1.patch", PATCH.replace(">=1.0,<=1.1", "==1.1"))
    hook = measure(mini)["choose"]
    assert hook.cells[1:3] == ("1.0 to 1.1", "1.1")


def test_its_age_is_that_of_its_first_commit(mini: Miniature) -> None:
    assert measure(mini)["choose"].cells[4] == "not known"
    git = committed(mini)
    mini.patch.rename(mini.patch.with_name("1.1.patch"))
    git("add", "--all")
    git("commit", "--quiet", "--message=second", "--date=2099-01-01T00:00:00")
    days = date.fromisoformat(subprocess.run(
        ["git", "log", "--format=%as", "--reverse"], cwd=mini.root, capture_output=True, text=True, check=True
    ).stdout.split()[0])  # fmt: skip
    assert measure(mini, days)["choose"].cells[4] == "0 days"
    assert measure(mini, date.fromordinal(days.toordinal() + 1))["choose"].cells[4] == "1 day"
    clone = mini.root.parent / "shallow"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{mini.root}", clone], check=True)
    (hook,) = measure_hooks(clone, load_series(mini.root / "patches"), ["1.0"], date.today())
    assert hook.since is None  # the oldest commit there is not the first one


def test_its_age_is_known_whatever_else_was_committed_beside_it(mini: Miniature) -> None:
    notes = mini.write("patches/my notes", "")
    committed(mini)
    notes.unlink()  # they stay in the history
    assert measure(mini)["choose"].since is not None


@pytest.mark.parametrize(
    ("remove_when", "goes"),
    [
        ("upstream has it", "upstream has it"),
        ("1.0 is no longer locked", "1.0 is no longer locked"),
        ("0.9 is no longer locked", "now: 0.9 is no longer locked"),
    ],
)
def test_what_would_end_it_is_shown_and_whether_it_has_come(mini: Miniature, remove_when: str, goes: str) -> None:
    mini.patch.write_text(PATCH.replace("Remove-When: never", f"Remove-When: {remove_when}"))
    assert measure(mini)["choose"].cells[6] == goes


def test_a_hook_that_no_locked_release_takes_can_go(mini: Miniature) -> None:
    mini.write("patches/series", "choose <1.0\n")
    mini.patch.write_text(PATCH.replace(">=1.0,<=1.1", "<1.0"))
    assert measure(mini)["choose"].cells == (
        "choose", "none", "", "1", "not known", "no: ours alone", "now: no locked release takes it"
    )  # fmt: skip


def test_it_is_shown_on_the_terminal_and_on_the_page(mini: Miniature) -> None:
    mini.add_hook("other", {"sglang/loader.py": LOADER}, {"sglang/loader.py": LOADER.replace("return 3", "return 4")})
    text = HEADER.replace("Remove-When: never", "Remove-When: <b>0.1 is no longer locked</b>")
    mini.patch.write_text(mini.patch.read_text().replace(HEADER, text))
    status = collect_status(mini.project, mini.lock, load_series(mini.root / "patches"), mini.cache)
    output = StringIO()
    print_status(status, Console(file=output, width=200, highlight=False))
    assert re.search("How far hooks are from upstream *\nhook", output.getvalue())
    assert "1.0 to 1.1  1.0, 1 release behind 1.1" in output.getvalue()
    page = render_page(status)
    assert '<h2 id="How%20far%20hooks%20are%20from%20upstream">' in page
    assert '<td class="open">now: 0.1 is no longer locked</td>' in page
    assert "<td>never</td>" in page
