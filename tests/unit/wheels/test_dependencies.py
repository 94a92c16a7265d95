"""What releases require other than upstream says."""

from __future__ import annotations

import json
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from overlay_tools.errors import BuildError
from overlay_tools.patches.series import load_series
from overlay_tools.proving.inputs import Inputs
from overlay_tools.wheels.builder import build_kernel
from overlay_tools.wheels.dependencies import change_requirements, compare_requirements, read_requirements
from overlay_tools.wheels.overlay_files import check_ranges
from overlay_tools.wheels.verify import verify_wheel

from unit.conftest import Miniature, upstream_files, write_wheel

URL = "https://example.org/granian-2.6-py3-none-any.whl"
LINUX = 'sys_platform == "linux"'
HEAD = f"""\
Metadata-Version: 2.4
Name: sglang
Version: 1.0
License: Requires-Dist: not a field
        Requires-Dist: nor this
Requires-Dist: numpy
Requires-Dist: av==16.1.0;   {LINUX}
Requires-Dist: Flash_Infer[cu13]==0.7.2
Requires-Dist: sglang-kernel==0.4
Provides-Extra: http2
Requires-Dist: granian>=2.6.0; extra == "http2"
Requires-Dist: av==16.1.0; {LINUX} and extra == "http2"
Provides-Extra: Full.Set
Dynamic: license-file
"""
BODY = "\nRequires-Dist: nowhere\n\nschön\r\n"
METADATA = HEAD + BODY


@pytest.fixture
def mini(mini: Miniature) -> Miniature:
    for version in ("1.0", "1.1"):
        files = upstream_files(version)
        metadata = METADATA.replace("Version: 1.0", f"Version: {version}").encode()
        mini.lock_release(version, {**files, f"sglang-{version}.dist-info/METADATA": metadata})
    return mini


def changed(mini: Miniature, rules: str, version: str = "1.0") -> list[tuple[str, ...]]:
    """Change the requirements, and return the lines that went and came, in the order of the text."""
    mini.require(rules)
    made, changes = change_requirements(mini.project, mini.lock[version], METADATA.encode())
    before, after = METADATA.splitlines(keepends=True), made.decode().splitlines(keepends=True)
    gone, new = [line for line in before if line not in after], [line for line in after if line not in before]
    assert [line for line in before if line not in gone] == [line for line in after if line not in new]
    assert made.decode().endswith(BODY)
    assert bool(changes) == bool(gone or new)
    return [("-", *(line.strip() for line in gone)), ("+", *(line.strip() for line in new))]


def faults(mini: Miniature, rules: str) -> list[str]:
    mini.require(rules)
    with pytest.raises(BuildError) as caught:
        change_requirements(mini.project, mini.lock["1.0"], METADATA.encode())
    return [problem.replace(str(mini.root), "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("rules", "gone", "new"),
    [
        ("override = ['numpy<2']", ["numpy"], ["numpy<2"]),
        ("override = ['kt-kernel>=0.3']", [], ["kt-kernel>=0.3"]),
        ("exclude = ['NumPy']", ["numpy"], []),
        ("override = ['av==17']", [f"av==16.1.0;   {LINUX}"], [f"av==17; {LINUX}"]),
        ("override = ['flash-infer==0.8']", ["Flash_Infer[cu13]==0.7.2"], ["flash-infer[cu13]==0.8"]),
        ("override = ['flash-infer[cu12]==0.8']", ["Flash_Infer[cu13]==0.7.2"], ["flash-infer[cu12]==0.8"]),
        ("exclude = ['flash.infer']\noverride = ['flash-infer']", ["Flash_Infer[cu13]==0.7.2"], ["flash-infer"]),
        ("""override = ['av==17; extra == "http2"']""",
         [f'av==16.1.0; {LINUX} and extra == "http2"'], [f'av==17; {LINUX} and extra == "http2"']),
        ("""override = ['av==17; python_version > "3.10"']""",
         [f"av==16.1.0;   {LINUX}"], ['av==17; python_version > "3.10"']),
        ("""override = ['h2; extra == "full-set"']""", [], ['h2; extra == "full-set"']),
        ("""exclude = ['granian; extra == "http2"']""", ['granian>=2.6.0; extra == "http2"'], []),
        ("exclude = ['numpy']\noverride = ['numpy==1; os_name == \"nt\"', 'numpy==2; os_name != \"nt\"']",
         ["numpy"], ['numpy==1; os_name == "nt"', 'numpy==2; os_name != "nt"']),
        ("override = ['numpy']", [], []),
    ],
)  # fmt: skip
def test_requirements_are_changed_and_nothing_else_is(
    mini: Miniature, rules: str, gone: list[str], new: list[str]
) -> None:
    assert changed(mini, rules) == [
        ("-", *(f"Requires-Dist: {line}" for line in gone)),
        ("+", *(f"Requires-Dist: {line}" for line in new)),
    ]


def test_requirements_that_become_the_same_are_one(mini: Miniature) -> None:
    text = METADATA.replace("Requires-Dist: numpy\n", "Requires-Dist: numpy<3\nRequires-Dist: numpy>1\n", 1)
    mini.require("override = ['numpy==2']")
    made, changes = change_requirements(mini.project, mini.lock["1.0"], text.encode())
    assert made.decode() == METADATA.replace("Requires-Dist: numpy\n", "Requires-Dist: numpy==2\n", 1)
    assert changes == [("numpy<3", "numpy==2"), ("numpy>1", None)]


def test_a_table_changes_the_releases_that_it_is_for(mini: Miniature) -> None:
    rules = "releases = '>=1.1'\noverride = ['numpy<2']\n"
    assert changed(mini, rules) == [("-",), ("+",)]
    assert changed(mini, rules, "1.1") == [("-", "Requires-Dist: numpy"), ("+", "Requires-Dist: numpy<2")]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("exclude = ['scipy']", "/pyproject.toml:7: sglang 1.0 does not require scipy, which is to be excluded."),
        ("exclude = ['granian']", "/pyproject.toml:7: sglang 1.0 does not require granian, which is to be excluded."),
        ("override = ['a; extra == \"http3\"']",
         '/pyproject.toml:7: sglang 1.0 has no such extra: a; extra == "http3".'),
        ("override = ['numpy==1', 'NumPy==2']",
         "/pyproject.toml:7: numpy==1 and NumPy==2: only where numpy is excluded too."),
        ("override = ['numpy==1']\n---\nexclude = ['NumPy']",
         "/pyproject.toml:11: numpy is changed by /pyproject.toml:7 too, for sglang 1.0."),
        ("override = ['sglang-kernel>=0.4']",
         "/pyproject.toml:7: sglang-kernel>=0.4 must name one version of the kernel, as sglang-kernel==0.4 does."),
        ("override = ['sglang-kernel==0.4,<1']",
         "/pyproject.toml:7: sglang-kernel<1,==0.4 must name one version of the kernel, as sglang-kernel==0.4 does."),
        ("override = ['sgl_kernel==0.3.*']",
         "/pyproject.toml:7: sgl_kernel==0.3.* must name one version of the kernel, as sglang-kernel==0.4 does."),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_is_named_with_its_line(mini: Miniature, rules: str, said: str) -> None:
    assert faults(mini, rules) == [said]


def test_tables_for_no_locked_release_are_refused(mini: Miniature) -> None:
    mini.require("releases = '>2'\noverride = ['a']\n")
    with pytest.raises(BuildError, match=r"pyproject.toml:7: no locked release is in the range '>2'"):
        check_ranges(mini.project, mini.lock)


def test_the_wheel_says_what_was_changed_and_installers_read_it(mini: Miniature, tmp_path: Path) -> None:
    before = mini.build().sha256
    mini.require("override = ['numpy<2', 'kt-kernel>=0.3']\nexclude = ['granian; extra == \"http2\"']\n")
    built = mini.build()
    assert built.dependencies == [
        ('granian>=2.6.0; extra == "http2"', None),
        ("numpy", "numpy<2"),
        (None, "kt-kernel>=0.3"),
    ]
    with zipfile.ZipFile(built.path) as wheel:
        wheel.extractall(tmp_path)
        dist_info = "sglang-1.0+overlay.3.dist-info"
        manifest = json.loads(wheel.read(f"{dist_info}/sglang-overlay.json"))
    assert manifest["dependencies"] == [list(change) for change in built.dependencies]
    assert PathDistribution(tmp_path / dist_info).requires == [
        "numpy<2",
        f"av==16.1.0;   {LINUX}",
        "Flash_Infer[cu13]==0.7.2",
        "sglang-kernel==0.4",
        "kt-kernel>=0.3",
        f'av==16.1.0; {LINUX} and extra == "http2"',
    ]
    assert verify_wheel(built.path).differences == []
    mini.require("releases = '>1.0'\noverride = ['numpy<2']\n")
    assert mini.build().sha256 == before


def test_a_wheel_without_changes_says_nothing_of_them(mini: Miniature) -> None:
    with zipfile.ZipFile(mini.build().path) as wheel:
        assert b"dependencies" not in wheel.read("sglang-1.0+overlay.3.dist-info/sglang-overlay.json")


def test_requirements_that_are_not_as_the_manifest_says_are_found(mini: Miniature) -> None:
    mini.require("override = ['numpy<2']\nexclude = ['granian; extra == \"http2\"']\n")
    with zipfile.ZipFile(mini.build().path) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist() if not name.endswith(("/", "RECORD"))}
    name = "sglang-1.0+overlay.3.dist-info/METADATA"

    def differences(text: str) -> list[str]:
        forged = write_wheel(mini.root / "forged.whl", {**files, name: text.encode()})
        return list(verify_wheel(forged).differences)[:-1]  # the last is RECORD's

    made = files[name].decode()
    assert verify_wheel(mini.build().path).differences == []
    assert differences(made.replace("numpy<2", "numpy<3", 1)) == [f"differs: {name} (it does not require numpy<2)"]
    granian = 'granian>=2.6.0; extra == "http2"'
    assert differences(f"Requires-Dist: {granian}\n{made}") == [f"differs: {name} (it requires {granian})"]
    assert "Expected" in differences(f"Requires-Dist: =\n{made}")[0]


def test_the_cpu_kernel_has_the_version_that_an_override_pins(mini: Miniature) -> None:
    mini.require("override = ['sglang-kernel==0.5']\n")
    assert build_kernel(mini.project, mini.lock["1.0"]).path.name == "sglang_kernel-0.5+cpu.3-py3-none-any.whl"
    mini.require("override = ['sglang-kernel==0.5+cu130']\n")
    assert build_kernel(mini.project, mini.lock["1.0"]).path.name == "sglang_kernel-0.5+cu130-py3-none-any.whl"
    mini.require("exclude = ['sglang-kernel']\noverride = ['sgl-kernel==0.3']\n")
    assert build_kernel(mini.project, mini.lock["1.0"]).path.name == "sgl_kernel-0.3+cpu.3-py3-none-any.whl"
    mini.require("exclude = ['sglang-kernel']\n")
    assert build_kernel(mini.project, mini.lock["1.0"]).path.name == "sglang_kernel-0.4+cpu.3-py3-none-any.whl"


def test_changed_requirements_change_the_results_of_their_releases_alone(mini: Miniature) -> None:
    def digests() -> list[dict[str, str]]:
        return [
            Inputs(mini.project, load_series(mini.project.patches)).parts(mini.lock[v], "engine")
            for v in ("1.0", "1.1")
        ]

    before = digests()
    mini.require("releases = '>1.0'\noverride = ['numpy<2']\n")
    after = digests()
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    ("old", "new", "override", "exclude"),
    [
        ("numpy", "numpy<2", ["numpy<2"], []),
        ("numpy", "", [], ["numpy"]),
        ("numpy", "numpy\nRequires-Dist: kt>=1", ["kt>=1"], []),
        ("Flash_Infer[cu13]==0.7.2", "flash-infer[cu13]==0.8", ["flash-infer==0.8"], []),
        ("Flash_Infer[cu13]==0.7.2", "flash-infer[cu12]==0.8", ["flash-infer[cu12]==0.8"], []),
        ("Flash_Infer[cu13]==0.7.2", "flash-infer==0.8", ["flash-infer==0.8"], ["Flash_Infer"]),
        (f"av==16.1.0;   {LINUX}", "av==16.1.0", ["av==16.1.0"], ["av"]),
        (f"av==16.1.0;   {LINUX}", f"av==17; {LINUX}", ["av==17"], []),
        ('granian>=2.6.0; extra == "http2"', 'granian; extra == "http2"', ['granian; extra == "http2"'], []),
        ('granian>=2.6.0; extra == "http2"', f'granian @ {URL} ; extra == "http2"',
         [f'granian @ {URL} ; extra == "http2"'], []),
        ('granian>=2.6.0; extra == "http2"', "", [], ['granian; extra == "http2"']),
        ("numpy", 'numpy==1; os_name == "nt"\nRequires-Dist: numpy==2; os_name != "nt"',
         ['numpy==1; os_name == "nt"', 'numpy==2; os_name != "nt"'], ["numpy"]),
    ],
)  # fmt: skip
def test_the_differences_of_a_fork_make_its_requirements(
    mini: Miniature, old: str, new: str, override: list[str], exclude: list[str]
) -> None:
    lines = f"Requires-Dist: {new}\n" if new else ""
    fork = METADATA.replace(f"Requires-Dist: {old}\n", lines, 1).replace("Name: sglang", "Name: sglang-fork")
    found = compare_requirements(METADATA.encode(), fork.encode())
    assert (found.override, found.exclude, found.left_out) == (override, exclude, [])
    mini.require(f"override = {override}\nexclude = {exclude}\n")
    made, _ = change_requirements(mini.project, mini.lock["1.0"], METADATA.encode())
    assert compare_requirements(made, fork.encode()) == compare_requirements(fork.encode(), fork.encode())


def test_extras_that_a_fork_adds_are_named_and_its_own_name_is_ours() -> None:
    own = 'Requires-Dist: {}[http2]; extra == "full-set"\nDynamic'
    base = METADATA.replace("Dynamic", own.format("sglang"))
    fork = METADATA.replace("Dynamic", own.format("sglang_kt")).replace("Name: sglang", "Name: sglang-kt")
    fork = fork.replace("Dynamic", 'Provides-Extra: new\nRequires-Dist: h3; extra == "new"\nDynamic')
    found = compare_requirements(base.encode(), fork.encode())
    assert (found.override, found.exclude) == ([], [])
    assert found.left_out == ['h3; extra == "new": the release has no such extra.']


def test_metadata_that_is_not_utf_8_is_one_error() -> None:
    with pytest.raises(BuildError, match=r"METADATA of it: 'utf-8' codec"):
        read_requirements(b"Name: \xff\n\n", "it")
