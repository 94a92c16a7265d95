from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.errors import OverlayError
from overlay_tools.settings import load_project

from unit.conftest import PATCH, Miniature

HERE = ("--python", "3.11", "--platform", "x86_64")


@pytest.fixture
def inside(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    monkeypatch.chdir(mini.root)
    return mini


def test_build_prints_one_summary_a_wheel(inside: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", *HERE]) == 0
    said = capsys.readouterr().out
    wheel = inside.releases["1.0"].wheels[0]
    assert f"base         {wheel.name}, sha256 {wheel.sha256}" in said
    assert "hook choose  1.0.patch: +1/-0 lines" in said
    assert "added        sglang/models/ours.py" in said
    assert "dist/sglang_kernel-0.4+cpu.3-py3-none-any.whl" in said
    assert "sglang-1.1" not in said


def test_build_takes_releases_or_all(inside: Miniature) -> None:
    dist = inside.root / "dist"
    assert cli.main(["build", "1.1", *HERE]) == 0
    assert [path.name[:10] for path in dist.glob("sglang-*")] == ["sglang-1.1"]
    assert cli.main(["build", "--all", *HERE]) == 0
    assert sorted(path.name[:10] for path in dist.glob("sglang-*")) == ["sglang-1.0", "sglang-1.1"]


def test_an_error_goes_to_standard_error_with_the_next_step(
    inside: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", "7.7", *HERE]) == 1
    said = capsys.readouterr()
    assert "error: " in said.err
    assert "holds no release '7.7'" in said.err
    assert "It holds 1.0, 1.1" in said.err
    assert not (inside.root / "dist").exists()


def test_a_platform_without_a_wheel_says_what_there_is(inside: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "1.0", "--python", "3.12", "--platform", "aarch64"]) == 1
    said = capsys.readouterr().err
    assert "no wheel for CPython 3.12 on aarch64" in said
    assert inside.releases["1.0"].wheels[0].name in said


@pytest.mark.parametrize(
    "words", [["build", "--python", "2.7"], ["build", "--platform", "vax"], ["nonsense"], [], ["build", "--colour"]]
)
def test_an_unknown_argument_is_refused(
    inside: Miniature, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: overlay-tools" in capsys.readouterr().err


def test_all_is_built_or_the_first_failure_ends_it(inside: Miniature) -> None:
    inside.patch.write_text(PATCH.replace("<=1.1", "<=1.0"))
    assert cli.main(["build", "--all", *HERE]) == 1


def test_verify_says_what_differs_and_fails(inside: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = inside.build().path
    assert cli.main(["verify", str(wheel)]) == 0
    assert "sglang 1.0+overlay.3: 14 files, no differences" in capsys.readouterr().out
    data = bytearray(wheel.read_bytes())
    at = data.index(b"OURS = 1")
    data[at : at + 8] = b"OURS = 2"
    wheel.write_bytes(data)
    assert cli.main(["verify", str(wheel)]) == 1
    said = capsys.readouterr()
    assert "differs: sglang/models/ours.py" in said.out
    assert "not as built" in said.err
    assert cli.main(["verify"]) == 1


def test_lint_patches_says_every_fault_and_fails(inside: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lint-patches"]) == 0
    assert "1 patches of 1 hooks: no fault" in capsys.readouterr().out
    inside.patch.write_text(PATCH.replace("--- a/", "index 1234567..89abcde 100644\n--- a/").replace("<=1.1", "<=1.0"))
    assert cli.main(["lint-patches"]) == 1
    said = capsys.readouterr().err
    assert "index line" in said
    assert "no variant for sglang 1.1" in said


def test_lock_without_a_version_says_how(inside: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lock"]) == 1
    assert "nox -s lock -- VERSION" in capsys.readouterr().err
    assert cli.main(["lock", "--check", "9.9"]) == 1
    assert "9.9 is not locked" in capsys.readouterr().err


def test_outside_a_checkout_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "overlay_tools", "build"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Run this in a checkout of sglang-overlay" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[tool.sglang-overlay]\nplugin = []\ndefault = 1\nrevision = 1\nreplaces = []\n", "default must be a str"),
        ("[tool.sglang-overlay]\nplugin = []\ndefault = '1'\nrevision = 0\nreplaces = []\n", "must be 1 or more"),
        ("[tool.sglang-overlay]\nplugin = []\ndefault = '1'\nrevision = 1\nreplaces = []\nx = 1\n", "knows no 'x'"),
        ("[tool]\n", "has no table"),
        ("[tool", "pyproject.toml: "),
    ],
)
def test_settings_that_are_wrong_are_named(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "pyproject.toml").write_text(table)
    with pytest.raises(OverlayError, match=r"pyproject\.toml") as caught:
        load_project(tmp_path)
    assert said in str(caught.value)


def test_serve_refuses_a_model_that_is_none(
    inside: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_engine", lambda *arguments: (Path(sys.executable), False))
    assert cli.main(["serve", "--model", str(tmp_path)]) == 1
    assert "is no checkpoint: it has no config.json" in capsys.readouterr().err


def test_colour_is_for_terminals_and_can_be_turned_off(inside: Miniature) -> None:
    words = [sys.executable, "-m", "overlay_tools", "build", *HERE]
    plain = subprocess.run(words, capture_output=True, check=True, env={**os.environ, "NO_COLOR": "1"})
    piped = subprocess.run(words, capture_output=True, check=True)
    assert b"\x1b[" not in plain.stdout + piped.stdout
