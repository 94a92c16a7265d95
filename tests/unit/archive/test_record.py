from __future__ import annotations

from pathlib import Path

import pytest
from installer.records import RecordEntry
from overlay_tools.archive.reader import WheelReader
from overlay_tools.archive.record import format_record, hash_of, parse_record
from overlay_tools.errors import WheelError

from unit.conftest import upstream_files, write_wheel

PATHS = [
    "sglang/b.py",
    "sglang/a.py",
    "sglang/übersetzung.txt",
    'sglang/a, "b".py',
    "sglang/two\nlines.py",
    "sglang/two\r\nlines.py",
]


def test_what_is_written_reads_the_same_and_keeps_its_order() -> None:
    entries = [RecordEntry(path, hash_of(path.encode()), len(path.encode())) for path in PATHS]
    entries.append(RecordEntry("x.dist-info/RECORD", None, None))
    text = format_record(entries)
    assert list(parse_record(text, "RECORD").values()) == entries
    assert format_record(parse_record(text, "RECORD").values()) == text


def test_the_text_is_what_the_wheel_format_says() -> None:
    empty = RecordEntry("sglang/ä, b.py", hash_of(b""), 0)
    assert format_record([empty, RecordEntry("x.dist-info/RECORD", None, None)]).decode() == (
        '"sglang/ä, b.py",sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\nx.dist-info/RECORD,,\n'
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a,b\n", "RECORD: entry 1: 'a,b': .*expected 3 elements, got 2"),
        (b"a,,\nb,,\nc,,,\n", "entry 3: 'c,,,': .*got 4"),
        (b"a,,\n\nb,,\n", "entry 2: '': .*got 0"),
        (b"a,sha256=x,1\na,sha256=x,1\n", "entry 2: 'a,sha256=x,1': the path is listed twice"),
        (b"a,sha256,1\n", "entry 1: .*hash"),
        (b"a,sha0=x,1\n", "entry 1: .*hash"),
        (b"a,sha256=x,one\n", "entry 1: .*size"),
        (b"a,,\n,,\n", "entry 2: .*path"),
        (b"a,,\n\xff,,\n", "RECORD: .*utf-8"),
        (b"a" * 200_000 + b",,\n", "entry 1: field larger than field limit"),
    ],
)
def test_a_malformed_record_is_refused_with_the_number_of_the_entry(data: bytes, said: str) -> None:
    with pytest.raises(WheelError, match=said):
        parse_record(data, "RECORD")


def test_the_record_of_a_wheel_is_named_with_the_wheel(tmp_path: Path) -> None:
    files = upstream_files("1.0")
    with WheelReader(write_wheel(tmp_path / "good.whl", files)) as wheel:
        assert list(wheel.record()) == [*files, "sglang-1.0.dist-info/RECORD"]
        assert wheel.record()["sglang/loader.py"].size == len(files["sglang/loader.py"])
    bad = write_wheel(tmp_path / "bad.whl", {**files, 'sglang/a",b': b""})
    with (
        WheelReader(bad) as wheel,
        pytest.raises(WheelError, match=r"bad\.whl: sglang-1\.0\.dist-info/RECORD: entry 11: "),
    ):
        wheel.record()
