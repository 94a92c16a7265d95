"""What `build` writes, `verify` accepts, whatever overlay and base hold; or the build is refused and writes nothing."""

from __future__ import annotations

import base64
import hashlib
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from overlay_tools.errors import BuildError, OverlayError, WheelError
from overlay_tools.wheels.builder import build_kernel
from overlay_tools.wheels.verify import verify_wheel

from unit.conftest import TAG, Miniature, upstream_files, write_wheel
from unit.wheels.test_verify_installed import Environment, for_any

ACCEPTED = [
    "empty.py", "two words.txt", "grüße.json", "日本.txt", "it's.txt", 'quo"ted".txt', "com,ma.txt", "semi;colon.txt",
    "=formula.txt", "x.data/purelib/y.py", "x.dist-info/RECORD", "x.dist-info/METADATA",
    "x.dist-info/sglang-overlay.json", "RECORD", "INSTALLER", "upper.PY", "a/b/c/d/e/f.txt", "%41.txt",
    "a~b.txt", "🎉.txt",
]  # fmt: skip
REFUSED = [
    "back\\slash.txt", "co:lon.txt", "new\nline.txt", "return\r.txt", "tab\t.txt", "bell\a.txt",
    "no\u00a0break.txt", "\u202etxt.exe", "zero\u200bwidth.txt",
]  # fmt: skip
PARTS = ["ä", "b", " ", ",", '"', "'", "-", "~", "+", "=", "#", "é", "中", ".", "\\", ":", "\n", "\x7f", "\udcff"]


def add(mini: Miniature, name: str, content: bytes = b"") -> Path:
    path = mini.root / "overlay/sglang" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_odd_name_is_built_installed_and_accepted(mini: Miniature, name: str) -> None:
    add(mini, f"odd/{name}")
    assert verify_wheel(mini.build().path).differences == []


def test_all_odd_names_together_are_installed_and_accepted(mini: Miniature) -> None:
    for name in ACCEPTED:
        add(mini, f"odd/{name}", name.encode())
    wheel = for_any(mini.build().path)
    for installer in ("pip", "uv"):
        folder = mini.root / f".{installer}"
        subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", "-p", sys.executable, str(folder)], check=True)
        environment = Environment(folder)
        environment.install(installer, [wheel])
        assert environment.differences() == {"sglang 1.0+overlay.3": []}
        for name in ACCEPTED:
            assert (environment.site / "sglang/odd" / name).read_text(encoding="utf-8") == name


@pytest.mark.parametrize("package", ["sglang", "sgl_kernel"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_a_wheel_cannot_carry_everywhere_is_refused(mini: Miniature, package: str, name: str) -> None:
    add(mini, f"../{package}/{name}")
    with pytest.raises(OverlayError) as caught:
        mini.build() if package == "sglang" else build_kernel(mini.project, mini.lock["1.0"])
    assert ascii(f"overlay/{package}/{name}") in str(caught.value)
    str(caught.value).encode()
    assert caught.value.hint
    assert not (mini.root / "dist").exists()


def test_whatever_the_names_and_contents_are_a_build_is_accepted_or_refused(mini: Miniature) -> None:
    """Names and contents are drawn by chance, of a seed that is shown."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    built = refused = 0
    for number in range(60):
        parts = ["".join(chance.choices(PARTS, k=chance.randint(1, 3))).strip(".~#") or "x" for _ in range(2)]
        path = add(mini, "/".join([f"odd{number}", *parts]), chance.randbytes(chance.choice([0, 1, 300])))
        path.chmod(chance.choice([0o644, 0o755, 0o600]))
        if all(part.isprintable() and not set(part) & {"\\", ":"} for part in parts):
            assert verify_wheel(mini.build().path).differences == [], (seed, parts)
            built += 1
        else:
            with pytest.raises(BuildError, match=r"goes into no wheel: its name has a backslash"):
                mini.build()
            shutil.rmtree(mini.root / f"overlay/sglang/odd{number}")
            refused += 1
    assert min(built, refused) > 5, seed


def test_a_file_that_equals_upstreams_is_accepted(mini: Miniature) -> None:
    text = (mini.root / "pyproject.toml").read_text().replace("replaces = []", 'replaces = ["sglang/__init__.py"]')
    mini.write("pyproject.toml", text)
    add(mini, "__init__.py", upstream_files("1.0")["sglang/__init__.py"])
    assert verify_wheel(mini.build().path).differences == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("native.so/more.py", "sglang/native.so/more.py would lie in sglang/native.so, which is a file."),
        ("models", "sglang/models would be a file, and is a folder of sglang-1.0-"),
    ],
)
def test_a_file_and_a_folder_of_one_name_are_refused(mini: Miniature, name: str, said: str) -> None:
    (mini.root / "overlay/sglang/models/ours.py").unlink()
    (mini.root / "overlay/sglang/models").rmdir()
    mini.lock_release("1.0", {**upstream_files("1.0"), "sglang/models/theirs.py": b""})
    add(mini, name)
    with pytest.raises(OverlayError) as caught:
        mini.build()
    assert said in str(caught.value)
    assert not (mini.root / "dist").exists()


def test_the_version_file_cannot_be_replaced(mini: Miniature) -> None:
    text = (mini.root / "pyproject.toml").read_text().replace("replaces = []", 'replaces = ["sglang/_version.py"]')
    mini.write("pyproject.toml", text)
    add(mini, "_version.py", b"__version__ = version = '2'\n")
    with pytest.raises(OverlayError, match=r"overlay/sglang/_version.py: each build writes this file itself"):
        mini.build()


def locked_as_a_file(mini: Miniature, change: Callable[[str], str], more: Mapping[str, bytes] | None = None) -> None:
    """Lock a base wheel, as a file, whose RECORD has been changed."""
    made = write_wheel(mini.root / f"sglang-1.0-{TAG}.whl", {**upstream_files("1.0"), **(more or {})})
    with zipfile.ZipFile(made) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = "sglang-1.0.dist-info/RECORD"
    files[name] = change(files[name].decode()).encode()
    with zipfile.ZipFile(made, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    mini.lock_wheel("1.0", made)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("sglang/native.so,,", "gives no sha256, sha384, sha512 of sglang/native.so."),
        ("sglang/native.so,md5=AAAA,1", "gives no sha256, sha384, sha512 of sglang/native.so."),
        ("", "does not list sglang/native.so."),
        ("sglang/native.so,sha256=AAAA,10240", "sglang/native.so is not what RECORD says."),
    ],
)
def test_a_base_whose_record_does_not_account_for_a_file_is_refused(mini: Miniature, row: str, said: str) -> None:
    locked_as_a_file(mini, lambda text: re.sub(r"(?m)^sglang/native.so,.*\n", row and row + "\n", text))
    with pytest.raises(OverlayError) as caught:
        mini.build()
    assert said in str(caught.value)
    assert caught.value.hint
    assert not (mini.root / "dist").exists()


def test_a_base_with_a_longer_hash_is_taken(mini: Miniature) -> None:
    digest = base64.urlsafe_b64encode(hashlib.sha512(upstream_files("1.0")["sglang/native.so"]).digest()).rstrip(b"=")
    locked_as_a_file(mini, lambda text: re.sub(r"native.so,sha256=[^,]*", f"native.so,sha512={digest.decode()}", text))
    assert verify_wheel(mini.build().path).differences == []


def test_a_base_whose_files_installers_move_is_refused(mini: Miniature) -> None:
    locked_as_a_file(mini, str, {"sglang-1.0.data/scripts/x": b"#!python\n"})
    with pytest.raises(BuildError, match=r"installers move sglang-1.0.data/scripts/x elsewhere"):
        mini.build()


def test_a_base_with_a_name_that_cannot_be_printed_is_refused(mini: Miniature) -> None:
    locked_as_a_file(mini, str, {"sglang/zero\u200bwidth.txt": b""})
    with pytest.raises(WheelError, match=r"'sglang/zero\\u200bwidth.txt' has a character that cannot be printed"):
        mini.build()
