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
    made = apply_series(patches(mini), read.get, "sglang 1.0")["sglang/loader.py"]
    assert made is not None
    return made.decode()


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


def test_without_git_the_error_says_so(mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mini.patch.write_text(PATCH.replace("choose(config)", "never_read_before(config)"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="git is not on this machine") as caught:
        load_series(mini.root / "patches")
    assert "Install git" in caught.value.hint


def test_a_patch_once_read_needs_no_git(mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = patches(mini)
    monkeypatch.setenv("PATH", str(tmp_path))
    read = {"sglang/loader.py": LOADER.encode()}
    assert apply_series(series, read.get, "sglang 1.0") == {"sglang/loader.py": PATCHED.encode()}


def test_a_hunk_without_an_effect_is_refused(mini: Miniature) -> None:
    same = PATCH.replace("-3,5 +3,6", "-3,5 +3,5").replace(
        "+    config = choose(config)\n     name = config.name\n", "-    name = config.name\n+    name = config.name\n"
    )
    mini.patch.write_text(same)
    assert "1.0.patch: it changes nothing in sglang/loader.py of sglang 1.0" in str(refused(mini, LOADER))


def test_a_hunk_made_at_the_end_of_a_file_fits_there_only(mini: Miniature) -> None:
    head, _, _ = PATCH.partition("@@")
    mini.patch.write_text(f"{head}@@ -9,3 +9,4 @@\n \n def last():\n     return 3\n+\n")
    assert apply(mini, "a = 1\n" + LOADER) == "a = 1\n" + LOADER + "\n"
    assert "expects at the end of the file stand elsewhere" in str(refused(mini, LOADER + "    more()\n"))
    assert "the lines that the hunk expects are not in" in str(refused(mini, LOADER.replace("return 3", "return 4")))


@pytest.mark.parametrize("end", ["", "\n"])
def test_what_comes_after_the_last_line_end_is_not_a_blank_line(mini: Miniature, end: str) -> None:
    text = PATCH[: PATCH.index("@@")] + "@@ -9,2 +9,3 @@\n     return name\n+    # ours\n \n"
    mini.write("patches/choose/1.0.patch", text)
    body = LOADER[: LOADER.index("\n\n\ndef last")]
    assert apply(mini, f"{body}\n\n") == f"{body}\n    # ours\n\n"
    assert "not in sglang/loader.py" in str(refused(mini, body + end))
