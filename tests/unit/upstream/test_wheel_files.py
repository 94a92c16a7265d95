"""Releases whose wheels are files: locked, checked, built and ported without any index."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.archive.reader import WheelReader
from overlay_tools.downstream.port_state import PortState
from overlay_tools.errors import FetchError, OverlayError
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import dump_lock
from overlay_tools.upstream.wheel_files import read_release
from overlay_tools.wheels.verify import verify_wheel
from overlay_tools.wheels.verify_installed import verify_environment
from packaging.specifiers import SpecifierSet
from packaging.utils import parse_wheel_filename

from unit.conftest import PATCH, Miniature, upstream_files, write_wheel
from unit.upstream.conftest import PINS, make_wheel

VERSION = "1.2.dev3+gabc"
TAG = "cp311-cp311-linux_x86_64"
NAME = f"sglang-{VERSION}-{TAG}.whl"


@pytest.fixture
def here(mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Return a project with a wheel in wheels/, a hook that is due for it too, and no index that could be asked."""
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    mini_here.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    make_wheel(mini_here.root / "wheels", VERSION, TAG)
    return mini_here


def test_a_file_is_locked_by_its_path_in_the_checkout_and_its_hash(here: Miniature) -> None:
    old = (here.root / "upstream.lock").read_text()
    make_wheel(here.root / "wheels", VERSION, TAG.replace("311", "312"))
    assert cli.main(["lock", *(str(path) for path in (here.root / "wheels").iterdir())]) == 0
    text = (here.root / "upstream.lock").read_text()
    assert text.startswith(old)
    assert str(here.root) not in text
    release = here.lock[VERSION]
    assert [wheel.path for wheel in release.wheels] == [f"wheels/{NAME}", f"wheels/{NAME.replace('311', '312')}"]
    assert (release.requires_python, release.torch, release.transformers) == (">=3.11", "2.0", "5.1")
    assert str(release.kernel) == "sglang-kernel==0.4.2.post1"
    assert dump_lock(here.lock) == text
    wheel = release.select("3.11", "x86_64")
    assert fetch(release, wheel, here.cache) == here.root / wheel.path


@pytest.mark.parametrize("command", ["lock", "port"])
def test_a_file_outside_the_checkout_is_locked_by_its_whole_path_and_that_is_said(
    here: Miniature, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = here.root.parent / "outside"
    make_wheel(outside, VERSION, TAG)
    assert cli.main([command, f"../outside/{NAME}"]) == 0
    assert here.lock[VERSION].wheels[0].path == str(outside / NAME)
    assert f"{outside / NAME} is outside the checkout" in capsys.readouterr().out


def test_a_wheel_is_built_of_it_that_is_what_its_version_says(here: Miniature, tmp_path: Path) -> None:
    assert cli.main(["lock", f"wheels/{NAME}"]) == 0
    assert cli.main(["build", VERSION, "--python", "3.11", "--platform", "x86_64"]) == 0
    path = here.root / "dist" / f"sglang-{VERSION}.overlay.3-{TAG}.whl"
    version = parse_wheel_filename(path.name)[1]
    assert SpecifierSet("==1.2.dev3").contains(version, prereleases=True)
    assert verify_wheel(path).differences == []
    with WheelReader(path) as wheel:
        metadata = wheel.read(f"sglang-{version}.dist-info/METADATA").decode()
        module: dict[str, object] = {}
        exec(wheel.read("sglang/_version.py"), module)
    assert f"\nVersion: {version}\n" in metadata
    assert module["__version__"] == str(version)
    assert module["__version_tuple__"] == (1, 2, "dev3", "gabc.overlay.3")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(next((tmp_path / "venv" / "lib").iterdir()) / "site-packages")
    assert [found.name for found in verify_environment(str(python)).verified] == [f"sglang {version}"]


def test_it_is_ported_from_the_file_and_the_file_is_locked(here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    here.patch.write_text(PATCH)
    assert cli.main(["port", f"wheels/{NAME}"]) == 0
    assert here.lock[VERSION].wheels[0].path == f"wheels/{NAME}"
    assert f"Applies: >=1.0,<={VERSION.partition('+')[0]}\n" in here.patch.read_text()
    assert cli.main(["lock", "--check", VERSION]) == 0
    assert "Look up sglang 1.2.dev3+gabc" in capsys.readouterr().out


def test_a_port_that_is_interrupted_finds_the_file_again(here: Miniature) -> None:
    assert cli.main(["lock", f"wheels/{NAME}"]) == 0
    release = here.lock[VERSION]
    folder = here.root / ".nox" / "porting"
    PortState(release=release).write(folder)
    assert fetch(release, PortState.read(folder).release.wheels[0], here.cache) == here.root / "wheels" / NAME


def test_a_question_of_a_port_names_the_file_again(here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    here.patch.write_text(PATCH.replace(">=1.0,<=1.1", "==1.1"))
    here.patch.rename(here.patch.with_name("1.1.patch"))
    here.write("patches/series", "choose ==1.1\n")
    assert cli.main(["port", f"wheels/{NAME}"]) == 1
    assert f"wheels/{NAME}' --take choose` takes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"), [(None, "which the port names, cannot be read"), (b"x", "the port says sha256 ")]
)
def test_a_file_that_is_gone_or_another_one_during_a_port_is_not_said_to_be_locked(
    here: Miniature, content: bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    PortState(release=read_release([f"wheels/{NAME}"], here.root)).write(here.root / ".nox" / "porting")
    path = here.root / "wheels" / NAME
    path.write_bytes(path.read_bytes()[:-1] + content) if content else path.unlink()
    assert cli.main(["port", "--continue"]) == 1
    error = capsys.readouterr().err
    assert str(path) in error
    assert said in error
    assert "`nox -s port -- --abort`" in error
    assert "lock" not in error


def test_a_file_that_is_gone_or_is_another_one_is_refused_by_its_path(here: Miniature) -> None:
    assert cli.main(["lock", f"wheels/{NAME}"]) == 0
    release = here.lock[VERSION]
    wheel, path = release.wheels[0], here.root / "wheels" / NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(FetchError, match=f"upstream.lock says {len(whole)} bytes, the file has 100") as caught:
        fetch(release, wheel, here.cache)
    assert str(path) in str(caught.value)
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(FetchError, match=f"upstream.lock says sha256 {wheel.sha256}, the file has"):
        fetch(release, wheel, here.cache)
    path.unlink()
    with pytest.raises(FetchError, match="No such file") as caught:
        fetch(release, wheel, here.cache)
    assert str(path) in str(caught.value)
    assert "Delete" not in caught.value.hint


def test_check_says_what_a_file_has_otherwise_and_goes_on(here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    make_wheel(here.root / "wheels", "1.3", TAG)
    assert cli.main(["lock", f"wheels/{NAME}", f"wheels/sglang-1.3-{TAG}.whl"]) == 0
    assert cli.main(["lock", "--check", VERSION, "1.3"]) == 0
    make_wheel(here.root / "wheels", VERSION, TAG, PINS.replace("torch==2.0", "torch==2.1"))
    (here.root / "wheels" / f"sglang-1.3-{TAG}.whl").unlink()
    capsys.readouterr()
    assert cli.main(["lock", "--check", VERSION, "1.3"]) == 1
    said = capsys.readouterr().err
    assert f"{VERSION}: torch is 2.0 in the lock, 2.1 in the files" in said
    assert f"{VERSION}: {NAME} has sha256" in said
    assert f"1.3: There is no file {here.root / 'wheels'}" in said
    assert cli.main(["lock", VERSION]) == 0
    assert here.lock[VERSION].torch == "2.1"


def test_a_release_locked_anew_says_which_files_it_no_longer_has(
    here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_wheel(here.root / "wheels", VERSION, TAG.replace("311", "312"))
    assert cli.main(["lock", f"wheels/{NAME}", str(other)]) == 0
    assert cli.main(["lock", f"wheels/{NAME}"]) == 0
    assert f"{VERSION}: {other.name} is in the lock only\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wheels/nothing.whl"], "wheels/nothing.whl is not named as a wheel is"),
        (["wheels/"], "wheels/ is not named as a wheel is"),
        ([f"elsewhere/{NAME}"], f"There is no file elsewhere/{NAME}"),
        ([f"wheels/sglang_kt-1.0-{TAG}.whl"], "is a wheel of sglang-kt, not of sglang"),
        ([f"wheels/{NAME.replace('gabc', 'gdef')}"], f"its METADATA says sglang {VERSION}"),
        ([f"wheels/{NAME.replace('linux', 'macosx_11_0')}"], "is not for CPython 3.10 to 3.13 on Linux"),
        ([f"wheels/{NAME.replace('311', '39')}"], "is not for CPython 3.10 to 3.13 on Linux"),
        ([f"wheels/{NAME}", f"again/{NAME}"], f"Two files are named {NAME}"),
        ([f"wheels/{NAME}", f"wheels/{NAME.replace('311', '312')}"], "are of different releases"),
        ([f"wheels/{NAME}", VERSION], f"sglang {VERSION} is named by its version and by a file"),
        ([f"wheels/{NAME}", "--index", "https://wheels.example/simple"], "--index is for a VERSION"),
        (["wheels/sglang-1.5-py3-none-any.whl"], "cannot be read as a wheel"),
        ([f"wheels/sglang-1.1-{TAG}.whl"], "sglang 1.1 is locked from the package index"),
    ],
)
def test_what_cannot_be_locked_is_refused_and_nothing_is_written(
    here: Miniature, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels = here.root / "wheels"
    for name in (NAME.replace("gabc", "gdef"), NAME.replace("linux", "macosx_11_0"), NAME.replace("311", "39")):
        (wheels / name).write_bytes((wheels / NAME).read_bytes())
    make_wheel(here.root / "again", VERSION, TAG)
    make_wheel(wheels, VERSION, TAG.replace("311", "312"), PINS.replace("transformers==5.1", "transformers==5.2"))
    make_wheel(wheels, "1.1", TAG)
    (wheels / "sglang-1.5-py3-none-any.whl").write_bytes(b"not a wheel")
    before = here.content()
    assert cli.main(["lock", *words]) != 0
    assert said in capsys.readouterr().err
    assert here.content() == before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Requires-Dist: torch==2.0\n", "Requires-Dist: torch = 2.0\n", "requires 'torch = 2.0', which cannot be read"),
        ("Requires-Python: >=3.11\n", "Requires-Python: 3.11 or newer\n", "'3.11 or newer', which cannot be read"),
    ],
)
def test_metadata_that_cannot_be_read_is_refused_before_it_is_locked(
    here: Miniature, old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = here.root / "wheels" / NAME
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != "sglang/"}
    metadata = f"sglang-{VERSION}.dist-info/METADATA"
    assert old.encode() in files[metadata]
    files[metadata] = files[metadata].replace(old.encode(), new.encode())
    del files[f"sglang-{VERSION}.dist-info/RECORD"]
    write_wheel(path, files)
    before = here.content()
    assert cli.main(["lock", f"wheels/{NAME}"]) == 1
    assert said in capsys.readouterr().err
    assert here.content() == before


def test_port_takes_one_release(here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    make_wheel(here.root / "wheels", "1.3", TAG)
    assert cli.main(["port", f"wheels/{NAME}", f"wheels/sglang-1.3-{TAG}.whl"]) == 2
    assert f"A port is to one release, not to {VERSION} and 1.3." in capsys.readouterr().err
    with pytest.raises(OverlayError):
        PortState.read(here.root / ".nox" / "porting")


@pytest.mark.parametrize("command", ["lock", "port"])
def test_a_file_with_a_damaged_member_is_not_locked(
    here: Miniature, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, before = here.root / "wheels" / NAME, (here.root / "upstream.lock").read_bytes()
    crc = zlib.crc32(upstream_files(VERSION)["sglang/native.so"]).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(crc, bytes(4)))
    assert cli.main([command, f"wheels/{NAME}"]) == 1
    assert "sglang/native.so is damaged" in capsys.readouterr().err
    assert (here.root / "upstream.lock").read_bytes() == before


def test_the_lock_is_written_beside_the_old_one(here: Miniature) -> None:
    lock = here.root / "upstream.lock"
    before, old = lock.read_bytes(), here.root / "old.lock"
    os.link(lock, old)
    assert cli.main(["lock", f"wheels/{NAME}"]) == 0
    assert old.read_bytes() == before != lock.read_bytes()


def test_a_lock_that_cannot_be_written_stays_as_it_was(here: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = here.root / "upstream.lock"
    before, write = lock.read_bytes(), Path.write_bytes

    def stop(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", stop)
    with contextlib.suppress(KeyboardInterrupt):
        cli.main(["lock", f"wheels/{NAME}"])
    assert lock.read_bytes() == before


def test_metadata_that_is_not_utf_8_is_one_error(here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    make_wheel(here.root / "wheels", VERSION, TAG, f"{PINS}Summary: sch\N{LATIN SMALL LETTER O WITH DIAERESIS}n\n")
    path = here.root / "wheels" / NAME
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith(("/", "RECORD"))}
    name = f"sglang-{VERSION}.dist-info/METADATA"
    write_wheel(path, {**files, name: files[name].decode().encode("latin-1")})
    assert cli.main(["lock", f"wheels/{NAME}"]) == 1
    said = capsys.readouterr().err
    assert NAME in said
    assert "METADATA: 'utf-8' codec can't decode" in said
