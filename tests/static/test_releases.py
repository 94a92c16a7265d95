"""Every locked release, without an engine: the hooks apply, the wheel builds, and it is what its manifest says."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from overlay_tools.patches.lint import lint
from overlay_tools.patches.model import target_of
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project, cache_dir, load_project
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.upstream.source_tree import source_wheel
from overlay_tools.wheels.builder import build_kernel, build_sglang
from overlay_tools.wheels.manifest import SBOM
from overlay_tools.wheels.overlay_files import check_ranges
from overlay_tools.wheels.verify import verify_wheel
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[2]
LOCK = load_lock(ROOT / "upstream.lock")
EVERYWHERE = ("register", "resolve")  # the hooks that every release takes; a few take others besides


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return the real project, with a dist/ of the test's own."""
    for name in ("overlay", "patches", "NOTICE", "LICENSE", "pyproject.toml", "upstream.lock"):
        (tmp_path / name).symlink_to(ROOT / name)
    return load_project(tmp_path)


def test_the_patches_have_no_fault() -> None:
    assert lint(load_series(ROOT / "patches"), list(LOCK)) == []
    check_ranges(load_project(ROOT), LOCK)


@pytest.mark.parametrize("version", LOCK)
def test_the_wheel_is_upstreams_and_six_lines(project: Project, version: str) -> None:
    release = LOCK[version]
    wheel = source_wheel(release)
    base = fetch(release, wheel, cache_dir())
    built = build_sglang(project, release, wheel, base, load_series(ROOT / "patches"))
    everywhere = [patch for patch in built.patches if patch.hook in EVERYWHERE]
    assert (sum(patch.added for patch in everywhere), sum(patch.removed for patch in everywhere)) == (6, 0)
    patched = {target_of(file) for patch in built.patches for file in patch.files}
    assert verify_wheel(built.path).differences == []
    with zipfile.ZipFile(base) as before, zipfile.ZipFile(built.path) as after:
        old = {info.filename: info.CRC for info in before.infolist() if ".dist-info/" not in info.filename}
        new = {info.filename: info.CRC for info in after.infolist() if ".dist-info/" not in info.filename}
        assert new.keys() - old.keys() == set(built.added)
        assert old.keys() <= new.keys()
        assert {name for name in old if old[name] != new[name]} == {"sglang/_version.py"} | patched
        ours = project.overlay_version(version)
        for name in ("entry_points.txt", "WHEEL", "top_level.txt"):
            assert _dist_info(before, version, name) == _dist_info(after, ours, name)
        old_text = _dist_info(before, version, "METADATA").replace(f"\nVersion: {version}\n", f"\nVersion: {ours}\n", 1)
        new_text = _dist_info(after, ours, "METADATA")
        if built.dependencies:
            old_text, new_text = _without_requirements(old_text), _without_requirements(new_text)
        assert old_text == new_text
        bill = _bill(after, ours)
    assert bill["metadata"]["component"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert {component["name"] for component in bill["components"]} >= {*built.added, "torch", release.kernel.name}


@pytest.mark.parametrize("version", LOCK)
def test_the_kernel_wheel_satisfies_the_pin(project: Project, version: str) -> None:
    built = build_kernel(project, LOCK[version])
    name, found, _, _ = parse_wheel_filename(built.path.name)
    assert name == LOCK[version].kernel.name
    assert LOCK[version].kernel.specifier.contains(found)
    assert verify_wheel(built.path).differences == []
    with zipfile.ZipFile(built.path) as wheel:
        bill = _bill(wheel, str(found), name.replace("-", "_"))
    assert {component["name"] for component in bill["components"]} == set(built.added)


def _without_requirements(metadata: str) -> str:
    return "\n".join(line for line in metadata.split("\n") if not line.startswith("Requires-Dist:"))


def _bill(wheel: zipfile.ZipFile, version: str, project: str = "sglang") -> dict[str, Any]:
    """Return the bill of materials of a wheel, which must be as the schema of CycloneDX 1.6 has it."""
    text = _dist_info(wheel, version, SBOM, project)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return dict(json.loads(text))


def _dist_info(wheel: zipfile.ZipFile, version: str, name: str, project: str = "sglang") -> str:
    return wheel.read(f"{project}-{version}.dist-info/{name}").decode("utf-8")
