"""Each command on each file that it reads, where that is damaged or is not a file: one error, which names it."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.upstream.lockfile import Release

from unit.conftest import PATCH, Miniature, upstream_files

HERE = ("--python", "3.11", "--platform", "x86_64")


def latin_1(path: Path) -> None:
    """Add a line that is not UTF-8, a comment in most files."""
    path.write_bytes(path.read_bytes() + "\n# für\n".encode("latin-1"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def missing(path: Path) -> None:
    path.unlink()


def unreadable(path: Path) -> None:
    """Make a link to itself: no user can open it, not even root."""
    path.unlink()
    path.symlink_to(path.name)


def nul(path: Path) -> None:
    path.write_bytes(b"\0" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = (latin_1, folder, missing, unreadable, nul, empty)
FILES = (
    "pyproject.toml",
    "upstream.lock",
    "LICENSE",
    "NOTICE",
    "patches/series",
    "patches/choose/1.0.patch",
    "overlay/sglang/models/ours.py",
    "overlay/sgl_kernel/__init__.py",
    "ci/contract.toml",
    "ci/results.json",
)
COMMANDS = (
    ("build", "1.0", *HERE),
    ("plugin",),
    ("status", "--html", "page.html"),
    ("lint-patches",),
    ("edit", "1.0"),
    ("export", "1.0", "--yes"),
    ("port", "1.2"),
    ("lock", "1.2"),
    ("lock", "--check"),
    ("import", "series", "--yes"),
)


@pytest.fixture
def whole(mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Return a checkout in which every command works."""
    mini_here.write("ci/contract.toml", "waivers = []\nmentions = []\n")
    mini_here.write("ci/results.json", "[]\n")
    mini_here.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    release = mini_here.publish("1.2", upstream_files("1.2"))
    known: dict[str, Release] = {**mini_here.releases, "1.2": release}
    monkeypatch.setattr("overlay_tools.upstream.asked.query_release", lambda version, index: known[version])
    series = mini_here.root / "series"
    series.mkdir()
    (series / "one.patch").write_text("--- a/sglang/loader.py\n+++ b/sglang/loader.py\n@@ -1 +1 @@\n-x\n+y\n")
    assert cli.main(["edit", "1.0"]) == 0
    return mini_here


@pytest.mark.parametrize("limit", [200, 1000, 5000, 12000])
def test_a_full_disk_leaves_nothing_half_written(mini: Miniature, limit: int) -> None:
    """A limit on the size of files stands in for the disk's: a write that comes to it fails halfway too."""
    mini.write("ci/results.json", "[]\n")
    before = mini.content()
    # With -B: Python itself would leave half of a module that it compiles, and this is the environment of all tests.
    code = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    code += "import sys; from overlay_tools import cli; sys.exit(cli.main())"
    for words in (["build", "1.0", *HERE], ["plugin"], ["edit", "1.0"], ["status"], ["lint-patches"]):
        done = subprocess.run(
            [sys.executable, "-B", "-c", code, *words], cwd=mini.root, capture_output=True, text=True, check=False
        )
        said = f"{limit} {words}: {done.stderr}"
        assert "Traceback" not in done.stderr, said
        assert done.returncode in (0, 1), said
        if done.returncode == 1:
            assert re.match("error: [^N]", done.stderr), said  # and not of None
            assert "File too large" in done.stderr or "git" in done.stderr, said
        for wheel in mini.root.glob("dist/*"):
            if wheel.suffix == ".whl":
                assert not [each for each in [zipfile.ZipFile(wheel).testzip()] if each], said
            assert not wheel.name.endswith(".part"), said
        assert done.returncode == 0 or words != ["edit", "1.0"] or not (mini.root / ".nox/worktrees/1.0").exists()
        assert mini.content() == before


def test_no_folder_for_temporary_files_is_one_error(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (0, 0))\n"
    code += "import sys; from overlay_tools import cli; sys.exit(cli.main())"
    done = subprocess.run([sys.executable, "-B", "-c", code, "build"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.match(r"error: No usable temporary directory found in .*\n  Set TMPDIR ", done.stderr)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_checkout_that_is_damaged_is_named(
    whole: Miniature, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(whole.root / name)
    for words in COMMANDS:
        capsys.readouterr()
        status = cli.main(list(words))
        said = capsys.readouterr()
        assert status in (0, 1), words
        if status == 1 and words[0] != "import":
            assert said.err.startswith("error: "), words
            path = Path(name)
            assert path.name in said.err or (str(path.parent) in said.err and "there" in said.err.lower()), words
        assert "\\x" not in said.err.replace("\\xe4", "").replace("\\xfc", "")
        assert not [*whole.root.glob("*/.*.part"), *whole.root.glob(".*.part")]
