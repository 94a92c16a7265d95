from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from overlay_tools.errors import VerifyError, WheelError
from overlay_tools.wheels.verify import verify_wheel

from unit.conftest import Miniature, write_wheel

DIST_INFO = "sglang-1.0+overlay.3.dist-info"


def altered(wheel: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """Write a wheel again after a change to its files, without making RECORD anew."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    out = wheel.with_name("altered-" + wheel.name)
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files: files.update({"sglang/loader.py": b"x"}), ["differs: sglang/loader.py (patched)"]),
        (lambda files: files.update({"sglang/models/ours.py": b"x"}), ["differs: sglang/models/ours.py (added)"]),
        (lambda files: files.update({"sglang/native.so": b"x"}), ["differs: sglang/native.so (upstream's)"]),
        (lambda files: files.update({f"{DIST_INFO}/METADATA": b"x"}), [f"differs: {DIST_INFO}/METADATA (the build's)"]),
        (lambda files: files.pop("sglang/version.py"), ["missing: sglang/version.py"]),
        (lambda files: files.update({"sglang/more.py": b"x"}), ["foreign: sglang/more.py"]),
    ],
)  # fmt: skip
def test_each_file_that_is_not_as_built_is_named(
    mini: Miniature, change: Callable[[dict[str, bytes]], object], said: list[str]
) -> None:
    assert verify_wheel(altered(mini.build().path, change)).differences == said


def test_a_deleted_file_that_is_back_and_a_wrong_mode_are_named_in_a_wheel(less: Miniature) -> None:
    good = less.build().path
    assert verify_wheel(good).differences == []
    bad = altered(good, lambda files: files.update({"sglang/version.py": b"x"}))  # which gives every file one mode
    assert verify_wheel(bad).differences == [
        "back: sglang/version.py (a hook removes it)",
        "differs: sglang/loader.py (its mode is not 755)",
    ]


def test_a_record_made_to_fit_a_changed_file_is_found_out(mini: Miniature) -> None:
    with zipfile.ZipFile(mini.build().path) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != f"{DIST_INFO}/RECORD"}
    files["sglang/version.py"] = b"x"
    forged = write_wheel(
        mini.root / "forged.whl", {name: data for name, data in files.items() if not name.endswith("/")}
    )
    assert verify_wheel(forged).differences == [
        "differs: RECORD (it lists other files or hashes than the wheel was built with)"
    ]


def test_a_wheel_of_upstream_is_refused(mini: Miniature) -> None:
    wheel = mini.releases["1.0"].wheels[0]
    with pytest.raises(VerifyError, match="has no manifest"):
        verify_wheel(mini.cache / wheel.sha256 / wheel.name)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"schema": 9, "tool": ""}',
        b'{"schema": 1, "tool": "", "x": 1}',
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(mini: Miniature, manifest: bytes) -> None:
    wheel = altered(mini.build().path, lambda files: files.update({f"{DIST_INFO}/sglang-overlay.json": manifest}))
    with pytest.raises(VerifyError, match="the manifest"):
        verify_wheel(wheel)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("distribution", 1),
        ("version", None),
        ("tree", []),
        ("files", []),
        ("files", {"sglang/loader.py": "patched"}),
        ("files", {"sglang/loader.py": ["patched"]}),
        ("files", {"sglang/loader.py": ["patched", 1]}),
        ("modes", []),
        ("modes", {"sglang/loader.py": 755}),
        ("removed", "sglang/loader.py"),
        ("removed", [1]),
        ("dependencies", {}),
        ("dependencies", [["x"]]),
        ("dependencies", [[1, "x"]]),
    ],
)
def test_a_manifest_with_a_field_of_another_form_is_refused(mini: Miniature, field: str, value: object) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = f"{DIST_INFO}/sglang-overlay.json"
        files[name] = json.dumps({**json.loads(files[name]), field: value}).encode()

    with pytest.raises(VerifyError, match=f"the manifest cannot be read: {field} has another form"):
        verify_wheel(altered(mini.build().path, change))


def test_a_damaged_wheel_is_refused(mini: Miniature, tmp_path: Path) -> None:
    wheel = mini.build().path
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(WheelError, match="cannot be read"):
        verify_wheel(wheel)
    with pytest.raises(WheelError, match="There is no file"):
        verify_wheel(tmp_path / "absent.whl")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("sglang/more.py,,", "foreign: sglang/more.py (RECORD lists it without a hash)"),
        ("sglang/__pycache__/more.pyc,,", "foreign: sglang/__pycache__/more.pyc (RECORD lists it without a hash)"),
        (f"{DIST_INFO}/INSTALLER,,", f"foreign: {DIST_INFO}/INSTALLER (RECORD lists it without a hash)"),
    ],
)
def test_what_record_lists_without_a_hash_is_foreign(mini: Miniature, row: str, said: str) -> None:
    def change(files: dict[str, bytes]) -> None:
        files[row.removesuffix(",,")] = b"x"
        files[f"{DIST_INFO}/RECORD"] += f"{row}\n".encode()

    assert verify_wheel(altered(mini.build().path, change)).differences == [said]


def test_a_broken_hash_in_record_proves_nothing(mini: Miniature) -> None:
    def change(files: dict[str, bytes]) -> None:
        data = files["sglang/version.py"]
        digest = base64.urlsafe_b64encode(hashlib.md5(data).digest()).rstrip(b"=").decode()
        record = files[f"{DIST_INFO}/RECORD"].decode().splitlines(keepends=True)
        rows = [row for row in record if not row.startswith("sglang/version.py")]
        files[f"{DIST_INFO}/RECORD"] = "".join([*rows, f"sglang/version.py,md5={digest},{len(data)}\n"]).encode()

    assert verify_wheel(altered(mini.build().path, change)).differences == [
        "differs: sglang/version.py (upstream's)",
        "differs: RECORD (it lists other files or hashes than the wheel was built with)",
    ]


def test_two_files_cannot_be_made_one_whose_name_holds_the_hash_of_the_first(mini: Miniature) -> None:
    def change(files: dict[str, bytes]) -> None:
        rows = dict(csv_row(line) for line in files[f"{DIST_INFO}/RECORD"].decode().splitlines())
        first, second = "sglang/__init__.py", "sglang/_version.py"
        name = f"{first}\t{rows.pop(first).split(',')[0]}\n{second}"
        rows[f'"{name}"'] = rows.pop(second)
        files[f"{DIST_INFO}/RECORD"] = "".join(f"{name},{rest}\n" for name, rest in rows.items()).encode()
        files[name] = files.pop(second)
        del files[first]

    with pytest.raises(WheelError, match=r"'sglang/__init__\.py\\tsha256=.* has a character that cannot be printed"):
        verify_wheel(altered(mini.build().path, change))


def csv_row(line: str) -> tuple[str, str]:
    name, *rest = line.rsplit(",", 2)
    return name, ",".join(rest)


def test_the_name_of_a_manifest_elsewhere_hides_nothing(mini: Miniature) -> None:
    mini.write("overlay/sglang/x.dist-info/sglang-overlay.json", "{}")
    mini.write("overlay/sglang/x.dist-info/METADATA", "Name: x\n")
    mini.require('override = ["numpy==1"]')
    wheel = mini.build().path
    assert verify_wheel(wheel).differences == []
    name = "sglang/x.dist-info/sglang-overlay.json"
    forged = remade(wheel, lambda files: files.update({name: b"[]"}))
    assert verify_wheel(forged).differences == [
        f"differs: {name} (added; RECORD has been made to fit)",
        "differs: RECORD (it lists other files or hashes than the wheel was built with)",
    ]


def remade(wheel: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """Write a wheel again after a change to its files, with a RECORD that fits."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith(("/", "/RECORD"))}
    change(files)
    return write_wheel(wheel.with_name("remade-" + wheel.name), files)
