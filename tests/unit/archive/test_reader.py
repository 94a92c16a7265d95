from __future__ import annotations

import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from overlay_tools.archive.reader import WheelReader
from overlay_tools.errors import WheelError

from unit.archive.crafted import Member, craft, member, stored, streamed, upstream, zip64
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


@pytest.mark.parametrize("names", [["sglang/x.py"], []])
def test_a_file_that_is_not_a_wheel_is_refused(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "plain.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    with pytest.raises(WheelError, match=r"0 \.dist-info folders"):
        WheelReader(path)
    with pytest.raises(WheelError, match=r"There is no file .*absent\.whl\.$"):
        WheelReader(tmp_path / "absent.whl")
    with pytest.raises(WheelError, match=": Is a directory"):
        WheelReader(tmp_path)


def refused(path: Path) -> str:
    """Expect that a wheel is not opened, and return what is said of it."""
    with pytest.raises(WheelError) as caught:
        WheelReader(path)
    assert all(str(path) in problem for problem in caught.value.problems)
    assert caught.value.hint
    return str(caught.value)


def refused_with(tmp_path: Path, *names: str) -> str:
    return refused(craft(tmp_path / "bad.whl", [*upstream(), *(member(name, b"") for name in names)]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sglang/./loader.py", "is not the plain way to write this path"),
        ("./sglang/loader.py", "is not the plain way to write this path"),
        ("sglang//loader.py", "is not the plain way to write this path"),
        ("sglang/more/.", "is not the plain way to write this path"),
        ("sglang/more//", "is not the plain way to write this path"),
        ("sglang/a/../b.py", "would be written outside"),
        ("sglang/a:b.py", "would be written outside"),
        ("sglang/\nb.py", "cannot be printed"),
        ("sglang/\x7fb.py", "cannot be printed"),
        ("sglang/a\u202eyp.py", "cannot be printed"),
        ("sglang/loader.py/more.py", "sglang/loader.py is a file and also a folder"),
        ("sglang/loader.py/", "sglang/loader.py is a file and also a folder"),
        ("sglang", "sglang is a file and also a folder"),
    ],
)
def test_a_path_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, name: str, said: str) -> None:
    assert said in refused_with(tmp_path, name)


def test_a_name_cut_by_a_nul_byte_is_refused(tmp_path: Path) -> None:
    assert "would be written outside" in refused_with(tmp_path, "sglang/more.py\0.txt")


@pytest.mark.parametrize(
    "name",
    [
        ".git/config",
        "sglang/.git/config",
        "sglang/.git",
        "sglang/.GIT/hooks/post-commit",
        "sglang/.git /config",
        "sglang/.git. ./config",
        "sglang/GIT~1/config",
        "sglang-1.0.dist-info/.git/config",
        "sglang-1.0.data/purelib/sglang/.git/config",
    ],
)
def test_a_git_repository_in_a_wheel_is_refused(tmp_path: Path, name: str) -> None:
    assert f"{name!r} is part of a git repository" in refused_with(tmp_path, name)


def test_a_look_alike_of_gits_folder_is_refused(tmp_path: Path) -> None:
    assert "cannot be printed" in refused_with(tmp_path, "sglang/.g\u200cit/config")


@pytest.mark.parametrize(
    "names",
    [
        ["HEAD", "objects/x", "refs/x", "config"],
        ["head", "OBJECTS/", "Refs/heads/main"],
        ["HEAD", "commondir", "config"],
    ],
)
def test_a_folder_that_git_takes_for_a_repository_is_refused(tmp_path: Path, names: list[str]) -> None:
    said = refused_with(tmp_path, *(f"sglang/deep/{name}" for name in names))
    assert "sglang/deep is a git repository" in said


@pytest.mark.parametrize("names", [["HEAD", "config", "refs/x"], ["HEAD", "objects/x"], ["objects/x", "refs/x"]])
def test_a_folder_that_git_takes_for_none_is_read(tmp_path: Path, names: list[str]) -> None:
    path = craft(tmp_path / "good.whl", [*upstream(), *(member(f"sglang/{name}", b"x") for name in names)])
    with WheelReader(path) as wheel:
        assert wheel.read(f"sglang/{names[0]}") == b"x"


@pytest.mark.parametrize(
    "name",
    [
        ".gitattributes",
        ".gitmodules",
        "evil.pth",
        "sitecustomize.py",
        ".hidden/x.py",
        "-x/x.py",
        "1.0/x.py",
        "other-1.0.data/scripts/x",
        "sglang-1.0.data",
        "sglang.",
        "sglang./x.py",
    ],
)
def test_what_is_in_no_package_is_refused(tmp_path: Path, name: str) -> None:
    assert f"{name!r} is in no package of the wheel" in refused_with(tmp_path, name)


def test_what_real_wheels_hold_is_read(tmp_path: Path) -> None:
    names = [
        "tools/get_version_tag.py",
        "sglang.libs/libgomp-1.so",
        "sglang/.gitignore",
        "sglang/.gitattributes",
        "sglang/git/x.py",
        "sglang/.github/x.yml",
        "sglang/N=512,device_name=H20,block_shape=[128, 128].json",
        "sglang/Loader.py",
        "sglang-1.0.data/scripts/sgl",
        "übersetzung/x.py",
    ]
    with WheelReader(craft(tmp_path / "good.whl", [*upstream(), *(member(name, b"x") for name in names)])) as wheel:
        assert [wheel.read(name) for name in names] == [b"x"] * len(names)


def test_a_module_at_the_top_is_read_where_it_is_not_sglangs_wheel(tmp_path: Path) -> None:
    members = [member("plugin.pth", b"import x"), member("plugin-1.dist-info/RECORD", b"")]
    with WheelReader(craft(tmp_path / "plugin.whl", members)) as wheel:
        assert wheel.read("plugin.pth") == b"import x"


@pytest.mark.parametrize(("count", "shown"), [(9, 9), (10, 10), (11, 11), (30, 11)])
def test_many_faults_are_counted(tmp_path: Path, count: int, shown: int) -> None:
    said = refused_with(tmp_path, *(f"x{number}.pth" for number in range(count))).splitlines()
    assert len(said) == shown
    if count > 10:
        assert f"{count - 10} more of its members are refused" in said[-1]


LOADER = 3  # which member of upstream() is sglang/loader.py


def changed(tmp_path: Path, change: Callable[[Member], Member]) -> Path:
    """Return a wheel whose member sglang/loader.py is not as it should be."""
    members = upstream()
    assert members[LOADER].local.name == b"sglang/loader.py"
    members[LOADER] = change(members[LOADER])
    return craft(tmp_path / "bad.whl", members)


def extra(kind: int, data: bytes) -> bytes:
    return struct.pack("<2H", kind, len(data)) + data


UNICODE_PATH = extra(0x7075, b"\1" + struct.pack("<L", zlib.crc32(b"sglang/loader.py")) + b"sglang/other.py")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one.but_local(name=b"sglang/hidden.py"), "another name at its own place"),
        (lambda one: one.but_local(name=b"sglang/loader.pyc"), "another name at its own place"),
        (lambda one: one.but_local(method=0), "other sizes, flags or another checksum"),
        (lambda one: one.but_local(flags=0x800), "other sizes, flags or another checksum"),
        (lambda one: one.but_local(crc=1), "other sizes, flags or another checksum"),
        (lambda one: one.but_local(size=1), "other sizes, flags or another checksum"),
        (lambda one: one.but_local(packed=1), "other sizes, flags or another checksum"),
        (lambda one: one.but_local(crc=0, packed=0, size=0), "other sizes, flags or another checksum"),
        (lambda one: one.but_local(packed=0xFFFFFFFF, size=0xFFFFFFFF), "other sizes, flags or another checksum"),
        (lambda one: zip64(one).but_central(size=one.central.size + 1, extra=b""), "other sizes"),
        (lambda one: one.but_local(extra=UNICODE_PATH), "has a second name"),
        (lambda one: one.but_central(extra=UNICODE_PATH), "has a second name"),
        (lambda one: one.but_local(extra=b"\1\0\x20\0short"), "extra fields of sglang/loader.py are cut short"),
        (lambda one: one.but_local(extra=b"\1"), "extra fields of sglang/loader.py are cut short"),
        (lambda one: replace(one, before=b"x"), "bytes that belong to no member"),
        (lambda one: replace(one, after=b"x"), "bytes that belong to no member"),
        (lambda one: replace(one, offset=-4), "bytes that belong to no member"),
        (lambda one: replace(streamed(one), after=b""), "the size or the checksum after sglang/loader.py"),
        (lambda one: replace(streamed(one), after=streamed(one).after + b"x"), "the size or the checksum after"),
        (lambda one: replace(streamed(one), after=b"PK\7\10" + bytes(12)), "the size or the checksum after"),
        (lambda one: one.but(flags=1), "is encrypted"),
        (lambda one: one.but(flags=0x40), "is encrypted"),
        (lambda one: one.but(flags=0x2000), "is encrypted"),
        (lambda one: one.but(method=12), "is encrypted, or compressed by something other than deflate"),
        (lambda one: one.but(method=0), "has two sizes"),
        (lambda one: one.but_central(disk=1), "is on another disk"),
        (lambda one: one.but_central(attributes=0o120777 << 16), "is a symbolic link"),
        (lambda one: one.but_central(attributes=0o010644 << 16), "is neither a file nor a folder"),
        (lambda one: one.but_central(attributes=0o040755 << 16), "is neither a file nor a folder"),
        (lambda one: one.but(name=b"sglang/loader/"), "is neither a file nor a folder"),
        (lambda one: one.but(name=b"sglang/loader/").but_central(attributes=0), "is a folder with a content"),
        (lambda one: one.but(name=b"sglang/l\x94der.py"), "has a name that is not said to be UTF-8"),
        (lambda one: one.but(name=b"sglang/l\xffder.py", flags=0x800), "cannot be read as a wheel"),
    ],
)
def test_a_member_that_is_not_what_its_directory_says_is_refused(
    tmp_path: Path, change: Callable[[Member], Member], said: str
) -> None:
    assert said in refused(changed(tmp_path, change))


def test_a_member_inside_another_is_refused(tmp_path: Path) -> None:
    inner = member("sglang/inner.py", b"inner")
    alone = craft(tmp_path / "inner.zip", [inner]).read_bytes()
    outer = stored("sglang/outer.py", alone[: alone.index(b"PK\1\2")])
    members = [*upstream(), outer, inner]
    back = len(outer.data) + 30 + len(outer.local.name)
    path = craft(tmp_path / "bad.whl", [*members[:-1], replace(inner, offset=-len(outer.data))])
    assert back
    assert "bytes that belong to no member, or to two" in refused(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"comment": b"x"}, "a comment, or bytes after its end"),
        ({"tail": b"x"}, "bytes that belong to no member"),
        ({"count": 1}, "do not agree with its directory"),
        ({"count": -1}, "do not agree with its directory"),
        ({"wide": True, "end": (1, 0, 0)}, "do not agree"),
        ({"wide": True, "count": 1, "end": (-1, 0, 0)}, ""),
    ],
)
def test_what_the_end_says_must_be_so(tmp_path: Path, options: dict[str, object], said: str) -> None:
    path = craft(tmp_path / "odd.whl", upstream(), **options)  # type: ignore[arg-type]
    if said:
        assert said in refused(path)
    else:
        WheelReader(path).__exit__(None, None, None)


def test_a_zip64_record_that_says_another_size_of_itself_is_refused(tmp_path: Path) -> None:
    path = craft(tmp_path / "odd.whl", upstream(), wide=True)
    data = bytearray(path.read_bytes())
    data[-94] += 1  # after its signature, before its locator of 20 bytes and the end of 22
    path.write_bytes(data)
    assert refused(path)


@pytest.mark.parametrize(
    "change", [lambda data: b"#!/bin/sh\n" + data, lambda data: data + b"\n"], ids=["head", "tail"]
)
def test_bytes_before_or_after_the_archive_are_refused(base: Path, change: Callable[[bytes], bytes]) -> None:
    base.write_bytes(change(base.read_bytes()))
    assert "bytes" in refused(base)


def test_a_comment_that_is_said_to_follow_the_end_is_refused(base: Path) -> None:
    base.write_bytes(base.read_bytes()[:-2] + b"\5\0")
    assert "a comment, or bytes after its end" in refused(base)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one.but(crc=1), "another size or checksum"),
        (lambda one: one.but(size=one.central.size + 1), "another size or checksum"),
        (lambda one: one.but(size=one.central.size - 1), "another size or checksum"),
        (lambda one: one.but(size=one.central.size - 2), "do not end where it does"),
        (lambda one: replace(one, data=one.data + b"x").but(packed=len(one.data) + 1), "do not end where it does"),
        (lambda one: replace(one, data=one.data[:-1]).but(packed=len(one.data) - 1), "do not end where it does"),
    ],
)
def test_a_content_that_is_not_what_the_wheel_says_is_damaged(
    tmp_path: Path, change: Callable[[Member], Member], said: str
) -> None:
    path = changed(tmp_path, change)
    with WheelReader(path) as wheel, pytest.raises(WheelError, match=rf"loader\.py is damaged: .*{said}"):
        wheel.read("sglang/loader.py")


def test_a_wheel_that_would_unpack_to_far_more_than_any_is_refused(tmp_path: Path) -> None:
    bomb = member("sglang/zeros", bytes(1 << 20))
    size = 1 << 28
    taken = sum(one.central.size for one in upstream())
    for more, is_bomb in ((size - taken, False), (size - taken + 1, True)):
        path = craft(tmp_path / "bomb.whl", [*upstream(), bomb.but(size=more)])
        if is_bomb:
            assert f"would unpack to {size + 1:,}" in refused(path)
        else:
            with WheelReader(path) as wheel, pytest.raises(WheelError, match="zeros is damaged"):
                wheel.read("sglang/zeros")


@pytest.mark.parametrize("wide", [False, True], ids=["end", "zip64 end"])
@pytest.mark.parametrize(
    "form", [zip64, streamed, lambda one: streamed(one, wide=True)], ids=["zip64", "streamed", "streamed zip64"]
)
def test_every_form_of_a_member_is_read(tmp_path: Path, form: Callable[[Member], Member], wide: bool) -> None:
    with WheelReader(craft(tmp_path / "good.whl", [form(one) for one in upstream()], wide=wide)) as wheel:
        assert {name: wheel.read(name) for name in upstream_files("1.0")} == upstream_files("1.0")
        assert len(wheel.record()) == len(wheel.members)


def reads(path: Path) -> dict[str, bytes]:
    with WheelReader(path) as wheel:
        wheel.record()
        return {name: bytes(wheel.read(name)) for name in wheel.members}


def test_a_damaged_archive_is_read_right_or_refused_by_name(base: Path, tmp_path: Path) -> None:
    chance = random.Random(20260423)
    whole, good, said = reads(base), base.read_bytes(), list[str]()
    with zipfile.ZipFile(base) as archive:
        directory = archive.start_dir
        headers = [at for info in archive.infolist() for at in range(info.header_offset, info.header_offset + 30)]
    places = [*range(directory, len(good)), *headers]
    kept = 0
    for _ in range(500):
        data = bytearray(good)
        for at in chance.sample(places, chance.choice((1, 1, 2, 8))):
            data[at] = chance.randrange(256)
        path = tmp_path / "damaged.whl"
        path.write_bytes(data)
        try:
            found = reads(path)
        except WheelError as error:
            said += error.problems
        else:
            assert found == whole  # only dates and the like were hit
            kept += 1
    assert 0 < kept < 250
    assert [problem for problem in said if str(path) not in problem] == []
