"""`build`, `verify` and `lint-patches`, as they are called."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from overlay_tools import cli

from unit.conftest import PATCH, Miniature

HERE = ("--python", "3.11", "--platform", "x86_64")


def test_build_prints_one_summary_a_wheel(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", *HERE]) == 0
    said = capsys.readouterr().out
    wheel = mini_here.releases["1.0"].wheels[0]
    assert f"base         {wheel.name}, sha256 {wheel.sha256}" in said
    assert "hook choose  1.0.patch: +1/-0 lines" in said
    assert "added        sglang/models/ours.py" in said
    assert "dist/sglang_kernel-0.4+cpu.3-py3-none-any.whl" in said
    assert "sglang-1.1" not in said


def test_build_takes_releases_or_all(mini_here: Miniature) -> None:
    dist = mini_here.root / "dist"
    assert cli.main(["build", "1.1", *HERE]) == 0
    assert [path.name[:10] for path in dist.glob("sglang-*.whl")] == ["sglang-1.1"]
    assert cli.main(["build", "--all", *HERE]) == 0
    assert sorted(path.name[:10] for path in dist.glob("sglang-*.whl")) == ["sglang-1.0", "sglang-1.1"]


def test_build_does_not_take_releases_and_all(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "1.0", "--all", *HERE]) == 2
    assert "VERSION and --all exclude each other." in capsys.readouterr().err
    assert not (mini_here.root / "dist").exists()


def test_a_platform_without_a_wheel_says_what_there_is(
    mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", "1.0", "--python", "3.12", "--platform", "aarch64"]) == 1
    said = capsys.readouterr().err
    assert "no wheel for CPython 3.12 on aarch64" in said
    assert mini_here.releases["1.0"].wheels[0].name in said


def test_all_is_built_or_the_first_failure_ends_it(mini_here: Miniature) -> None:
    mini_here.patch.write_text(PATCH.replace("<=1.1", "<=1.0"))
    assert cli.main(["build", "--all", *HERE]) == 1


def test_a_dist_that_is_a_file_is_called_one(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    (mini_here.root / "dist").write_text("notes")
    for words in (["build", *HERE], ["plugin"]):
        assert cli.main(words) == 1
        said = capsys.readouterr().err
        assert f".whl cannot be written: {mini_here.root / 'dist'} is not a folder." in said
        assert "writable" not in said
    assert (mini_here.root / "dist").read_text() == "notes"


def test_verify_says_what_differs_and_fails(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = mini_here.build().path
    assert cli.main(["verify", str(wheel)]) == 0
    assert "sglang 1.0+overlay.3: 15 files, no differences" in capsys.readouterr().out
    data = bytearray(wheel.read_bytes())
    at = data.index(b"OURS = 1")
    data[at : at + 8] = b"OURS = 2"
    wheel.write_bytes(data)
    assert cli.main(["verify", str(wheel)]) == 1
    said = capsys.readouterr()
    assert "differs: sglang/models/ours.py" in said.out
    assert "sglang 1.0+overlay.3 is not as it was built." in said.err


def test_verify_shows_what_is_in_a_folder_and_what_is_not(
    mini_here: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(mini_here.build().path) as wheel:
        wheel.extractall(tmp_path / "first")
        wheel.extractall(tmp_path / "second")
    (tmp_path / "second/sglang/native.so").chmod(0o644)
    (tmp_path / "second/sglang/more.py").touch()
    folders = [str(tmp_path / name) for name in ("first", "second")]
    assert cli.main(["verify", "--path", folders[0]]) == 0
    said = capsys.readouterr()
    assert f"sglang 1.0+overlay.3 in {folders[0]}: 15 files, no differences" in said.out
    assert f"{folders[0]} has no plugin" in said.out
    assert cli.main(["verify", *(word for folder in folders for word in ("--path", folder))]) == 1
    said = capsys.readouterr()
    assert f"sglang 1.0+overlay.3 in {folders[1]}: 15 files, 1 differences\n  foreign: sglang/more.py\n" in said.out
    assert said.err.startswith("error: sglang 1.0+overlay.3 is not as it was built.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "There is nothing to verify: name a WHEEL, an environment or a folder."),
        (["nothing.whl"], "There is no file nothing.whl."),
        (["overlay"], "overlay cannot be read as a wheel: Is a directory."),
        (["LICENSE"], "LICENSE cannot be read as a wheel: File is not a zip file."),
        (["--env", "/etc"], "/etc is not a Python interpreter: "),
        (["--env", "nothing"], "nothing is not a Python interpreter: "),
        (["--env", "cat"], "cat is not a Python interpreter: "),
    ],
)
def test_verify_says_what_it_cannot_compare(
    mini_here: Miniature, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", *words]) == (1 if words else 2)
    error = capsys.readouterr().err
    assert said in error
    assert "Errno" not in error


def test_lint_patches_says_every_fault_and_fails(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lint-patches"]) == 0
    assert "No faults: 1 patches, 1 hooks." in capsys.readouterr().out
    mini_here.patch.write_text(
        PATCH.replace("--- a/", "index 1234567..89abcde 100644\n--- a/").replace("<=1.1", "<=1.0")
    )
    assert cli.main(["lint-patches"]) == 1
    said = capsys.readouterr().err
    assert "index line" in said
    assert "no variant for sglang 1.1" in said
    assert "patches/README.md" in said
    mini_here.patch.write_text("x")
    assert cli.main(["build", *HERE]) == 1
    assert "patches/README.md" in capsys.readouterr().err
