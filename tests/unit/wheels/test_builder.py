from __future__ import annotations

import csv
import email
import hashlib
import json
import os
import stat
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from overlay_tools.errors import BuildError, FetchError, OverlayError, PatchError, WheelError
from overlay_tools.wheels.builder import build_kernel
from overlay_tools.wheels.provenance import statement_of
from overlay_tools.wheels.verify import verify_wheel

from unit.conftest import LOADER, PATCH, TAG, Miniature, make_miniature, upstream_files, write_wheel

NAME = f"sglang-1.0+overlay.3-{TAG}.whl"


def dist_of(mini: Miniature) -> list[str]:
    """Return what is in dist/, but for the statement beside each wheel."""
    dist = mini.root / "dist"
    names = sorted(path.name for path in dist.iterdir()) if dist.exists() else []
    return [name for name in names if name not in {statement_of(Path(wheel)).name for wheel in names}]


def refused(mini: Miniature, kind: type[OverlayError]) -> str:
    """Expect the build to fail and to leave in dist/ what was there."""
    good = mini.root / "dist" / NAME
    good.parent.mkdir(exist_ok=True)
    good.write_bytes(b"an earlier, good wheel")
    with pytest.raises(kind) as caught:
        mini.build()
    assert dist_of(mini) == [NAME]
    assert good.read_bytes() == b"an earlier, good wheel"
    return str(caught.value)


def test_the_wheel_is_upstreams_with_the_hooks_and_the_overlay(mini: Miniature) -> None:
    built = mini.build()
    assert built.path == mini.root / "dist" / NAME
    before = upstream_files("1.0")
    with zipfile.ZipFile(built.path) as wheel:
        assert wheel.testzip() is None
        assert wheel.read("sglang/loader.py").decode() == LOADER.replace(
            "(config):\n", "(config):\n    config = choose(config)\n"
        )
        assert wheel.read("sglang/models/ours.py") == b"OURS = 1\n"
        for name, data in before.items():
            if name not in ("sglang/loader.py", "sglang/_version.py") and not name.endswith("METADATA"):
                assert wheel.read(name.replace("1.0.dist-info", "1.0+overlay.3.dist-info")) == data
        assert stat.S_IMODE(wheel.getinfo("sglang/native.so").external_attr >> 16) == 0o755
    assert verify_wheel(built.path).differences == []


def test_the_version_is_ours_wherever_the_package_reports_it(mini: Miniature, tmp_path: Path) -> None:
    with zipfile.ZipFile(mini.build().path) as wheel:
        wheel.extractall(tmp_path / "site")
    folder = tmp_path / "site" / "sglang-1.0+overlay.3.dist-info"
    metadata = email.message_from_bytes((folder / "METADATA").read_bytes())
    assert metadata["Version"] == "1.0+overlay.3"
    assert metadata.get_all("Requires-Dist") == ["numpy ; extra == 'all'"]
    assert metadata.get_payload() == "Version: 1.0\n"
    told = subprocess.run(
        [sys.executable, "-c", "import sglang._version as v; print(v.__version__, v.__version_tuple__)"],
        cwd=tmp_path / "site", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == "1.0+overlay.3 (1, 0, 'overlay.3')\n"


def test_the_manifest_names_the_base_the_patches_and_the_files(mini: Miniature) -> None:
    with zipfile.ZipFile(mini.build().path) as wheel:
        manifest = json.loads(wheel.read("sglang-1.0+overlay.3.dist-info/sglang-overlay.json"))
    assert manifest["base"]["sha256"] == mini.releases["1.0"].wheels[0].sha256
    (patch,) = manifest["patches"]
    assert patch["sha256"] == hashlib.sha256(PATCH.encode()).hexdigest()
    assert (patch["hook"], patch["variant"], patch["added"], patch["removed"]) == ("choose", "1.0.patch", 1, 0)
    assert manifest["files"]["sglang/models/ours.py"] == ["added", hashlib.sha256(b"OURS = 1\n").hexdigest()]
    assert {name: entry[0] for name, entry in manifest["files"].items()} == {
        "sglang/_version.py": "version",
        "sglang/loader.py": "patched",
        "sglang/models/ours.py": "added",
    }


def test_the_same_sources_give_the_same_bytes(mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = mini.build()
    content = first.path.read_bytes()
    os.utime(mini.root / "overlay/sglang/models/ours.py", (1, 1))
    (mini.root / "overlay/sglang/models/ours.py").chmod(0o600)
    mini.write("overlay/sglang/models/__pycache__/ours.cpython-311.pyc", "cache")
    mini.write("overlay/sglang/.hidden", "editor's")
    assert mini.build().path.read_bytes() == content
    other = make_miniature(tmp_path / "elsewhere", monkeypatch)
    assert other.build().path.read_bytes() == content
    assert hashlib.sha256(content).hexdigest() == first.sha256
    assert len(content) == first.size


def test_record_lists_each_file_once_and_dist_info_comes_last(mini: Miniature) -> None:
    own = build_kernel(mini.project, mini.lock["1.0"]).path
    for path, dist_info in (
        (mini.build().path, "sglang-1.0+overlay.3.dist-info"),
        (own, "sglang_kernel-0.4+cpu.3.dist-info"),
    ):
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
            rows = list(csv.reader(wheel.read(f"{dist_info}/RECORD").decode().splitlines()))
            listed = [row[0] for row in rows]
            sizes = {name: size for name, _, size in rows[:-1]}
            assert sizes == {name: str(wheel.getinfo(name).file_size) for name in listed[:-1]}
        assert sorted(listed) == sorted(name for name in names if not name.endswith("/"))
        assert len(set(names)) == len(names)
        inside = [name.startswith(f"{dist_info}/") for name in names]
        assert inside == sorted(inside)
        assert names[-1] == listed[-1] == f"{dist_info}/RECORD"


def test_record_keeps_the_order_of_upstreams_and_lists_what_is_ours_after_it(mini: Miniature) -> None:
    with zipfile.ZipFile(mini.build().path) as wheel:
        text = wheel.read("sglang-1.0+overlay.3.dist-info/RECORD").decode()
    ours = ["sglang/_version.py", "sglang/loader.py", "sglang/models/ours.py"]
    theirs = [name.replace("-1.0.", "-1.0+overlay.3.") for name in upstream_files("1.0") if name not in ours]
    listed = [line.split(",")[0] for line in text.splitlines()]
    kept = [name for name in theirs if not name.endswith("METADATA")]
    assert listed[: len(kept) + len(ours)] == [*kept, *ours]


def test_no_byte_depends_on_the_zlib_at_hand(mini: Miniature) -> None:
    base = mini.cache / mini.releases["1.0"].wheels[0].sha256 / mini.releases["1.0"].wheels[0].name
    with zipfile.ZipFile(mini.build().path) as wheel, zipfile.ZipFile(base) as upstream:
        old = {(info.CRC, info.compress_size) for info in upstream.infolist()}
        new = [info for info in wheel.infolist() if (info.CRC, info.compress_size) not in old]
    assert len(new) >= 6
    assert {info.compress_type for info in new} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sglang/loader/__init__.py", "sglang/loader.py and the folder sglang/loader/ would be one module"),
        ("sglang/loader/deep/more.py", "sglang/loader.py and the folder sglang/loader/ would be one module"),
        ("sglang/models.py", "sglang/models.py and the folder sglang/models/ would be one module"),
    ],
)
def test_a_package_and_a_module_of_one_name_are_refused(mini: Miniature, name: str, said: str) -> None:
    """Python imports the package: what upstream has there, or we, would never be read."""
    mini.write(f"overlay/{name}", "A = 1\n")
    assert f"{said}: overlay/ has " in refused(mini, BuildError)


def test_a_file_that_exists_upstream_is_refused_unless_it_is_declared(mini: Miniature) -> None:
    mini.write("overlay/sglang/version.py", "__version__ = 'ours'\n")
    assert "overlay/sglang/version.py exists upstream" in refused(mini, BuildError)
    text = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", text.replace("replaces = []", 'replaces = ["sglang/version.py"]'))
    with zipfile.ZipFile(mini.build().path) as wheel:
        assert wheel.read("sglang/version.py") == b"__version__ = 'ours'\n"
        assert len(wheel.namelist()) == len(set(wheel.namelist()))
    (mini.root / "overlay/sglang/version.py").unlink()
    assert "overlay/sglang/version.py is listed in `replaces`, but there is no such file" in refused(mini, BuildError)


def test_a_file_that_collides_with_a_patched_one_is_refused(mini: Miniature) -> None:
    mini.write("overlay/sglang/loader.py", "x = 1\n")
    assert "overlay/sglang/loader.py is also changed by a patch" in refused(mini, BuildError)


def test_files_that_hooks_take_away_rename_or_make_executable_are_named_in_the_manifest(mini: Miniature) -> None:
    mini.patch.write_text(PATCH.replace("b/sglang/loader.py", "b/sglang/new.py").replace(
        "--- a/", "old mode 100644\nnew mode 100755\nrename from sglang/loader.py\nrename to sglang/new.py\n--- a/"
    ))  # fmt: skip
    mini.add_hook("less", {"sglang/version.py": "from sglang._version import __version__\n"}, {})
    with zipfile.ZipFile(mini.build().path) as wheel:
        manifest = json.loads(wheel.read("sglang-1.0+overlay.3.dist-info/sglang-overlay.json"))
        record = wheel.read("sglang-1.0+overlay.3.dist-info/RECORD").decode()
        assert wheel.getinfo("sglang/new.py").external_attr >> 16 == 0o100755
        gone = {"sglang/loader.py", "sglang/version.py"}
        assert not gone & {*wheel.namelist()}
        assert not gone & {line.split(",")[0] for line in record.splitlines()}
    assert manifest["removed"] == sorted(gone)
    assert manifest["modes"] == {"sglang/new.py": "755"}
    assert manifest["files"]["sglang/new.py"][0] == "renamed"


def make_executable(mini: Miniature, *names: str) -> None:
    for name in names:
        mini.write(f"overlay/{name}", "#!/bin/sh\n").chmod(0o755)


def modes(path: Path, *names: str) -> list[int]:
    with zipfile.ZipFile(path) as wheel:
        return [stat.S_IMODE(wheel.getinfo(name).external_attr >> 16) for name in names]


def test_an_executable_file_of_the_overlay_is_executable_in_the_wheel(mini: Miniature) -> None:
    make_executable(mini, "sglang/tools/run.sh", "sgl_kernel/run.sh")
    path = mini.build().path
    assert modes(path, "sglang/tools/run.sh", "sglang/models/ours.py") == [0o755, 0o644]
    assert modes(build_kernel(mini.project, mini.lock["1.0"]).path, "sgl_kernel/run.sh") == [0o755]
    with zipfile.ZipFile(path) as wheel:
        manifest = json.loads(wheel.read("sglang-1.0+overlay.3.dist-info/sglang-overlay.json"))
    assert manifest["modes"] == {"sglang/tools/run.sh": "755"}


def test_an_ordinary_file_in_the_place_of_an_executable_one_is_in_the_manifest(mini: Miniature) -> None:
    mini.write("overlay/sglang/native.so", "text")
    mini.write("pyproject.toml", (mini.root / "pyproject.toml").read_text().replace("[]", '["sglang/native.so"]', 1))
    path = mini.build().path
    assert modes(path, "sglang/native.so") == [0o644]
    with zipfile.ZipFile(path) as wheel:
        manifest = json.loads(wheel.read("sglang-1.0+overlay.3.dist-info/sglang-overlay.json"))
    assert manifest["modes"] == {"sglang/native.so": "644"}


def test_a_disk_on_which_every_file_is_executable_makes_the_same_wheel(mini: Miniature) -> None:
    built = mini.build()
    for path in mini.root.rglob("*"):
        if path.is_file():
            path.chmod(0o777)
    assert mini.build().sha256 == built.sha256


def test_a_file_of_the_overlay_in_the_place_of_a_deleted_one_is_refused(mini: Miniature) -> None:
    mini.add_hook("less", {"sglang/version.py": "from sglang._version import __version__\n"}, {})
    mini.write("overlay/sglang/version.py", "x = 1\n")
    assert "overlay/sglang/version.py is also changed by a patch" in refused(mini, BuildError)


def test_a_hook_of_what_the_build_writes_is_refused(mini: Miniature) -> None:
    before = upstream_files("1.0")["sglang/_version.py"].decode()
    mini.add_hook("named", {"sglang/_version.py": before}, {"sglang/_version.py": f"{before}ours = 1\n"})
    assert "A hook changes sglang/_version.py, which each build writes" in refused(mini, BuildError)


def test_a_syntax_error_in_the_overlay_is_named_with_its_line(mini: Miniature) -> None:
    mini.write("overlay/sglang/models/ours.py", "x = 1\ndef f(:\n")
    assert "overlay/sglang/models/ours.py:2: " in refused(mini, BuildError)


def test_a_patch_that_breaks_the_syntax_is_refused(mini: Miniature) -> None:
    mini.patch.write_text(PATCH.replace("+    config = choose(config)", "+    config = choose(config"))
    assert "sglang/loader.py:" in refused(mini, BuildError)


def test_a_patch_that_does_not_apply_is_refused(mini: Miniature) -> None:
    mini.patch.write_text(PATCH.replace(" def get_model", " def get_models"))
    assert "the lines that the hunk expects are not in sglang/loader.py" in refused(mini, PatchError)


def test_a_symbolic_link_or_a_stray_package_in_the_overlay_is_refused(mini: Miniature) -> None:
    (mini.root / "overlay/sglang/link.py").symlink_to("models/ours.py")
    assert "link.py is a symbolic link" in refused(mini, BuildError)
    (mini.root / "overlay/sglang/link.py").unlink()
    mini.write("overlay/torch/x.py", "")
    assert "overlay/torch goes into no wheel" in refused(mini, BuildError)


def test_a_base_with_another_hash_is_refused_and_kept(mini: Miniature) -> None:
    wheel = mini.releases["1.0"].wheels[0]
    cached = mini.cache / wheel.sha256 / wheel.name
    cached.write_bytes(cached.read_bytes()[:-1] + b"x")
    found = refused(mini, FetchError)
    assert f"upstream.lock says sha256 {wheel.sha256}, the file has" in found
    assert cached.exists()


def test_a_truncated_base_is_refused(mini: Miniature) -> None:
    wheel = mini.releases["1.0"].wheels[0]
    cached = mini.cache / wheel.sha256 / wheel.name
    cached.write_bytes(cached.read_bytes()[:100])
    assert f"upstream.lock says {wheel.size} bytes, the file has 100" in refused(mini, FetchError)


@pytest.mark.parametrize(
    ("name", "said"), [("../evil.py", "outside the folder"), ("sglang/a\\b.py", "outside the folder")]
)
def test_a_locked_base_with_an_escaping_member_is_refused(mini: Miniature, name: str, said: str) -> None:
    mini.lock_release("1.0", {**upstream_files("1.0"), name: b""})
    assert said in refused(mini, WheelError)


def test_a_locked_base_that_is_not_an_archive_is_refused(mini: Miniature) -> None:
    made = mini.root / f"sglang-1.0-{TAG}.whl"
    made.write_bytes(b"not a zip archive")
    mini.lock_wheel("1.0", made)
    assert "cannot be read as a wheel" in refused(mini, WheelError)


def test_a_base_whose_record_misses_a_file_is_refused(mini: Miniature) -> None:
    made = write_wheel(mini.root / f"sglang-1.0-{TAG}.whl", upstream_files("1.0"))
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr("sglang/unlisted.py", b"")
    mini.lock_wheel("1.0", made)
    assert "does not list sglang/unlisted.py" in refused(mini, BuildError)


@pytest.mark.parametrize("file", ["sglang/_version.py", "sglang-1.0.dist-info/METADATA"])
def test_a_base_that_gives_its_version_otherwise_is_refused(mini: Miniature, file: str) -> None:
    files = upstream_files("1.0")
    mini.lock_release("1.0", {**files, file: files[file].replace(b"1.0", b"1.0.1")})
    assert "version" in refused(mini, BuildError)


def test_a_base_that_does_not_give_its_version_is_refused(mini: Miniature) -> None:
    mini.lock_release("1.0", {name: data for name, data in upstream_files("1.0").items() if "_version" not in name})
    with pytest.raises(WheelError, match=r"has no sglang/_version\.py"):
        mini.build()


def test_it_builds_inside_a_repository_that_ignores_it(mini: Miniature) -> None:
    outside = mini.build().sha256
    subprocess.run(["git", "init", "--quiet"], cwd=mini.root.parent, check=True)
    (mini.root.parent / ".gitignore").write_text("*\n")
    assert mini.build().sha256 == outside


def test_the_kernel_wheel_satisfies_the_pin(mini: Miniature, tmp_path: Path) -> None:
    built = build_kernel(mini.project, mini.lock["1.0"])
    assert built.path.name == "sglang_kernel-0.4+cpu.3-py3-none-any.whl"
    assert verify_wheel(built.path).differences == []
    with zipfile.ZipFile(built.path) as wheel:
        wheel.extractall(tmp_path / "site")
    distribution = PathDistribution(tmp_path / "site" / "sglang_kernel-0.4+cpu.3.dist-info")
    assert mini.lock["1.0"].kernel.specifier.contains(distribution.version)
    assert distribution.metadata["Name"] == "sglang-kernel"
    assert (tmp_path / "site/sgl_kernel/__init__.py").read_text() == "KERNEL = 1\n"
    assert build_kernel(mini.project, mini.lock["1.0"]).sha256 == built.sha256


def test_a_kernel_package_that_is_absent_or_broken_is_refused(mini: Miniature) -> None:
    mini.write("overlay/sgl_kernel/__init__.py", "def f(:\n")
    with pytest.raises(BuildError, match=r"sgl_kernel/__init__\.py:1"):
        build_kernel(mini.project, mini.lock["1.0"])
    (mini.root / "overlay/sgl_kernel/__init__.py").unlink()
    with pytest.raises(BuildError, match="There are no files in"):
        build_kernel(mini.project, mini.lock["1.0"])
