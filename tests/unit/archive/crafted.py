"""Archives made byte by byte, to say what no library would write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unit.conftest import upstream_files

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
FULL = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Header:
    """What one of a member's two headers says of it."""

    name: bytes
    crc: int
    packed: int
    size: int
    method: int = 8
    flags: int = 0
    version: int = 20
    extra: bytes = b""
    comment: bytes = b""
    attributes: int = 0o100644 << 16
    disk: int = 0


@dataclass(frozen=True, kw_only=True)
class Member:
    """A member: its bytes, what stands before it and after it, and what its two headers say."""

    data: bytes
    local: Header
    central: Header
    before: bytes = b""
    after: bytes = b""
    offset: int = 0  # how far from its place the directory says it is

    def but(self, **changes: object) -> Member:
        """Return it with both headers changed."""
        return self.but_local(**changes).but_central(**changes)

    def but_local(self, **changes: object) -> Member:
        return replace(self, local=replace(self.local, **changes))  # type: ignore[arg-type]

    def but_central(self, **changes: object) -> Member:
        return replace(self, central=replace(self.central, **changes))  # type: ignore[arg-type]


def member(name: str | bytes, content: bytes) -> Member:
    """Return a deflated member."""
    raw = name.encode() if isinstance(name, str) else name
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(content) + packer.flush()
    flags = 0 if raw.isascii() else 0x800
    header = Header(name=raw, crc=zlib.crc32(content), packed=len(data), size=len(content), flags=flags)
    return Member(data=data, local=header, central=header)


def stored(name: str, content: bytes) -> Member:
    """Return a member that is not compressed."""
    return replace(member(name, content), data=content).but(method=0, packed=len(content))


def zip64(one: Member) -> Member:
    """Return a member whose sizes are in ZIP64's extra fields, and nowhere else."""
    extra = struct.pack("<2H2Q", 1, 16, one.central.size, one.central.packed)
    return one.but(packed=FULL, size=FULL, extra=extra, version=45)


def streamed(one: Member, *, wide: bool = False) -> Member:
    """Return a member as a program writes it that cannot go back: its sizes follow it."""
    sizes = struct.pack("<L2Q" if wide else "<3L", one.central.crc, one.central.packed, one.central.size)
    one = one.but_central(flags=one.central.flags | 8)
    if wide:
        extra = struct.pack("<2H2Q", 1, 16, 0, 0)
        one = one.but_local(flags=one.central.flags, crc=0, packed=FULL, size=FULL, extra=extra, version=45)
    else:
        one = one.but_local(flags=one.central.flags, crc=0, packed=0, size=0)
    return replace(one, after=b"PK\7\10" + sizes)


def upstream() -> list[Member]:
    """Return the members of a miniature of upstream's wheel, with a RECORD of their names alone."""
    files = upstream_files("1.0")
    record = "".join(f"{name},,\n" for name in [*files, "sglang-1.0.dist-info/RECORD"])
    return [member(name, data) for name, data in {**files, "sglang-1.0.dist-info/RECORD": record.encode()}.items()]


def craft(
    path: Path,
    members: Sequence[Member],
    *,
    tail: bytes = b"",
    count: int = 0,
    wide: bool = False,
    end: tuple[int, int, int] = (0, 0, 0),
    comment: bytes = b"",
) -> Path:
    """Write an archive.

    Parameters: `tail`, what stands between the members and their directory; `count`, how many members more the end
    says; `wide`, whether the end is a ZIP64 one; `end`, what is added to what a ZIP64 end says of the number of
    members, of the directory's size and of where it starts; `comment`, what follows the end.
    """
    body, central = b"", b""
    for one in members:
        body += one.before
        start = len(body)
        low, high = one.local, one.central
        body += LOCAL.pack(
            b"PK\3\4", low.version, low.flags, low.method, 0, 0x21, low.crc, low.packed, low.size,
            len(low.name), len(low.extra),
        ) + low.name + low.extra + one.data + one.after  # fmt: skip
        central += CENTRAL.pack(
            b"PK\1\2", 3 << 8 | 20, high.version, high.flags, high.method, 0, 0x21, high.crc, high.packed, high.size,
            len(high.name), len(high.extra), len(high.comment), high.disk, 0, high.attributes, start + one.offset,
        ) + high.name + high.extra + high.comment  # fmt: skip
    body += tail
    number, size, start = len(members) + count, len(central), len(body)
    data = body + central
    if wide:
        more = (number + end[0],) * 2 + (size + end[1], start + end[2])
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, *more)
        data += record + struct.pack("<4sLQL", b"PK\6\7", 0, len(data), 1)
        number, size, start = 0xFFFF, FULL, FULL
    data += END.pack(b"PK\5\6", 0, 0, number, number, size, start, len(comment)) + comment
    path.write_bytes(data)
    return path
