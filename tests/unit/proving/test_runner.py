"""`nox -s matrix` over a miniature project, with stages of a few lines that pytest really runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from overlay_tools import cli, periodic
from overlay_tools.errors import MatrixError, OverlayError, ToolError
from overlay_tools.proving import inputs, runner, stages
from overlay_tools.proving.results import Result, load_results
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import THIS_PYTHON

from unit.conftest import Miniature

GREEN = "def test_a() -> None:\n    pass\n"


@contextmanager
def make_environment(
    project: Project, version: str, python: str | None, folder: Path, *, gpu: bool, plugin: bool
) -> Iterator[Path]:
    """Stand for the installation of a release, which takes minutes and gigabytes."""
    assert not gpu
    folder.mkdir()
    (folder / "release").write_text(version)
    (folder / "has").write_text("plugin" if plugin else "drop-in wheel")
    yield Path(sys.executable)


@pytest.fixture
def project(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    mini.write("tests/static/test_s.py", "import pytest\n\n@pytest.mark.parametrize('v', ['1.0', '1.1'])\n"
               "def test_s(v: str) -> None:\n    pass\n")  # fmt: skip
    mini.write("tests/engine/test_e.py", GREEN)
    mini.write("ci/.keep", "")
    mini.write(".gitignore", ".nox\n__pycache__\ndist\n.pytest_cache\n")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=mini.root, check=True)
    table = {"static": ("tests/static",), "engine": ("tests/engine",)}
    monkeypatch.setattr(stages, "STAGES", table)
    monkeypatch.setattr(runner, "NEEDED", 1.0)
    monkeypatch.setattr(runner, "engine_environment", make_environment)
    monkeypatch.setenv("UV_CACHE_DIR", "elsewhere")
    monkeypatch.chdir(mini.root)
    return mini


def run(mini: Miniature) -> int:
    return cli.main(["matrix"])


def results(mini: Miniature) -> dict[tuple[str, str], Result]:
    return dict(load_results(mini.project.results))


def test_every_stage_of_every_release_is_run_and_recorded(
    project: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(project) == 0
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=project.root, capture_output=True, text=True)
    assert {key: (r.passed, r.failed, r.commit) for key, r in results(project).items()} == {
        (version, stage): (1, 0, head.stdout.strip()) for version in ("1.0", "1.1") for stage in ("static", "engine")
    }
    said = capsys.readouterr().out
    assert "[2/2] sglang 1.1" in said
    assert "0 h 00 min left" in said
    assert "GB of disk" in said
    assert not (project.root / ".nox/releases/environment").exists()
    assert "1 passed" in (project.root / ".nox/releases/logs/1.1-engine.log").read_text()


def test_the_plugin_is_proven_on_the_releases_that_the_settings_name(
    project: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is so in an environment of its own, in which no other stage runs."""
    for module in (stages, inputs):
        monkeypatch.setattr(module, "PLUGIN_STAGE", {"plugin": ("tests/plugin",)})
    settings = project.root / "pyproject.toml"
    settings.write_text(settings.read_text().replace("plugin = []", 'plugin = ["1.1"]'))
    has = "import pathlib\n\ndef test_a() -> None:\n    [has] = pathlib.Path('.nox').rglob('has')\n"
    project.write("tests/plugin/test_p.py", f"{has}    assert has.read_text() == 'plugin'\n")
    project.write("tests/engine/test_e.py", f"{has}    assert has.read_text() == 'drop-in wheel'\n")
    assert run(project) == 0
    assert [key for key in results(project) if key[1] == "plugin"] == [("1.1", "plugin")]
    assert {(result.passed, result.failed) for result in results(project).values()} == {(1, 0)}


def test_the_most_that_it_took_is_shown(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = iter([10e9, 4e9])  # before a stage and during it, and from then on
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=next(free, 9e9)))
    monkeypatch.setattr(periodic, "_INTERVAL", 0.01)
    assert cli.main(["matrix", "1.0"]) == 0
    assert "0.0 GB of disk and 6.0 GB of memory were in use." in " ".join(capsys.readouterr().out.split())


def test_what_is_proven_is_not_run_again_until_what_is_built_changes(
    project: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(project) == 0
    before = project.project.results.read_bytes()
    capsys.readouterr()
    assert run(project) == 0
    assert "Every stage is green" in capsys.readouterr().out
    assert project.project.results.read_bytes() == before
    project.write("overlay/sglang/models/ours.py", "OURS = 2\n")
    assert [item.stages for item in runner.plan_matrix(project.project, ["1.0"], again=False)] == [["static", "engine"]]
    assert run(project) == 0
    assert {result.commit[-1] for result in results(project).values()} == {"+"}  # the change is not committed


def test_what_is_proven_is_run_again_for_another_python_and_for_changed_tests(project: Miniature) -> None:
    assert run(project) == 0

    def due(python: str | None = None) -> list[str]:
        plan = runner.plan_matrix(project.project, ["1.0"], python, again=False)
        return [stage for item in plan for stage in item.stages]

    other = "3.10" if THIS_PYTHON != "3.10" else "3.11"
    assert (due(), due(THIS_PYTHON), due(other)) == ([], [], ["engine"])
    project.write("tests/unit/test_u.py", GREEN)
    assert due() == []
    project.write("tests/engine/test_e.py", GREEN * 2)
    assert due() == ["engine"]


def test_what_changes_while_a_stage_runs_is_not_recorded(
    project: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("tests/engine/test_e.py", "import pathlib\n\ndef test_a() -> None:\n"
                  "    pathlib.Path('overlay/sgl_kernel/__init__.py').write_text('KERNEL = 2\\n')\n")  # fmt: skip
    assert cli.main(["matrix", "1.0"]) == 1
    assert results(project).keys() == {("1.0", "static")}
    assert "While engine of 1.0 ran, overlay/sgl_kernel/__init__.py changed" in capsys.readouterr().err


def test_one_red_release_keeps_no_other_from_being_run(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def fail_at_first(
        owner: Project, version: str, python: str | None, folder: Path, *, gpu: bool, plugin: bool
    ) -> Iterator[Path]:
        if version == "1.0":
            folder.mkdir()
            raise ToolError("uv pip install failed with status 2:\nno torch")
        with make_environment(owner, version, python, folder, gpu=gpu, plugin=plugin) as interpreter:
            yield interpreter

    monkeypatch.setattr(runner, "engine_environment", fail_at_first)
    project.write(
        "tests/engine/test_e.py", "def test_a() -> None:\n    raise ValueError\n\n" + GREEN.replace("_a", "_b")
    )
    assert run(project) == 1
    found = results(project)
    assert found.keys() == {("1.1", "static"), ("1.1", "engine")}
    assert (found["1.1", "engine"].passed, found["1.1", "engine"].failed) == (1, 1)
    said = capsys.readouterr().err
    assert "1.0: uv pip install failed" in said
    assert "1.1 engine: 1 passed, 1 failed" in said
    project.write("tests/engine/test_e.py", GREEN)
    assert [
        (item.version, item.stages) for item in runner.plan_matrix(project.project, ["1.0", "1.1"], again=False)
    ] == [
        ("1.0", ["static", "engine"]),
        ("1.1", ["engine"]),
    ]


def test_a_skipped_test_is_not_green_and_its_reason_is_kept(project: Miniature) -> None:
    project.write("tests/engine/test_e.py", "import pytest\n\ndef test_a() -> None:\n    pytest.skip('no GPU')\n\n"
                  + GREEN.replace("_a", "_b"))  # fmt: skip
    assert run(project) == 1
    result = results(project)["1.0", "engine"]
    assert (result.passed, result.skipped, result.green) == (1, ["no GPU"], False)


def test_a_model_that_a_release_is_built_without_is_named_and_counts_as_nothing(
    project: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("tests/engine/test_e.py", "def test_a(record_property) -> None:\n"
                  "    record_property('left out', 'mine: it is for others')\n")  # fmt: skip
    assert run(project) == 0
    result = results(project)["1.0", "engine"]
    assert (result.passed, result.left_out, result.green) == (1, ["mine: it is for others"], True)
    assert "1 passed, left out: mine: it is for others" in capsys.readouterr().out


@pytest.mark.parametrize("code", ["import nothing_of_this_name\n", "", "def test_a(x: int) -> None:\n    pass\n"])
def test_what_pytest_cannot_run_is_never_green(project: Miniature, code: str) -> None:
    project.write("tests/engine/test_e.py", code)
    assert run(project) == 1
    assert not results(project)["1.0", "engine"].green


def test_a_run_that_is_cut_short_goes_on_where_it_was(project: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    real, ran = stages.run_stage, []

    def run_stage(root: Path, version: str, stage: str, *rest: object) -> Result:
        ran.append(f"{version} {stage}")
        if ran == ["1.0 static", "1.0 engine"]:
            raise KeyboardInterrupt
        return real(root, version, stage, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run_stage", run_stage)
    assert run(project) == 130
    assert results(project).keys() == {("1.0", "static")}
    assert not (project.root / ".nox/releases/environment").exists()
    ran.append("again")
    assert run(project) == 0
    assert ran[3:] == ["1.0 engine", "1.1 static", "1.1 engine"]


def test_what_a_killed_run_left_is_cleared(project: Miniature) -> None:
    (project.root / ".nox/releases/environment").mkdir(parents=True)
    assert run(project) == 0


def test_two_runs_at_once_are_refused(project: Miniature) -> None:
    folder = project.root / ".nox/releases"
    folder.mkdir(parents=True)
    with runner._only_run(folder), pytest.raises(MatrixError, match="Another run is in progress"):
        runner.run_matrix(project.project, [], None)


def test_a_file_with_several_links_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_bytes(bytes(40_000))
    alone = runner._size(tmp_path)
    assert 40_000 <= alone < 50_000
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment" / "file").hardlink_to(tmp_path / "cache" / "file")
    assert runner._size(tmp_path) == alone
    (tmp_path / "environment" / "other").write_bytes(bytes(40_000))
    assert runner._size(tmp_path) == 2 * alone


def test_a_disk_with_too_little_room_is_named_before_anything_is_done(
    project: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "NEEDED", 1e18)
    assert run(project) == 1
    assert "need 1000000000 GB" in capsys.readouterr().err
    assert results(project) == {}


def test_the_cache_is_emptied_where_it_has_outgrown_its_bound(
    project: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = project.root / ".nox/releases/cache"
    cache.mkdir(parents=True)
    (cache / "wheel").write_bytes(bytes(10_000))
    monkeypatch.setattr(runner, "CACHE", 100_000.0)
    assert run(project) == 0
    assert (cache / "wheel").exists()
    monkeypatch.setattr(runner, "CACHE", 5_000.0)
    assert cli.main(["matrix", "--again"]) == 0
    assert not cache.exists()


def test_results_name_a_commit(project: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(project.root / ".git")
    assert run(project) == 1
    assert "is not a git checkout" in capsys.readouterr().err


def test_a_release_that_is_not_locked_is_named(project: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["matrix", "9.9"]) == 1
    assert "holds no release '9.9'" in capsys.readouterr().err


def test_a_stage_that_was_ended_early_has_no_result(project: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    interrupt = "import os, signal, time\n\ndef test_a(): os.kill(os.getppid(), signal.SIGINT); time.sleep(1)\n"
    project.write("tests/engine/test_e.py", f"{interrupt}def test_b(): assert False\n")
    assert run(project) == 1
    assert "pytest ended with status 2 on engine of 1.0, though no test failed" in capsys.readouterr().err
    assert ("1.0", "engine") not in results(project)


def test_a_stage_without_a_report_is_an_error(project: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "run_logged", lambda *words, **options: 3)
    with pytest.raises(OverlayError, match="pytest ended without a report"):
        stages.run_stage(project.root, "1.0", "engine", Path(sys.executable), project.root / "log", "", {})
