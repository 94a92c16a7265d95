from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from overlay_tools.errors import VerifyError, WheelError
from overlay_tools.wheels.builder import build_kernel
from overlay_tools.wheels.verify import verify_environment, verify_wheel

from unit.conftest import HEADER, Miniature, write_wheel

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
        (lambda files: files.pop("sglang/version.py"), ["missing: sglang/version.py"]),
        (lambda files: files.update({"sglang/more.py": b"x"}), ["foreign: sglang/more.py"]),
    ],
)  # fmt: skip
def test_each_file_that_is_not_as_built_is_named(
    mini: Miniature, change: Callable[[dict[str, bytes]], object], said: list[str]
) -> None:
    assert verify_wheel(altered(mini.build().path, change)).differences == said


@pytest.fixture
def less(mini: Miniature) -> Miniature:
    """Return a project with a hook that deletes a file, and one that makes another executable."""
    mini.patch.write_text(
        HEADER + "diff --git a/sglang/loader.py b/sglang/loader.py\nold mode 100644\nnew mode 100755\n"
    )
    mini.add_hook("less", {"sglang/version.py": "from sglang._version import __version__\n"}, {})
    return mini


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
    "manifest", [b"", b"[]", b"{}", b'{"schema": 9, "tool": ""}', b'{"schema": 1, "tool": "", "x": 1}']
)
def test_a_manifest_that_cannot_be_read_is_refused(mini: Miniature, manifest: bytes) -> None:
    wheel = altered(mini.build().path, lambda files: files.update({f"{DIST_INFO}/sglang-overlay.json": manifest}))
    with pytest.raises(VerifyError, match="the manifest"):
        verify_wheel(wheel)


def test_a_damaged_wheel_is_refused(mini: Miniature, tmp_path: Path) -> None:
    wheel = mini.build().path
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(WheelError, match="cannot be read"):
        verify_wheel(wheel)
    with pytest.raises(WheelError, match="There is no file"):
        verify_wheel(tmp_path / "absent.whl")


@pytest.fixture(params=["pip", "uv"])
def installed(mini: Miniature, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Install both wheels, each with its installer; return the interpreter and site-packages."""
    wheels = [str(mini.build().path), str(build_kernel(mini.project, mini.lock["1.0"]).path)]
    renamed = []
    for wheel in wheels:  # the base pretends to be for one Python on one machine; the installer must not mind which
        path = Path(wheel)
        renamed.append(str(path.rename(path.with_name("-".join([*path.stem.split("-")[:2], "py3-none-any.whl"])))))
    environment = mini.root / ".env"
    subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    if request.param == "pip":
        command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    else:
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            "--no-deps",
            "--offline",
        ]
    subprocess.run([*command, *renamed], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    return python, site


def test_a_deleted_file_that_is_back_and_a_wrong_mode_are_named_in_an_environment(
    less: Miniature, installed: tuple[str, Path]
) -> None:
    python, site = installed
    assert [differences for found in verify_environment(python) for differences in found.differences] == []
    (site / "sglang/version.py").write_text("x = 1\n")
    (site / "sglang/loader.py").chmod(0o644)
    assert [differences for found in verify_environment(python) for differences in found.differences] == [
        "back: sglang/version.py (a hook removes it)",
        "differs: sglang/loader.py (its mode is not 755)",
    ]


def test_an_environment_is_compared_file_by_file(installed: tuple[str, Path]) -> None:
    python, site = installed
    subprocess.run([python, "-c", "import sglang"], check=True)
    results = verify_environment(python)
    assert [(result.name, result.differences) for result in sorted(results, key=lambda result: result.name)] == [
        ("sglang 1.0+overlay.3", []),
        ("sglang-kernel 0.4+cpu.3", []),
    ]
    (site / "sglang/loader.py").unlink()
    (site / "sglang/loader.py").write_text("x = 1\n")
    (site / "sglang/version.py").unlink()
    (site / "sglang/models/foreign.py").write_text("")
    (site / "sgl_kernel/__init__.py").unlink()
    found = {result.name: result.differences for result in verify_environment(python)}
    assert found == {
        "sglang 1.0+overlay.3": [
            "foreign: sglang/models/foreign.py",
            "differs: sglang/loader.py (patched)",
            "missing: sglang/version.py",
        ],
        "sglang-kernel 0.4+cpu.3": ["missing: sgl_kernel/__init__.py"],
    }


def test_an_environment_whose_record_is_gone_is_refused(installed: tuple[str, Path]) -> None:
    python, site = installed
    (site / DIST_INFO / "RECORD").unlink()
    with pytest.raises(VerifyError, match="RECORD: No such file") as caught:
        verify_environment(python)
    assert "Install the wheel anew" in caught.value.hint


def test_an_environment_without_ours_is_refused() -> None:
    with pytest.raises(VerifyError, match=r"The environment of .* has no sglang"):
        verify_environment(sys.executable)


def test_what_is_not_an_interpreter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("neither a program nor a script")
    (tmp_path / "text").chmod(0o755)
    for path in (tmp_path / "absent", tmp_path, tmp_path / "text"):
        with pytest.raises(VerifyError, match="is not a Python interpreter: it cannot be run") as caught:
            verify_environment(str(path))
        assert ".venv/bin/python" in caught.value.hint
    with pytest.raises(VerifyError, match="/bin/true is not a Python interpreter: it did not answer"):
        verify_environment("/bin/true")
