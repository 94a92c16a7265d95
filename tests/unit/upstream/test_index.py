"""The lock and the fetch against a package index of the tests' own, asked through the real uv and pip."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.errors import FetchError, LockError, ToolError
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.index import difference, query_release
from overlay_tools.upstream.lockfile import dump_lock, load_lock

from unit.conftest import PATCH, Miniature
from unit.upstream.conftest import NOT_OURS, PINS, TAGS, Index


def test_a_release_is_read_from_the_index(index: Index) -> None:
    release = query_release("2.0")
    assert (release.torch, release.transformers, release.requires_python) == ("2.0", "5.1", ">=3.11")
    assert str(release.kernel) == "sglang-kernel==0.4.2.post1"
    assert [wheel.name for wheel in release.wheels] == sorted(f"sglang-2.0-{tag}.whl" for tag in TAGS)
    for wheel in release.wheels:
        data = (index.folder / wheel.name).read_bytes()
        assert (wheel.size, wheel.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_lock_command_adds_a_release_and_only_that(
    index: Index, mini: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mini.root)
    before = (mini.root / "upstream.lock").read_text()
    assert cli.main(["lock", "2.0"]) == 0
    after = (mini.root / "upstream.lock").read_text()
    assert after.startswith(before)
    assert "127.0.0.1" not in after
    assert list(load_lock(mini.root / "upstream.lock")) == ["1.0", "1.1", "2.0"]
    assert cli.main(["lock", "--check", "2.0"]) == 0
    assert (mini.root / "upstream.lock").read_text() == after


def test_check_says_what_differs_and_writes_nothing(
    index: Index, mini: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mini.root)
    assert cli.main(["lock", "2.0"]) == 0
    locked = (mini.root / "upstream.lock").read_text()
    index.publish("2.0", PINS.replace("2.0", "2.1"))
    (index.folder / f"sglang-2.0-{TAGS[0]}.whl").unlink()
    assert cli.main(["lock", "--check", "2.0"]) == 1
    said = capsys.readouterr().err
    assert "2.0: torch is 2.0 in the lock, 2.1 on the index" in said
    assert f"2.0: sglang-2.0-{TAGS[0]}.whl is in the lock only" in said
    assert f"2.0: sglang-2.0-{TAGS[1]}.whl has sha256" in said
    assert (mini.root / "upstream.lock").read_text() == locked
    assert difference(query_release("2.0"), query_release("2.0")) == []


def test_what_replaces_a_hash_that_was_proven_is_said(
    index: Index, mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lock", "2.0"]) == 0
    assert cli.main(["lock", "2.0"]) == 0
    assert "ask why" not in capsys.readouterr().out
    (before, *_) = mini_here.lock["2.0"].wheels
    index.publish("2.0", PINS.replace("5.1", "5.2"))
    assert cli.main(["lock", "2.0"]) == 0
    (after, *_) = mini_here.lock["2.0"].wheels
    said = capsys.readouterr().out
    assert "sglang 2.0 is not what was locked before: ask why it changed.\n" in said
    assert "2.0: transformers is 5.1 in the lock, 5.2 on the index\n" in said
    assert (
        f"2.0: {before.name} has sha256 {before.sha256} and {before.size} bytes in the lock, "
        f"{after.sha256} and {after.size} on the index\n"
    ) in said


def test_a_release_that_does_not_exist_is_refused(
    index: Index, mini: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mini.root)
    before = (mini.root / "upstream.lock").read_text()
    with pytest.raises(LockError, match=r"no sglang 9\.9"):
        query_release("9.9")
    assert cli.main(["lock", "2.0", "9.9"]) == 1
    assert cli.main(["lock", "newest"]) == 1
    assert "'newest' is not a version" in capsys.readouterr().err
    assert (mini.root / "upstream.lock").read_text() == before


@pytest.mark.parametrize("reason", ['breaks (on "import")', True])
def test_a_yanked_release_is_refused_with_the_reason(index: Index, reason: str | bool) -> None:
    index.yanked = reason
    with pytest.raises(LockError, match=r"sglang 2\.0 was yanked: ") as caught:
        query_release("2.0")
    assert ("breaks (on" if reason != True else "no reason is given") in str(caught.value)  # noqa: E712


def test_a_release_that_does_not_pin_what_the_lock_records_is_refused(index: Index) -> None:
    index.publish("2.1", "Requires-Dist: torch==2.0\nRequires-Dist: transformers>=5\n")
    with pytest.raises(LockError, match="does not require sgl-kernel or sglang-kernel"):
        query_release("2.1")
    index.publish("2.2", PINS.replace("transformers==5.1", "transformers>=5"))
    with pytest.raises(LockError, match="does not pin transformers to one version"):
        query_release("2.2")


@pytest.mark.parametrize(("python", "platform"), [("3.11", "x86_64"), ("3.12", "aarch64")])
def test_the_wheel_of_any_python_and_machine_is_fetched_and_kept(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str, platform: str
) -> None:
    release = query_release("2.0")
    wheel = release.select(python, platform)
    path = fetch(release, wheel, tmp_path / "cache")
    assert path.read_bytes() == (index.folder / wheel.name).read_bytes()
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [wheel.sha256]
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PATH", "")
    assert fetch(release, wheel, tmp_path / "cache") == path


def test_a_file_with_another_hash_is_not_taken(index: Index, tmp_path: Path) -> None:
    release = query_release("2.0")
    wheel = release.select("3.11", "x86_64")
    with zipfile.ZipFile(index.folder / wheel.name, "a") as archive:
        archive.writestr("sglang/evil.py", "")
    with pytest.raises(FetchError, match=r"(?s)could not be fetched.*(HASHES|hashes)"):
        fetch(release, wheel, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] in ([], [".lock"])


def test_without_a_network_the_error_says_so(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = query_release("2.0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(FetchError, match="could not be fetched") as caught:
        fetch(release, release.select("3.11", "x86_64"), tmp_path / "cache")
    assert "network" in caught.value.hint
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] in ([], [".lock"])
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(ToolError, match="could not be asked") as asked:
        query_release("2.0")
    assert "network" in asked.value.hint


def test_a_release_of_another_index_is_locked_with_its_url_and_fetched_there(
    index: Index, other_index: Index, mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    other_index.publish("2.1.dev3+gabc", tags=["cp311-cp311-linux_x86_64"])
    assert cli.main(["lock", "2.1.dev3+gabc"]) == 1
    assert "The index has no sglang 2.1.dev3+gabc" in capsys.readouterr().err
    assert cli.main(["lock", "2.1.dev3+gabc", "--index", f"{other_index.url}/"]) == 0
    assert f'index = "{other_index.url}"\n' in (mini_here.root / "upstream.lock").read_text()
    release = mini_here.lock["2.1.dev3+gabc"]
    assert release.index == other_index.url
    assert dump_lock(mini_here.lock) == (mini_here.root / "upstream.lock").read_text()
    wheel = release.select("3.11", "x86_64")
    assert wheel.name == "sglang-2.1.dev3+gabc-cp311-cp311-linux_x86_64.whl"
    assert fetch(release, wheel, mini_here.cache).read_bytes() == (other_index.folder / wheel.name).read_bytes()
    assert cli.main(["lock", "2.1.dev3+gabc"]) == 0
    assert cli.main(["lock", "--check", "2.1.dev3+gabc"]) == 0
    other_index.publish("2.1.dev3+gabc", PINS.replace("2.0", "2.1"), ["cp311-cp311-linux_x86_64"])
    assert cli.main(["lock", "--check", "2.1.dev3+gabc"]) == 1
    assert "torch is 2.0 in the lock, 2.1 on the index" in capsys.readouterr().err
    (mini_here.cache / wheel.sha256 / wheel.name).unlink()
    with pytest.raises(FetchError, match=f"could not be fetched from {other_index.url}"):
        fetch(release, wheel, mini_here.cache)


def test_a_release_is_ported_from_another_index(index: Index, other_index: Index, mini_here: Miniature) -> None:
    other_index.publish("1.2")
    assert cli.main(["port", "1.2", "--index", other_index.url]) == 0
    assert mini_here.lock["1.2"].index == other_index.url
    assert "Applies: >=1.0,<=1.2\n" in mini_here.patch.read_text()


def test_an_index_without_sizes_has_its_wheels_measured(other_index: Index) -> None:
    other_index.publish("2.0")
    release = query_release("2.0", other_index.html)
    assert len(release.wheels) == len(TAGS)
    for wheel in release.wheels:
        assert wheel.size == (other_index.folder / wheel.name).stat().st_size


def test_an_index_that_has_nothing_of_sglang_is_not_replaced_by_another(
    index: Index, other_index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "uv.toml"
    config.write_text(f'[[index]]\nurl = "{index.url}"\n')
    monkeypatch.delenv("UV_NO_CONFIG")
    monkeypatch.setenv("UV_CONFIG_FILE", str(config))
    monkeypatch.setenv("UV_INDEX", index.url)
    with pytest.raises(LockError, match=f"{other_index.host}/none has no sglang 2.0"):
        query_release("2.0", f"{other_index.host}/none")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://user:secret@wheels.example/simple", "holds a user name or a password"),
        ("https://secret@wheels.example/simple", "holds a user name or a password"),
        ("https://wheels.example/simple?token=secret", "must end without a query"),
        ("https://[secret/simple", "cannot be read as a URL"),
        ("secret", "must begin with https://HOST"),
        ("", "must begin with https://HOST"),
    ],
)
@pytest.mark.parametrize("command", ["lock", "port"])
def test_the_url_of_an_index_that_the_lock_must_not_have_is_refused_and_not_shown(
    mini_here: Miniature, command: str, url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = mini_here.content()
    assert cli.main([command, "2.0", "--index", url, "--verbose"]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "secret" not in shown.out + shown.err
    assert mini_here.content() == before


def test_the_same_version_is_locked_from_one_place(
    index: Index, other_index: Index, mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    other_index.publish("2.0")
    assert cli.main(["lock", "2.0"]) == 0
    before = (mini_here.root / "upstream.lock").read_text()
    assert cli.main(["lock", "2.0", "--index", other_index.url]) == 1
    assert cli.main(["port", "2.0", "--index", other_index.url, "--take", "choose"]) == 1
    assert cli.main(["lock", str(other_index.folder / f"sglang-2.0-{TAGS[0]}.whl")]) == 1
    assert capsys.readouterr().err.count("sglang 2.0 is locked from the package index.") == 3
    assert (mini_here.root / "upstream.lock").read_text() == before


def test_a_version_is_not_taken_for_its_local_versions(index: Index) -> None:
    for version in ("2.0+gabc", "2.0+gdef", "2.2+gabc"):
        index.publish(version, PINS.replace("torch==2.0", "torch==3.0"))
    release = query_release("2.0")
    assert {wheel.name.split("-")[1] for wheel in release.wheels} == {"2.0"}
    assert release.torch == "2.0"
    assert query_release("2.0+gabc").torch == "3.0"
    with pytest.raises(LockError, match=r"no sglang 2\.2, but 2\.2\+gabc"):
        query_release("2.2")


def test_a_release_without_requirements_or_with_a_range_for_a_pin_is_refused(index: Index) -> None:
    index.publish("2.1", "")
    with pytest.raises(LockError, match="does not require torch, transformers"):
        query_release("2.1")
    index.publish("2.2", PINS.replace("torch==2.0", "torch==2.*"))
    with pytest.raises(LockError, match="does not pin torch to one version"):
        query_release("2.2")


def test_uv_and_pip_that_ask_different_indexes_are_found_out(
    index: Index, other_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_index.publish("2.0", PINS.replace("torch==2.0", "torch==2.1"))
    monkeypatch.setenv("PIP_INDEX_URL", other_index.url)
    with pytest.raises(LockError, match="uv has found other wheels"):
        query_release("2.0")


@pytest.mark.parametrize("tag", ["cp38-abi3-manylinux2014_x86_64", "py310-none-any"])
def test_every_wheel_that_one_of_our_pythons_installs_is_locked_and_fetched(
    index: Index, tmp_path: Path, tag: str
) -> None:
    index.publish("2.1", tags=[tag])
    release = query_release("2.1")
    assert [wheel.name for wheel in release.wheels] == [f"sglang-2.1-{tag}.whl"]
    assert fetch(release, release.wheels[0], tmp_path / "cache").is_file()


def test_a_release_without_a_wheel_for_our_pythons_is_refused(index: Index) -> None:
    index.publish("2.1", tags=NOT_OURS)
    index.publish("2.2", tags=["cp39-cp39-manylinux_2_34_x86_64"])
    for version in ("2.1", "2.2"):
        with pytest.raises(LockError, match=f"sglang {version} has no wheel for CPython"):
            query_release(version)


def test_lock_says_which_hooks_were_not_tried_at_a_new_release(
    index: Index, mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    mini_here.patch.write_text(PATCH.replace("<=1.1", "<=2.0"))
    index.publish("2.1")
    assert cli.main(["lock", "2.0", "2.1"]) == 0
    said = capsys.readouterr().out
    assert "Not tried at sglang 2.0 yet: choose. `nox -s test-2.0` shows" in said
    assert "Due at sglang 2.1, but without a variant for it: choose." in said
    assert cli.main(["lock", "2.0"]) == 0
    assert "Not tried" not in capsys.readouterr().out
