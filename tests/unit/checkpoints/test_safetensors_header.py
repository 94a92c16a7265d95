from __future__ import annotations

import struct
from pathlib import Path

import pytest
from overlay_tools.checkpoints.safetensors_header import Tensor, dump_shard, read_shard

LIMIT = 100_000_000  # bytes of a header: what the format's own reader takes
HEADER = b'{"a": {"data_offsets": [0, 4]}, "__metadata__": {"format": "pt"}}'


def shard(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(dump_shard({"a": Tensor("F32", [2], bytes(8)), "b": Tensor("U8", [3], bytes(3))}))
    assert read_shard(path) == (["a", "b"], 11)


@pytest.mark.parametrize(("held", "said"), [(5, "holds 5 bytes .* says 4"), (3, "holds 3 bytes .* says 4"), (4, "")])
def test_a_shard_holds_what_its_header_says_and_no_more(tmp_path: Path, held: int, said: str) -> None:
    path = shard(tmp_path / "x.safetensors", HEADER, bytes(held))
    if said:
        with pytest.raises(ValueError, match=said):
            read_shard(path)
    else:
        assert read_shard(path) == (["a"], 4)


@pytest.mark.parametrize(("length", "is_read"), [(LIMIT, True), (LIMIT + 1, False)])
def test_a_header_is_as_long_as_readers_of_the_format_take(tmp_path: Path, length: int, is_read: bool) -> None:
    path = shard(tmp_path / "x.safetensors", HEADER.ljust(length), bytes(4))
    if is_read:
        assert read_shard(path) == (["a"], 4)
    else:
        with pytest.raises(ValueError, match="its header is broken"):
            read_shard(path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 200_000,
        b'{"a": {}}',
        b'{"a": []}',
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": [0, 1e999]}}',
        b'{"a": {"data_offsets": [0, "x"]}}',
    ],
)
def test_a_broken_header_is_one_error(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(ValueError, match="its header is broken"):
        read_shard(shard(tmp_path / "x.safetensors", header, b""))


def test_a_length_beyond_the_file_is_one_error(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.safetensors", HEADER, b"")
    path.write_bytes(struct.pack("<Q", len(HEADER) + 1) + HEADER)
    with pytest.raises(ValueError, match="its header is broken"):
        read_shard(path)
