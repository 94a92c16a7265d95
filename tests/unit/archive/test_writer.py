from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pytest
from overlay_tools.archive.reader import WheelReader
from overlay_tools.archive.writer import WheelWriter
from overlay_tools.errors import WheelError

from unit.conftest import upstream_files, write_wheel


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


def test_members_written_as_a_stream_keep_their_descriptors(tmp_path: Path) -> None:
    class Unseekable(io.RawIOBase):
        def __init__(self) -> None:
            self.parts: list[bytes] = []

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001
            self.parts.append(bytes(data))
            return len(data)

    stream = Unseekable()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in upstream_files("1.0").items():
            archive.writestr(name, data)
    path = tmp_path / "streamed.whl"
    path.write_bytes(b"".join(stream.parts))
    names = [name for name in upstream_files("1.0") if name != "sglang/version.py"]
    after = rewrite(path, {name: name for name in names}, {})
    assert after.testzip() is None
    assert {name: after.read(name) for name in names} == {name: upstream_files("1.0")[name] for name in names}


def test_an_archive_has_no_dead_bytes(base: Path) -> None:
    archive = rewrite(base, {"sglang/loader.py": "sglang/loader.py", "sglang/native.so": "n.so"}, {"sglang/x.py": b"x"})
    assert archive.fp is not None
    end = 0
    for info in archive.infolist():
        assert info.header_offset == end
        end += 30 + len(info.filename) + info.compress_size
    assert archive.start_dir == end


def test_a_name_written_twice_is_refused(base: Path) -> None:
    with pytest.raises(WheelError, match=r"sglang/loader\.py would appear twice"):
        rewrite(base, {"sglang/loader.py": "sglang/loader.py"}, {"sglang/loader.py": b""})
