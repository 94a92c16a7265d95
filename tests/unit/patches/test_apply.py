from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from overlay_tools.errors import PatchError, ToolError
from overlay_tools.patches.apply import apply_series
from overlay_tools.patches.model import Patch
from overlay_tools.patches.series import load_series

from unit.conftest import LOADER, PATCH, Miniature

PATCHED = LOADER.replace("(config):\n", "(config):\n    config = choose(config)\n")


def patches(mini: Miniature) -> list[Patch]:
    return [variant for hook in load_series(mini.root / "patches") if (variant := hook.variant("1.0"))]


def apply(mini: Miniature, loader: str | None) -> str:
    read = {} if loader is None else {"sglang/loader.py": loader.encode()}
    return apply_series(patches(mini), read.get, "sglang 1.0")["sglang/loader.py"].decode()


def refused(mini: Miniature, loader: str | None) -> PatchError:
    with pytest.raises(PatchError) as caught:
        apply(mini, loader)
    assert caught.value.hint
    return caught.value


def test_a_hunk_applies_where_its_lines_stand(mini: Miniature) -> None:
    assert apply(mini, LOADER) == PATCHED
    assert apply(mini, "# moved\n" * 50 + LOADER) == "# moved\n" * 50 + PATCHED


def test_line_ends_and_the_rest_of_a_file_are_kept(mini: Miniature) -> None:
    odd = LOADER + "\f\nx = '\u2028'\r\nlast = 'no line end'"
    assert apply(mini, odd) == odd.replace(LOADER, PATCHED)


def test_a_second_hook_sees_what_the_first_one_did(mini: Miniature) -> None:
    second = PATCH.replace("     name = config.name", "     config = choose(config)\n     name = config.name")
    second = second.replace("+    config = choose(config)", "+    config = again(config)").replace(
        "3,5 +3,6", "3,6 +3,7"
    )
    mini.write("patches/again/1.0.patch", second)
    mini.write("patches/series", "choose\nagain\n")
    lines = apply(mini, LOADER).splitlines()
    at = lines.index("def get_model(config):")
    assert lines[at + 1 : at + 3] == ["    config = again(config)", "    config = choose(config)"]


def test_a_hunk_whose_context_changed_is_refused(mini: Miniature) -> None:
    error = refused(mini, LOADER.replace("config.name", "config.title"))
    assert "1.0.patch:10: the lines that the hunk expects are not in sglang/loader.py of sglang 1.0" in str(error)
    assert "exactly" in error.hint


def test_a_hunk_that_would_need_fuzz_is_refused(mini: Miniature) -> None:
    loader = LOADER.replace("    return name", "    return name  # now")
    fuzzy = subprocess.run(
        ["patch", "--dry-run", "-p1", "-o", "-", str(mini.write("loader.py", loader)), str(mini.patch)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "fuzz" in fuzzy.stdout + fuzzy.stderr
    assert "the lines that the hunk expects are not in" in str(refused(mini, loader))


def test_a_hunk_that_fits_but_for_white_space_is_refused(mini: Miniature) -> None:
    assert "only if white space is ignored" in str(refused(mini, LOADER.replace("    return name", "     return name")))
    assert "only if white space is ignored" in str(refused(mini, LOADER.replace("\n", "\r\n")))


def test_what_upstream_has_taken_is_said_to_be_upstream(mini: Miniature) -> None:
    error = refused(mini, PATCHED)
    assert "already holds what the hunk makes of it" in str(error)
    assert "upstream" in error.hint


def test_a_hunk_that_fits_twice_is_refused(mini: Miniature) -> None:
    error = refused(mini, LOADER + LOADER)
    assert "fits sglang/loader.py of sglang 1.0 at lines 3, 14" in str(error)


def test_a_file_that_upstream_does_not_have_is_named(mini: Miniature) -> None:
    assert "sglang 1.0 has no sglang/loader.py" in str(refused(mini, None))


def test_nothing_is_returned_when_a_later_hook_fails(mini: Miniature) -> None:
    mini.write("patches/more/1.0.patch", PATCH.replace("sglang/loader", "sglang/absent"))
    mini.write("patches/series", "choose\nmore\n")
    assert "has no sglang/absent.py" in str(refused(mini, LOADER))


@pytest.mark.parametrize("in_a_hook", [False, True])
def test_it_applies_inside_a_repository_that_ignores_the_folder(
    mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_a_hook: bool
) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    ignored = tmp_path / "ignored"
    ignored.mkdir()
    (tmp_path / ".gitignore").write_text("ignored/\n")
    monkeypatch.setattr("tempfile.tempdir", str(ignored))
    if in_a_hook:  # git tells its hooks where the repository is
        monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
        monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert apply(mini, LOADER) == PATCHED


def test_the_users_git_configuration_makes_nothing_looser(
    mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitconfig").write_text("[apply]\n\tignoreWhitespace = change\n\twhitespace = fix\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "white space" in str(refused(mini, LOADER.replace("    return name", "     return name")))


def test_a_git_that_reports_success_and_changes_nothing_is_not_believed(
    mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = patches(mini)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(
        PatchError, match=r"git reports success, but sglang/loader\.py is not what the diff makes of it"
    ):
        apply_series(series, {"sglang/loader.py": LOADER.encode()}.get, "sglang 1.0")


def test_without_git_the_error_says_so(mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="git is not on this machine") as caught:
        load_series(mini.root / "patches")
    assert "Install git" in caught.value.hint
