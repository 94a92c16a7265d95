"""`nox -s watch` over a miniature project in git, with stages of a few lines that pytest really runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from overlay_tools import cli
from overlay_tools.commands import watch as command
from overlay_tools.errors import FetchError, LockError, OverlayError, ToolError, YankedError
from overlay_tools.patches.lint import lint
from overlay_tools.patches.series import load_series
from overlay_tools.proving import runner, stages
from overlay_tools.proving.results import Result
from overlay_tools.proving.watch import Seen
from overlay_tools.report.watch import describe_seen
from overlay_tools.settings import Project
from overlay_tools.upstream import asked
from overlay_tools.upstream.lockfile import Release, load_lock

from unit.conftest import LOADER, PATCH, REPOSITORY, TAG, Miniature, upstream_files
from unit.proving.test_runner import GREEN, make_environment
from unit.upstream.conftest import Index, index, make_wheel, plain_installers

__all__ = ["index", "plain_installers"]
FILE = "sglang/loader.py"
CHANGED = LOADER.replace("name = config.name", "name = config.title")  # in the context of the hook
STATIC = """\
import re
from pathlib import Path
import pytest

@pytest.mark.parametrize("version", re.findall(r'release."(.*)"', Path("upstream.lock").read_text()))
def test_release(version: str) -> None:
    assert version != "9.9"
"""
LIMITED = """\
[tool.sglang-overlay]
default = "1.0"
revision = 3
replaces = []
plugin = []

[tool.sglang-overlay.files]
"sglang/models/theirs.py" = ">=1.0"
"""
KILLED = """\
import os, sys
from overlay_tools import cli
from overlay_tools.proving import watch
watch.run_stage = lambda *given: os.kill(os.getpid(), 9)
sys.exit(cli.main(["watch", "--stages", "static"]))
"""


def git(mini: Miniature, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=mini.root, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def project(mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    mini_here.write("tests/static/test_s.py", STATIC)
    mini_here.write("tests/engine/test_e.py", GREEN)
    mini_here.write("ci/results.json", "[]\n")
    mini_here.write(".gitignore", ".nox\n__pycache__\ndist\n.pytest_cache\n")
    git(mini_here, "init", "--quiet", "--initial-branch=main")
    git(mini_here, "config", "user.name", "Ümit")
    git(mini_here, "config", "user.email", "umit@example.org")
    git(mini_here, "add", "--all")
    git(mini_here, "commit", "--quiet", "--message=first")
    table = {"static": ("tests/static",), "engine": ("tests/engine",)}
    for module in (stages, command):
        monkeypatch.setattr(module, "STAGES", table)
    monkeypatch.setattr(runner, "NEEDED", 1.0)
    monkeypatch.setattr(runner, "engine_environment", make_environment)
    monkeypatch.setenv("UV_CACHE_DIR", "elsewhere")
    return mini_here


def publish(mini: Miniature, monkeypatch: pytest.MonkeyPatch, releases: Mapping[str, str | Exception]) -> None:
    """Let an index have releases with this loader, or answer with an error."""
    found: dict[str, Release | Exception] = {
        version: mini.publish(version, upstream_files(version) | {FILE: of.encode()}) if isinstance(of, str) else of
        for version, of in releases.items()
    }

    def query(version: str, index: str) -> Release:
        if isinstance(answer := found[version], Exception):
            raise answer
        return answer

    monkeypatch.setattr(asked, "query_release", query)
    monkeypatch.setattr(command, "newer_versions", lambda *_, **__: list(releases))


def files_of(mini: Miniature) -> dict[str, bytes]:
    return {name: data for name, data in mini.content().items() if not name.startswith(".git/")}


def watch(mini: Miniature, *words: str) -> dict[str, dict[str, Any]]:
    """Watch, see that nothing of the checkout changes, and return what was seen."""
    before = files_of(mini), git(mini, "status", "--porcelain"), git(mini, "symbolic-ref", "HEAD")
    assert cli.main(["watch", "--json", ".nox/seen.json", *words]) == 0
    assert (files_of(mini), git(mini, "status", "--porcelain"), git(mini, "symbolic-ref", "HEAD")) == before
    assert git(mini, "worktree", "list").count("\n") == 1
    assert not (mini.root / ".nox/watching").exists()
    return {row["release"]: row for row in json.loads((mini.root / ".nox/seen.json").read_text())}


def branches(mini: Miniature) -> dict[str, str]:
    words = git(mini, "for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads").split()
    return dict(zip(words[::2], words[1::2], strict=True))


def described(mini: Miniature, version: str) -> str:
    return (mini.root / f".nox/watched/{version}.md").read_text(encoding="utf-8")


def test_a_release_that_fits_becomes_a_branch(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(project, monkeypatch, {"1.2": "# new\n" + LOADER})
    project.write("overlay/sglang/models/ours.py", "OURS = 2\n")  # not committed
    (seen,) = watch(project).values()
    assert (seen["outcome"], seen["branch"]) == ("branch", "watch/1.2")
    said = capsys.readouterr().out
    assert "carried and proven in the branch watch/1.2" in said
    assert "is locked" not in said  # in this checkout it is not
    assert os.environ["UV_CACHE_DIR"] == "elsewhere"
    git(project, "checkout", "--quiet", "-f", "watch/1.2")
    assert list(project.lock) == ["1.0", "1.1", "1.2"]
    assert lint(load_series(project.root / "patches"), list(project.lock)) == []
    project.build("1.2")
    assert (project.root / "overlay/sglang/models/ours.py").read_text() == "OURS = 1\n"
    log = git(project, "log", "--format=%an <%ae>: %s", "main..watch/1.2").splitlines()
    who = "Ümit <umit@example.org>"
    assert log == [f"{who}: Record what the tests said of sglang 1.2", f"{who}: Take sglang 1.2"]
    results = json.loads((project.root / "ci/results.json").read_text())
    assert [(row["release"], row["stage"], row["passed"]) for row in results] == [
        ("1.2", "engine", 1), ("1.2", "static", 1)
    ]  # fmt: skip
    assert results[0]["commit"] == git(project, "rev-parse", "watch/1.2~").strip()[:12]
    assert "| static | 1 passed in" in described(project, "1.2")
    assert "choose: sglang/loader.py:4 offset 1" in described(project, "1.2")


def test_a_second_run_adds_nothing(project: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(project, monkeypatch, {"1.2": LOADER, "1.3": CHANGED})
    first = watch(project, "--stages", "static")
    assert [row["outcome"] for row in first.values()] == ["branch", "report"]
    made, files = branches(project), sorted((project.root / ".nox/watched").iterdir())
    text = described(project, "1.3")
    again = watch(project, "--stages", "static")
    assert [row["outcome"] for row in again.values()] == ["there", "there"]
    assert (branches(project), sorted((project.root / ".nox/watched").iterdir())) == (made, files)
    assert described(project, "1.3") == text
    git(project, "commit", "--quiet", "--allow-empty", "--message=second")
    later = watch(project, "--stages", "static")  # what a person has committed may have settled it
    assert [row["outcome"] for row in later.values()] == ["there", "report"]


def test_a_branch_of_a_remote_counts(project: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(project, monkeypatch, {"1.2": LOADER, "1.3": "# new\n" + LOADER})
    git(project, "update-ref", "refs/remotes/origin/watch/1.2", "HEAD")
    assert watch(project, "--stages", "static")["1.2"]["outcome"] == "there"
    assert branches(project).keys() == {"main", "watch/1.3"}
    assert "goes on from `origin/watch/1.2`" in described(project, "1.3")


def test_a_branch_of_another_name_does_not_count(project: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(project, monkeypatch, {"1.2": LOADER})
    git(project, "branch", "team/watch/1.2")
    git(project, "update-ref", "refs/remotes/origin/team/watch/1.2", "HEAD")
    assert watch(project, "--stages", "static")["1.2"]["outcome"] == "branch"


def test_a_report_says_what_it_goes_on_from_and_its_commands_name_the_index(
    project: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlay_tools.report.changes._MOST", 0)
    publish(project, monkeypatch, {"1.2": LOADER, "1.3": CHANGED})
    url = "https://wheels.example/simple"
    watch(project, "--stages", "static", "--index", url)
    page = described(project, "1.3")
    assert f"`nox -s port -- 1.3 --index {url}` carries the overlay to this release on a desk." in page
    assert "goes on from `watch/1.2`: check that out first." in page
    assert f"1 more: `nox -s changes -- 1.2 1.3 --index {url}`" in page


def test_releases_go_on_from_one_another(project: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(project, monkeypatch, {"1.2": LOADER, "1.3": "# new\n" + LOADER})
    watch(project, "--stages", "static")
    assert git(project, "rev-parse", "watch/1.3~2") == git(project, "rev-parse", "watch/1.2")
    assert "goes on from `watch/1.2`" in described(project, "1.3")
    git(project, "branch", "--quiet", "-D", "watch/1.3")
    git(project, "commit", "--quiet", "--allow-empty", "--message=second")
    watch(project, "--stages", "static")
    assert git(project, "rev-parse", "watch/1.3~2") == git(project, "rev-parse", "main")  # 1.2's is of an older commit


def test_a_hook_in_conflict_becomes_a_report(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(project, monkeypatch, {"1.2": CHANGED})
    seen = watch(project)["1.2"]
    assert (seen["outcome"], seen["branch"], seen["results"]) == ("report", "", [])
    assert branches(project).keys() == {"main"}
    page = described(project, "1.2")
    assert page.startswith("A person is needed:\n\n- patches/choose/1.0.patch:10: conflict: lines around it changed")
    assert "`nox -s port -- 1.2`" in page
    assert "1 thing is for a person to settle before the overlay fits sglang 1.2, choose left aside." in page
    assert str(project.root) not in page
    assert "sglang 1.2: a person is needed" in capsys.readouterr().out


@pytest.mark.parametrize(("stage", "runs"), [("static", ["static"]), ("engine", ["static", "engine"])])
def test_a_stage_that_fails_becomes_a_report(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, stage: str, runs: list[str]
) -> None:
    version = "9.9" if stage == "static" else "1.2"
    project.write("tests/engine/test_e.py", "def test_a() -> None:\n    assert 1 == 2\n")
    git(project, "commit", "--quiet", "--all", "--message=second")
    publish(project, monkeypatch, {version: LOADER})
    seen = watch(project)[version]
    assert seen["outcome"] == "report"
    assert [result["stage"] for result in seen["results"]] == runs
    assert branches(project).keys() == {"main"}
    page = described(project, version)
    assert f"- {stage}: 0 passed, 1 failed in" in page
    assert f"What failed:\n\n- FAILED tests/{stage}/test_" in page


def test_what_a_test_has_written_is_not_taken_for_one_that_failed(
    project: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import logging\n\ndef test_a() -> None:\n    print('FAILED to connect')\n    logging.error('out of memory')\n"
    )
    project.write("tests/engine/test_e.py", f"{code}    assert False\n")
    git(project, "commit", "--quiet", "--all", "--message=second")
    publish(project, monkeypatch, {"1.2": LOADER})
    (failed,) = watch(project)["1.2"]["failed"]
    assert failed.startswith("FAILED tests/engine/test_e.py::test_a")


def test_what_was_yanked_is_skipped_and_what_cannot_be_locked_told(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {"1.2": YankedError("sglang 1.2 was yanked: broken."), "1.3": LockError("It has no wheel.")}
    publish(project, monkeypatch, errors)
    seen = watch(project)
    assert [row["outcome"] for row in seen.values()] == ["skipped", "report"]
    assert "sglang 1.2: skipped.\n  sglang 1.2 was yanked: broken." in capsys.readouterr().out
    assert not (project.root / ".nox/watched/1.2.md").exists()
    assert "- It has no wheel." in described(project, "1.3")


def test_a_run_that_is_killed_leaves_nothing_and_the_next_one_does_it(project: Miniature, index: Index) -> None:
    index.withdrawn = {"2.1"}
    for version in ("2.0.post1", "2.1", "2.2rc1"):
        index.publish(version)
    before, ours = files_of(project), branches(project)
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "ci")}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=project.root, env=env, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (files_of(project), branches(project)) == (before, ours)
    assert git(project, "status", "--porcelain") == ""
    seen = watch(project, "--post", "--candidates", "--stages", "static")
    assert {version: row["outcome"] for version, row in seen.items()} == {
        "2.0": "branch", "2.0.post1": "branch", "2.1": "skipped", "2.2rc1": "branch"
    }  # fmt: skip
    git(project, "checkout", "--quiet", "watch/2.2rc1")
    assert list(load_lock(project.root / "upstream.lock")) == ["1.0", "1.1", "2.0", "2.0.post1", "2.2rc1"]


def test_another_worktree_of_the_repository_is_left_alone(project: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(project, monkeypatch, {"1.2": LOADER})
    away = project.root.parent / "on a disk that is away"
    git(project, "worktree", "add", "--quiet", "--detach", str(away))
    away.rename(away.with_name("unmounted"))
    git(project, "worktree", "add", "--quiet", "--detach", "--lock", ".nox/watching")  # of a run that was killed
    assert cli.main(["watch", "--stages", "static"]) == 0
    listed = git(project, "worktree", "list", "--porcelain")
    assert str(away) in listed
    assert "watching" not in listed
    assert "watch/1.2" in branches(project)


def test_where_nothing_is_newer_it_says_so(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(project, monkeypatch, {})
    assert watch(project) == {}
    assert "No release is newer than sglang 1.1." in capsys.readouterr().out


def test_what_is_newer_goes_by_what_is_committed(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(project, monkeypatch, {})
    project.lock_release("1.2")
    watch(project)
    assert "No release is newer than sglang 1.1." in capsys.readouterr().out


def test_a_wheel_that_is_locked_but_not_committed_is_named(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_wheel(project.root / "wheels", "1.2", TAG)
    assert cli.main(["lock", f"wheels/{made.name}"]) == 0
    project.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    git(project, "commit", "--quiet", "--all", "--message=second")
    publish(project, monkeypatch, {"1.3": LOADER})
    assert cli.main(["watch", "--stages", "static"]) == 1
    said = f"error: upstream.lock: wheels/{made.name} of sglang 1.2 is in the checkout, but not committed.\n  Commit it"
    assert said in capsys.readouterr().err
    git(project, "add", "wheels")
    git(project, "commit", "--quiet", "--message=third")
    assert watch(project, "--stages", "static")["1.3"]["outcome"] == "branch"


def test_an_environment_that_cannot_be_made_is_no_report(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(project, monkeypatch, {"1.2": LOADER})
    monkeypatch.setattr(runner, "NEEDED", 1e30)
    assert cli.main(["watch"]) == 1
    assert "has room for" in capsys.readouterr().err
    assert branches(project).keys() == {"main"}
    assert not (project.root / ".nox/watched").exists()
    assert not (project.root / ".nox/watching").exists()


@pytest.mark.parametrize("stage", ["static", "engine"])
def test_a_stage_without_a_result_is_a_report(project: Miniature, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """A result that is there of an earlier time proves nothing."""
    publish(project, monkeypatch, {"1.2": LOADER, "1.3": "# new\n" + LOADER})
    watch(project)
    git(project, "checkout", "--quiet", "watch/1.2", "--", "ci/results.json")
    git(project, "commit", "--quiet", "--message=results of 1.2")
    git(project, "branch", "--quiet", "-D", "watch/1.2", "watch/1.3")
    if stage == "static":
        monkeypatch.setattr("overlay_tools.proving.watch.run_stage", ends_without_a_report)
    else:
        monkeypatch.setattr(runner, "run_stage", ends_without_a_report)
    seen = watch(project)
    assert [row["outcome"] for row in seen.values()] == ["report", "report"]  # the second is looked at too
    assert branches(project).keys() == {"main"}
    assert f"- {stage}: it has no result.\n" in described(project, "1.2")
    assert "- pytest ended without a report." in described(project, "1.2")
    assert [row["stage"] for row in seen["1.2"]["results"]] == (["static"] if stage == "engine" else [])


def ends_without_a_report(*_: object) -> NoReturn:
    raise OverlayError("pytest ended without a report.")


def test_a_release_that_cannot_be_compared_is_a_report(project: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(project, monkeypatch, {"1.2": "def broken(:\n", "1.3": LOADER})
    seen = watch(project, "--stages", "static")
    assert [row["outcome"] for row in seen.values()] == ["report", "branch"]
    assert "loader.py" in described(project, "1.2")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("patches/choose/1.0.patch", "not a patch\n", "patches/choose/1.0.patch"),
        ("patches/choose/1.0.patch", PATCH.replace("<=1.1", "<=1.0"), "Hook choose has no variant for sglang 1.1."),
        ("ci/contract.toml", "waivers = 3\n", "error: ci/contract.toml:1: waivers must be a list of tables."),
        ("pyproject.toml", LIMITED, "error: pyproject.toml:8: overlay/ has no file sglang/models/theirs.py."),
        ("overlay/sglang/models/ours.py", "def (\n", "error: overlay/sglang/models/ours.py"),
    ],
)
def test_what_is_wrong_with_our_own_files_is_no_report(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, text: str, said: str,
) -> None:  # fmt: skip
    project.write(name, text)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=second")
    publish(project, monkeypatch, {"1.2": LOADER})
    assert cli.main(["watch", "--stages", "static"]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "watching" not in error  # the worktree is gone
    assert not (project.root / ".nox/watched").exists()
    assert not (project.root / ".nox/watching").exists()


@pytest.mark.parametrize("kind", [FetchError, ToolError])
def test_a_release_that_cannot_be_had_or_installed_is_no_report_and_keeps_no_other_from_being_looked_at(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[OverlayError]
) -> None:
    no_answer = kind("the index does not answer", hint="Check the network.")
    publish(project, monkeypatch, {"1.2": LOADER, "1.3": LOADER, "1.4": no_answer, "1.5": "# new\n" + LOADER})

    @contextmanager
    def installs_others(
        project: Project, version: str, python: str | None, folder: Path, *, gpu: bool, plugin: bool
    ) -> Iterator[Path]:
        if version == "1.3":
            raise kind("uv pip install failed", "because of a pin", hint="Check the network.")
        with make_environment(project, version, python, folder, gpu=gpu, plugin=plugin) as made:
            yield made

    monkeypatch.setattr(runner, "engine_environment", installs_others)
    assert cli.main(["watch", "--json", ".nox/seen.json"]) == 1
    said = [
        "sglang 1.3: uv pip install failed",
        "sglang 1.3: because of a pin",
        "sglang 1.4: the index does not answer",
    ]
    assert capsys.readouterr().err.endswith("".join(f"error: {line}\n" for line in said) + "  Check the network.\n")
    assert branches(project).keys() == {"main", "watch/1.2", "watch/1.5"}
    assert git(project, "rev-parse", "watch/1.5~2") == git(project, "rev-parse", "watch/1.2")
    seen = json.loads((project.root / ".nox/seen.json").read_text())
    assert [(row["release"], row["outcome"]) for row in seen] == [("1.2", "branch"), ("1.5", "branch")]
    assert not list((project.root / ".nox/watched").glob("1.[34].*"))


def test_what_is_checked_out_meanwhile_plays_no_part(project: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(project, monkeypatch, {"1.2": CHANGED, "1.3": LOADER})
    git(project, "checkout", "--quiet", "-b", "half-finished")
    git(project, "commit", "--quiet", "--allow-empty", "--message=half-finished")
    git(project, "checkout", "--quiet", "main")

    def describe(seen: Seen) -> str:
        git(project, "checkout", "--quiet", "half-finished")
        return describe_seen(seen)

    monkeypatch.setattr(command, "describe_seen", describe)
    assert cli.main(["watch", "--stages", "static"]) == 0
    assert git(project, "rev-parse", "watch/1.3~2") == git(project, "rev-parse", "main")


def test_nothing_goes_on_from_a_release_that_was_yanked_since(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(project, monkeypatch, {"1.2": LOADER})
    watch(project, "--stages", "static")
    publish(project, monkeypatch, {"1.2": YankedError("sglang 1.2 was yanked: broken."), "1.3": LOADER})
    seen = watch(project, "--stages", "static")
    assert seen["1.2"]["why"] == ["There is a branch already.", "sglang 1.2 was yanked: broken."]
    assert "sglang 1.2 was yanked: broken." in capsys.readouterr().out
    assert git(project, "rev-parse", "watch/1.3~2") == git(project, "rev-parse", "main")
    assert "goes on from" not in described(project, "1.3")


def test_a_page_says_with_which_python_each_stage_ran() -> None:
    static = Result(
        release="1.2", stage="static", passed=1, failed=0, skipped=[], seconds=1.0, python="3.11.7", machine="x86_64",
        date="2026-11-23T18:44Z", commit="895de74d1234", inputs={},
    )  # fmt: skip
    engine = replace(static, stage="engine", python="3.12.1")
    page = describe_seen(Seen(release="1.2", outcome="branch", results=[static, engine]))
    assert "| static | 1 passed in 1 s | 3.11.7 |\n| engine | 1 passed in 1 s | 3.12.1 |" in page


def test_no_branch_is_without_its_description(project: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(project, monkeypatch, {"1.2": LOADER})
    with monkeypatch.context() as patched:
        patched.setattr(command, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli.main(["watch", "--stages", "static"]) > 128
    assert branches(project).keys() == {"main"}
    assert watch(project, "--stages", "static")["1.2"]["outcome"] == "branch"
    assert described(project, "1.2")


@pytest.mark.parametrize(
    ("spoil", "said", "hint"),
    [
        ("rm -rf .git", "is not a git repository with a commit", "clone"),
        ("git config --unset user.email", "git does not know in whose name to commit", "user.email"),
        ("git branch watch", "There is a branch `watch`", "git branch -m watch NAME"),
    ],
)
def test_where_no_branch_can_be_made_nothing_begins(
    project: Miniature, spoil: str, said: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["bash", "-c", spoil], cwd=project.root, check=True)
    assert cli.main(["watch"]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert hint in error


def test_two_runs_do_not_meet(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(project, monkeypatch, {"1.2": LOADER})

    def meanwhile(*_: object, **__: object) -> None:
        assert cli.main(["watch"]) == 1
        assert "Another run looks at this checkout." in capsys.readouterr().err
        raise KeyboardInterrupt

    monkeypatch.setattr("overlay_tools.proving.watch.compare_releases", meanwhile)
    assert cli.main(["watch"]) > 128
    assert branches(project).keys() == {"main"}
    assert not (project.root / ".nox/watching").exists()
