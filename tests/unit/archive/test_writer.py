from __future__ import annotations

import io
import stat
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from installer.records import RecordEntry
from overlay_tools.archive import reader
from overlay_tools.archive.reader import WheelReader
from overlay_tools.archive.record import format_record, hash_of
from overlay_tools.archive.writer import WheelWriter
from overlay_tools.errors import WheelError
from overlay_tools.patches.series import load_series
from overlay_tools.subprocesses import run
from overlay_tools.wheels.builder import build_sglang
from overlay_tools.wheels.verify import verify_wheel

from unit.archive.crafted import Member, craft, member, streamed, upstream, zip64
from unit.conftest import Miniature, upstream_files, write_wheel

PURE = "py3-none-any"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_wheel(tmp_path / "base.whl", upstream_files("1.0"))


def rewrite(base: Path, names: dict[str, str], added: dict[str, bytes]) -> zipfile.ZipFile:
    stream = io.BytesIO()
    writer = WheelWriter(stream)
    with WheelReader(base) as wheel:
        writer.copy(wheel, names)
    for name, data in added.items():
        writer.add(name, data)
    writer.finish()
    assert writer.size == len(stream.getvalue())
    return zipfile.ZipFile(stream)


def test_what_is_copied_keeps_content_mode_date_and_compressed_bytes(base: Path) -> None:
    with zipfile.ZipFile(base) as before:
        kept = [name for name in before.namelist() if name != "sglang/loader.py"]
        after = rewrite(base, {name: name for name in kept}, {"sglang/new.py": b"new"})
        assert after.testzip() is None
        assert after.namelist() == [*kept, "sglang/new.py"]
        for name in kept:
            old, new = before.getinfo(name), after.getinfo(name)
            assert after.read(name) == before.read(name)
            for field in ("external_attr", "date_time", "compress_type", "compress_size", "CRC", "extra", "flag_bits"):
                assert getattr(old, field) == getattr(new, field)
    assert after.read("sglang/new.py") == b"new"
    assert stat.S_IMODE(after.getinfo("sglang/new.py").external_attr >> 16) == 0o644


def test_a_member_can_be_renamed_to_a_longer_and_a_shorter_name(base: Path) -> None:
    after = rewrite(base, {"sglang/loader.py": "l.py", "sglang/native.so": "sglang/" + "n" * 90 + "ä.so"}, {})
    assert after.testzip() is None
    with zipfile.ZipFile(base) as before:
        assert after.read("l.py") == before.read("sglang/loader.py")
        assert after.read("sglang/" + "n" * 90 + "ä.so") == before.read("sglang/native.so")


@pytest.mark.parametrize(
    "form",
    [
        zip64,
        streamed,
        lambda one: streamed(one, wide=True),
        lambda one: one.but(extra=b"UT\5\0\1\0\0\0\0"),
        lambda one: one.but_central(extra=b"UT\5\0\1\0\0\0\0", comment=b"more"),
        lambda one: one.but(version=10),
    ],
    ids=["zip64", "streamed", "streamed zip64", "with times", "with a comment", "another version"],
)
def test_every_form_of_a_member_is_written_in_the_plain_one(tmp_path: Path, form: Callable[[Member], Member]) -> None:
    members = [form(one) if number % 2 else one for number, one in enumerate(upstream())]
    names = [name for name in upstream_files("1.0") if name != "sglang/version.py"]
    after, plain = (
        rewrite(craft(tmp_path / "base.whl", given, wide=given is members), {name: name for name in names}, {})
        for given in (members, upstream())
    )
    assert after.testzip() is None
    assert {name: after.read(name) for name in names} == {name: upstream_files("1.0")[name] for name in names}
    assert after.fp is not None
    assert plain.fp is not None
    for archive in (after, plain):
        archive.fp.seek(0)  # type: ignore[union-attr]
    assert after.fp.read() == plain.fp.read()


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_wheel_made_of_a_zip64_one_is_installed(mini: Miniature, tmp_path: Path, installer: str) -> None:
    members = [streamed(one, wide=True) if number % 2 else zip64(one) for number, one in enumerate(real_members("1.2"))]
    base = mini.lock_wheel("1.2", craft(mini.root / f"sglang-1.2-{PURE}.whl", members, wide=True))
    release = mini.lock["1.2"]
    mini.patch.write_text(mini.patch.read_text().replace("<=1.1", "<=1.2"))
    built = build_sglang(mini.project, release, release.wheels[0], base, load_series(mini.root / "patches"))
    assert verify_wheel(built.path).differences == []
    target = str(tmp_path / "site")
    command = [sys.executable, "-m", installer, *(["pip"] if installer == "uv" else [])]
    options = ["--no-deps", "--no-index", "--target", target, *(["--offline"] if installer == "uv" else ["--no-input"])]
    run([*command, "install", *options, built.path], env=None)
    assert (tmp_path / "site/sglang/native.so").read_bytes() == upstream_files("1.2")["sglang/native.so"]
    assert "choose(config)" in (tmp_path / "site/sglang/loader.py").read_text()


def real_members(version: str) -> list[Member]:
    """Return the members of a wheel for every machine, with a RECORD."""
    files = upstream_files(version)
    files[f"sglang-{version}.dist-info/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {PURE}\n".encode()
    entries = [RecordEntry(name, hash_of(data), len(data)) for name, data in files.items()]
    record = f"sglang-{version}.dist-info/RECORD"
    files[record] = format_record([*entries, RecordEntry(record, None, None)])
    return [member(name, data) for name, data in files.items()]


def test_an_archive_holds_as_many_members_as_the_format_can_count() -> None:
    writer = WheelWriter(io.BytesIO())
    for number in range(0xFFFE):
        writer.add(str(number), b"")
    with pytest.raises(WheelError, match="too large"):
        writer.add("more", b"")
    writer.finish()


class Counted(io.RawIOBase):
    """A stream that keeps its end alone."""

    def write(self, data) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001
        self.end = bytes(data)
        return len(data)


def test_an_archive_ends_where_the_format_can_still_say_it() -> None:
    directory = 46 + len("sglang/x.py")
    header = 30 + len("sglang/x.py")
    for free, fits in ((1, True), (0, False)):
        stream = Counted()
        writer = WheelWriter(stream)  # type: ignore[arg-type]
        writer.size = 0xFFFFFFFF - directory - header - free
        writer.add("sglang/x.py", b"")
        if fits:
            writer.finish()
            assert struct.unpack("<4s4H2LH", stream.end)[-2] == 0xFFFFFFFF - directory - 1
        else:
            with pytest.raises(WheelError, match="too large"):
                writer.finish()
    writer.size = 0xFFFFFFFF
    with pytest.raises(WheelError, match="too large"):
        writer.add("sglang/y.py", b"")


@pytest.mark.parametrize("size", [0xFFFFFFFE, 0xFFFFFFFF, 1 << 32])
def test_a_member_that_only_zip64_could_hold_is_refused(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_ALWAYS_FITS", 1 << 40)
    huge = zip64(member("sglang/huge", b"").but(size=size))
    path = craft(tmp_path / "base.whl", [*upstream(), huge])
    if size < 0xFFFFFFFF:
        rewrite(path, {"sglang/huge": "sglang/huge"}, {})
    else:
        with pytest.raises(WheelError, match="too large"):
            rewrite(path, {"sglang/huge": "sglang/huge"}, {})


def test_an_archive_has_no_dead_bytes(base: Path) -> None:
    archive = rewrite(base, {"sglang/loader.py": "sglang/loader.py", "sglang/native.so": "n.so"}, {"sglang/x.py": b"x"})
    assert archive.fp is not None
    end = 0
    for info in archive.infolist():
        assert info.header_offset == end
        end += 30 + len(info.filename) + info.compress_size
    assert archive.start_dir == end


def test_a_name_written_twice_is_refused(base: Path) -> None:
    with pytest.raises(WheelError) as caught:
        rewrite(base, {"sglang/loader.py": "sglang/loader.py"}, {"sglang/loader.py": b"", "sglang/other.py": b""})
    assert caught.value.problems == ("sglang/loader.py would appear twice.",)
