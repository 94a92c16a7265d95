from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from overlay_tools.errors import LockError
from overlay_tools.upstream.lockfile import dump_lock, get_release, load_lock

from unit.conftest import REPOSITORY, Miniature


def broken(mini: Miniature, old: str, new: str) -> str:
    path = mini.root / "upstream.lock"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(LockError) as caught:
        load_lock(path)
    assert "nox -s lock" in caught.value.hint
    return str(caught.value)


def test_what_is_written_reads_the_same_and_writes_the_same() -> None:
    text = (REPOSITORY / "upstream.lock").read_text()
    assert dump_lock(load_lock(REPOSITORY / "upstream.lock")) == text


def test_releases_are_written_oldest_first_whatever_order_they_come_in(mini: Miniature) -> None:
    lock = mini.lock
    assert list(load_lock(mini.root / "upstream.lock")) == ["1.0", "1.1"]
    assert dump_lock(dict(sorted(lock.items(), reverse=True))) == dump_lock(lock)


def test_one_release_touches_only_its_own_table(mini: Miniature) -> None:
    before = (mini.root / "upstream.lock").read_text()
    mini.lock_release("1.0.5")
    after = (mini.root / "upstream.lock").read_text()
    table = after[after.index('[release."1.0.5"]') : after.index('[release."1.1"]')]
    assert after.replace(table, "") == before


def test_the_wheel_of_a_python_and_a_platform_is_chosen() -> None:
    release = load_lock(REPOSITORY / "upstream.lock")["0.5.17"]
    assert "cp312-cp312" in release.select("3.12", "aarch64").name
    assert release.select("3.12", "aarch64").name.endswith("aarch64.whl")
    pure = load_lock(REPOSITORY / "upstream.lock")["0.5.7"]
    assert pure.select("3.10", "aarch64") is pure.select("3.13", "x86_64")


def test_the_latest_build_of_a_wheel_is_chosen_as_installers_do() -> None:
    release = load_lock(REPOSITORY / "upstream.lock")["0.5.7"]
    names = [f"sglang-0.5.7-{build}py3-none-any.whl" for build in ("", "1-", "10-", "2-")]
    builds = replace(release, wheels=tuple(replace(release.wheels[0], name=name) for name in names))
    assert builds.select("3.12", "x86_64").name == names[2]


def test_a_platform_or_a_python_that_a_release_lacks_says_what_there_is() -> None:
    release = load_lock(REPOSITORY / "upstream.lock")["0.5.23"]
    with pytest.raises(LockError, match=r"no wheel for CPython 3\.10 on x86_64") as caught:
        release.select("3.10", "x86_64")
    assert ">=3.11" in caught.value.hint
    with pytest.raises(LockError, match="on riscv64") as caught:
        release.select("3.12", "riscv64")
    assert "cp312-cp312-manylinux_2_34_aarch64" in caught.value.hint


def test_a_wheel_for_any_python_is_not_taken_for_one_that_the_release_excludes() -> None:
    release = load_lock(REPOSITORY / "upstream.lock")["0.5.7"]
    newer = replace(release, requires_python=">=3.12")
    assert newer.select("3.12", "x86_64") is release.wheels[0]
    with pytest.raises(LockError, match=r"no wheel for CPython 3\.11"):
        newer.select("3.11", "x86_64")


def test_a_release_that_is_not_locked_says_which_are(mini: Miniature) -> None:
    with pytest.raises(LockError, match=r"no release '9\.9'") as caught:
        get_release(mini.lock, "9.9", mini.root / "upstream.lock")
    assert "1.0, 1.1" in caught.value.hint


def test_an_unknown_key_is_named_with_its_line(mini: Miniature) -> None:
    assert "upstream.lock:5: release 1.0: unknown key 'colour'" in broken(
        mini, "requires-python", "colour = 1\nrequires-python"
    )
    assert "unknown key 'colour'" in broken(mini, "lock-version", "colour = 1\nlock-version")


def test_a_missing_field_is_named_with_its_table(mini: Miniature) -> None:
    assert "upstream.lock:4: release 1.0: torch is missing" in broken(mini, 'torch = "2.0"\n', "")


def test_a_missing_field_of_a_wheel_is_named_with_its_line(mini: Miniature) -> None:
    size = mini.releases["1.1"].wheels[0].size
    text = (mini.root / "upstream.lock").read_text()
    line = text.splitlines().index('[release."1.1"]') + 1
    found = broken(
        mini,
        text[text.index('[release."1.1"]') :],
        text[text.index('[release."1.1"]') :].replace(f"size = {size}, ", ""),
    )
    assert f"upstream.lock:{line + 6}: release 1.1, wheel 1: size is missing" in found


@pytest.mark.parametrize("digest", ["abc", "X" * 64, "A" * 64], ids=["short", "letters", "capitals"])
def test_a_bad_hash_is_named(mini: Miniature, digest: str) -> None:
    found = broken(mini, mini.releases["1.0"].wheels[0].sha256, digest)
    assert "upstream.lock:10: release 1.0, wheel 1: sha256 must be 64 lower-case hexadecimal digits" in found


def test_a_bad_size_name_or_tag_is_named(mini: Miniature) -> None:
    assert "size must be a number of bytes, not 'x'" in broken(
        mini, f"size = {mini.releases['1.0'].wheels[0].size}", "size = 'x'"
    )
    mini.lock_release("1.0")
    assert "tags" in broken(mini, 'tags = ["cp311', 'tags = ["cp310')
    mini.lock_release("1.0")
    assert "not the file name of a wheel of sglang 1.0" in broken(mini, 'name = "sglang-1.0-', 'name = "../sglang-1.0-')


def test_every_fault_is_said_at_once(mini: Miniature) -> None:
    mini.write("upstream.lock", 'lock-version = 7\n\n[release."1.0"]\ntorch = 3\n')
    with pytest.raises(LockError) as caught:
        load_lock(mini.root / "upstream.lock")
    assert len(caught.value.problems) >= 5


@pytest.mark.parametrize(
    "text", ["[release", "\0", "lock-version = 1\n", "lock-version = 1\n[release]\n", "release = 3\n"]
)
def test_a_file_that_is_not_a_lock_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "upstream.lock"
    path.write_text(text)
    with pytest.raises(LockError, match=r"upstream\.lock"):
        load_lock(path)


@pytest.mark.parametrize("url", ["https://user:secret@wheels.example/simple", "secret", "https://w.example/?a=secret"])
def test_the_url_of_an_index_that_cannot_be_is_named_by_its_line_and_not_shown(mini: Miniature, url: str) -> None:
    found = broken(mini, 'requires-python = ">=3.10"', f'index = "{url}"\nrequires-python = ">=3.10"')
    assert "upstream.lock:5: release 1.0: index " in found
    assert "secret" not in found


def test_a_path_that_is_not_the_wheel_s_is_named(mini: Miniature) -> None:
    assert "upstream.lock:10: release 1.0, wheel 1: path must end in the name of the wheel" in broken(
        mini, '{name = "', '{path = "wheels/other.whl", name = "'
    )


def test_a_release_has_an_index_or_files(mini: Miniature) -> None:
    name = mini.releases["1.0"].wheels[0].name
    text = (mini.root / "upstream.lock").read_text()
    mini.write("upstream.lock", text.replace('{name = "', f'{{path = "wheels/{name}", name = "', 1))
    assert mini.lock["1.0"].wheels[0].file == mini.root / "wheels" / name
    assert "upstream.lock:4: release 1.0: all its wheels must have a path, or none of them" in broken(
        mini, 'requires-python = ">=3.10"', 'index = "https://wheels.example/simple"\nrequires-python = ">=3.10"'
    )


@pytest.mark.parametrize(
    ("tag", "python", "fits"),
    [
        ("cp312-cp312-linux_x86_64", "3.12", True),
        ("cp312-cp312-manylinux2014_x86_64", "3.12", True),
        ("cp310-abi3-manylinux_2_34_x86_64", "3.12", True),
        ("cp313-abi3-manylinux_2_34_x86_64", "3.12", False),
        ("cp312-cp312-manylinux_2_34_aarch64", "3.12", False),
        ("cp313-cp313t-manylinux_2_34_x86_64", "3.13", False),
        ("cp312-cp312-macosx_11_0_x86_64", "3.12", False),
        ("cp312-cp312-musllinux_1_2_x86_64", "3.12", False),
        ("py3-none-any", "3.12", True),
    ],
)
def test_a_wheel_fits_what_installs_it(mini: Miniature, tag: str, python: str, fits: bool) -> None:
    wheel = replace(mini.releases["1.0"].wheels[0], name=f"sglang-1.0-{tag}.whl", tags=(tag,))
    assert wheel.fits(python, "x86_64") is fits


def test_an_absent_lock_is_named(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="No such file"):
        load_lock(tmp_path / "upstream.lock")
