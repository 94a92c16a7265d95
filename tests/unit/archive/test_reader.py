from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import pytest
from overlay_tools.archive.reader import WheelReader
from overlay_tools.errors import WheelError

from unit.conftest import upstream_files, write_wheel


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_wheel(tmp_path / "base.whl", upstream_files("1.0"))


@pytest.mark.parametrize(
    "name", ["../evil.py", "sglang/../../evil.py", "/evil.py", "sglang\\..\\evil.py", "C:evil.py", "sglang/.."]
)
def test_a_member_that_escapes_is_refused(tmp_path: Path, name: str) -> None:
    path = write_wheel(tmp_path / "bad.whl", {**upstream_files("1.0"), name: b"evil"})
    with pytest.raises(WheelError, match="would be written outside the folder"):
        WheelReader(path)


def test_a_member_that_appears_twice_is_refused(tmp_path: Path) -> None:
    path = write_wheel(tmp_path / "bad.whl", upstream_files("1.0"))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("sglang/loader.py", b"other")
    with pytest.raises(WheelError, match=r"sglang/loader\.py appears twice"):
        WheelReader(path)


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    path = write_wheel(tmp_path / "bad.whl", upstream_files("1.0"))
    link = zipfile.ZipInfo("sglang/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(WheelError, match="sglang/link is a symbolic link"):
        WheelReader(path)


@pytest.mark.parametrize("keep", [0, 30, 200, -30])
def test_a_truncated_wheel_is_refused(base: Path, keep: int) -> None:
    base.write_bytes(base.read_bytes()[:keep])
    with pytest.raises(WheelError, match="cannot be read as a wheel"):
        WheelReader(base)


def test_a_damaged_member_is_named(base: Path) -> None:
    with zipfile.ZipFile(base) as archive:
        at = archive.getinfo("sglang/loader.py").header_offset + 30 + len("sglang/loader.py") + 5
    data = bytearray(base.read_bytes())
    data[at] ^= 0xFF
    base.write_bytes(data)
    with WheelReader(base) as wheel, pytest.raises(WheelError, match=r"sglang/loader\.py is damaged"):
        wheel.read("sglang/loader.py")


def test_a_file_that_is_not_a_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sglang/x.py", b"")
    with pytest.raises(WheelError, match=r"0 \.dist-info folders"):
        WheelReader(path)
    with pytest.raises(WheelError, match=r"There is no file .*absent\.whl\.$"):
        WheelReader(tmp_path / "absent.whl")
    with pytest.raises(WheelError, match=": Is a directory"):
        WheelReader(tmp_path)
