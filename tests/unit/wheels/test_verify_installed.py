from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from overlay_tools.errors import VerifyError
from overlay_tools.wheels.builder import build_kernel
from overlay_tools.wheels.plugin import build_plugin
from overlay_tools.wheels.verify_installed import Found, verify_environment, verify_folder

from unit.conftest import Miniature, upstream_files, write_wheel
from unit.wheels.test_plugin import make_plugin

DIST_INFO = "sglang-1.0+overlay.3.dist-info"
UV = [sys.executable, "-m", "uv"]
BASE_PYTHON = str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def site(self) -> Path:
        (site,) = self.folder.glob("lib/python*/site-packages")
        return site

    def install(self, installer: str, wheels: Sequence[Path], *words: str) -> None:
        if installer == "pip":
            command = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-index"]
        else:
            command = [*UV, "pip", "install", "--quiet", "--offline", "--python", self.python]
        subprocess.run([*command, "--no-deps", *words, *map(str, wheels)], check=True)

    def differences(self) -> dict[str, list[str]]:
        return differences(verify_environment(self.python))


def differences(found: Found) -> dict[str, list[str]]:
    return {one.name: one.differences for one in found.verified}


def for_any(wheel: Path) -> Path:
    """Copy a wheel that pretends to be for one Python on one machine as one that any installer takes."""
    copy = wheel.parent.parent / "wheels" / "-".join([*wheel.stem.split("-")[:2], "py3-none-any.whl"])
    copy.parent.mkdir(exist_ok=True)
    return Path(shutil.copy(wheel, copy))


def upstreams(mini: Miniature, version: str = "1.0") -> Path:
    (wheel,) = mini.releases[version].wheels
    shutil.copy(mini.cache / wheel.sha256 / wheel.name, mini.root / wheel.name)
    (mini.root / "scratch").mkdir(exist_ok=True)
    return for_any(Path(shutil.move(mini.root / wheel.name, mini.root / "scratch" / wheel.name)))


@pytest.fixture
def environment(mini: Miniature) -> Environment:
    subprocess.run([*UV, "venv", "--quiet", "--python", sys.executable, str(mini.root / ".env")], check=True)
    return Environment(mini.root / ".env")


@pytest.fixture
def ours(mini: Miniature) -> list[Path]:
    return [for_any(mini.build().path), for_any(build_kernel(mini.project, mini.lock["1.0"]).path)]


@pytest.fixture(params=["pip", "uv"])
def installed(environment: Environment, ours: list[Path], request: pytest.FixtureRequest) -> Environment:
    environment.install(request.param, ours)
    return environment


@pytest.fixture
def ready(environment: Environment, ours: list[Path]) -> Environment:
    environment.install("uv", ours)
    return environment


def test_a_deleted_file_that_is_back_and_a_wrong_mode_are_named(less: Miniature, installed: Environment) -> None:
    assert installed.differences()["sglang 1.0+overlay.3"] == []
    (installed.site / "sglang/version.py").write_text("x = 1\n")
    (installed.site / "sglang/loader.py").chmod(0o644)
    assert installed.differences()["sglang 1.0+overlay.3"] == [
        "back: sglang/version.py (a hook removes it)",
        "differs: sglang/loader.py (its mode is not 755)",
    ]


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_an_executable_file_of_the_overlay_is_installed_as_one(
    mini: Miniature, environment: Environment, installer: str
) -> None:
    mini.write("overlay/sglang/run.sh", "#!/bin/sh\necho it runs\n").chmod(0o755)
    environment.install(installer, [for_any(mini.build().path)])
    script = environment.site / "sglang" / "run.sh"
    assert subprocess.run([script], capture_output=True, text=True, check=True).stdout == "it runs\n"
    assert environment.differences() == {"sglang 1.0+overlay.3": []}
    script.chmod(0o644)
    assert environment.differences() == {"sglang 1.0+overlay.3": ["differs: sglang/run.sh (its mode is not 755)"]}


def test_an_environment_is_compared_file_by_file(installed: Environment) -> None:
    site = installed.site
    subprocess.run([installed.python, "-c", "import sglang"], check=True)
    assert installed.differences() == {"sglang 1.0+overlay.3": [], "sglang-kernel 0.4+cpu.3": []}
    for name in ("sglang/loader.py", "sgl_kernel/__init__.py"):  # they may be hard links
        (site / name).unlink()
        (site / name).write_text("x = 1\n")
    (site / "sglang/version.py").unlink()
    (site / "sglang/models/foreign.py").write_text("")
    assert installed.differences() == {
        "sglang 1.0+overlay.3": [
            "foreign: sglang/models/foreign.py",
            "differs: sglang/loader.py (patched)",
            "missing: sglang/version.py",
        ],
        "sglang-kernel 0.4+cpu.3": ["differs: sgl_kernel/__init__.py (added)"],
    }


@pytest.mark.parametrize(
    ("installer", "words"),
    [
        ("pip", ["--compile"]),
        ("pip", ["--no-compile"]),
        ("uv", ["--compile-bytecode"]),
        ("uv", ["--link-mode", "symlink"]),
        ("uv", ["--link-mode", "copy"]),
    ],
)
def test_every_way_to_install_is_seen_as_it_is(
    environment: Environment, ours: list[Path], installer: str, words: list[str]
) -> None:
    environment.install(installer, ours, *words)
    assert environment.differences() == {"sglang 1.0+overlay.3": [], "sglang-kernel 0.4+cpu.3": []}


def link_a_folder(site: Path) -> None:
    (site / "sglang/more").symlink_to(site.parent)


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (lambda site: (site / "sglang/__pycache__").mkdir(exist_ok=True) or (site / "sglang/__pycache__/x.so").touch(),
         "foreign: sglang/__pycache__/x.so"),
        (lambda site: (site / "sglang/x.pyc").touch(), "foreign: sglang/x.pyc"),
        (lambda site: (site / DIST_INFO / "x").touch(), f"foreign: {DIST_INFO}/x"),
        (lambda site: (site / "sglang/x\udcff\n.py").touch(), "foreign: 'sglang/x\\udcff\\n.py'"),
        (link_a_folder, "foreign: sglang/more"),
        (lambda site: os.mkfifo(site / "sglang/pipe"), "foreign: sglang/pipe"),
    ],
)  # fmt: skip
def test_a_file_that_no_record_lists_is_found_wherever_it_is(
    ready: Environment, add: Callable[[Path], object], said: str
) -> None:
    add(ready.site)
    assert ready.differences()["sglang 1.0+overlay.3"] == [said]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("sglang/more.py,,", "foreign: sglang/more.py (RECORD lists it without a hash)"),
        ("more.pth,,", "foreign: more.pth (RECORD lists it without a hash)"),
        ("sglang/x.pyc,,", "foreign: sglang/x.pyc (RECORD lists it without a hash)"),
        ("../../../x,,", "missing: ../../../x"),
    ],
)
def test_a_file_that_record_lists_without_a_hash_is_foreign(ready: Environment, row: str, said: str) -> None:
    (ready.site / row.removesuffix(",,")).touch()
    record = ready.site / DIST_INFO / "RECORD"
    text = record.read_text() + row + "\n"
    record.unlink()
    record.write_text(text)
    assert ready.differences()["sglang 1.0+overlay.3"] == [said]


def test_what_installers_and_python_write_is_not_foreign(ready: Environment) -> None:
    (ready.site / "sglang/models/__pycache__").mkdir()
    (ready.site / "sglang/models/__pycache__/gone.cpython-311.pyc").touch()
    (ready.site / DIST_INFO / "uv_build.json").touch()
    assert ready.differences()["sglang 1.0+overlay.3"] == []


def test_a_command_that_is_not_as_its_installer_made_it_is_named(installed: Environment) -> None:
    command = installed.folder / "bin/sglang"
    command.write_text(command.read_text() + "# more\n")
    name = "../../../bin/sglang (a command that the installer made)"
    assert installed.differences()["sglang 1.0+overlay.3"] == [f"differs: {name}"]
    command.unlink()
    assert installed.differences()["sglang 1.0+overlay.3"] == [f"missing: {name}"]


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_folder_is_verified_and_so_is_the_same_on_pythonpath(
    environment: Environment, ours: list[Path], installer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "libraries"
    environment.install(installer, ours, "--target", str(target))
    good: dict[str, list[str]] = {"sglang 1.0+overlay.3": [], "sglang-kernel 0.4+cpu.3": []}
    assert differences(verify_folder(target)) == good
    with pytest.raises(VerifyError, match=r"The environment of .* has no sglang"):
        verify_environment(environment.python)
    monkeypatch.setenv("PYTHONPATH", str(target))
    found = verify_environment(environment.python)
    assert differences(found) == good
    assert {one.place for one in found.verified} == {target}
    assert f"The environment of {environment.python} has no plugin" in found.remarks
    (target / "sglang/loader.py").unlink()
    assert differences(verify_folder(target))["sglang 1.0+overlay.3"] == ["missing: sglang/loader.py"]
    (target / "bin/sglang").write_text("")
    assert [line.split()[0] for line in differences(verify_folder(target))["sglang 1.0+overlay.3"]] == [
        "missing:",
        "differs:",
    ]


def test_what_is_installed_for_the_user_is_verified(
    ours: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "user"))
    monkeypatch.setenv("PIP_BREAK_SYSTEM_PACKAGES", "1")
    pip = [sys.executable, "-m", "pip", "--python", BASE_PYTHON]
    subprocess.run([*pip, "install", "--quiet", "--user", "--no-deps", "--no-index", *map(str, ours)], check=True)
    found = verify_environment(BASE_PYTHON)
    assert differences(found) == {"sglang 1.0+overlay.3": [], "sglang-kernel 0.4+cpu.3": []}
    assert all(one.place and one.place.is_relative_to(tmp_path / "user") for one in found.verified)


def on_pythonpath(environment: Environment, tree: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", f"{tree.parent}{os.pathsep}{tree}")
    return f"{tree / 'sglang'} (on PYTHONPATH)"


def in_the_working_folder(environment: Environment, tree: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tree)
    return f"{tree / 'sglang'} (the working folder)"


def before_it_by_a_pth_file(environment: Environment, tree: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (environment.site / "first.pth").write_text(f"import sys; sys.path.insert(1, {str(tree)!r})\n")
    return f"{tree / 'sglang'}"


def by_an_import_hook(environment: Environment, tree: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (environment.site / "hook.py").write_text(
        "import importlib.machinery, sys\n"
        "class Hook:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name == 'sglang': return importlib.machinery.PathFinder.find_spec(name, [{str(tree)!r}])\n"
        "sys.meta_path.insert(0, Hook)\n"
    )
    (environment.site / "hook.pth").write_text("import hook\n")
    return f"{tree / 'sglang'} (through an editable install or an import hook)"


@pytest.mark.parametrize("shadow", [on_pythonpath, in_the_working_folder, before_it_by_a_pth_file, by_an_import_hook])
def test_another_sglang_that_python_would_import_is_an_error_that_names_both(
    ready: Environment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shadow: Callable[[Environment, Path, pytest.MonkeyPatch], str],
) -> None:
    tree = tmp_path / "tree"
    (tree / "sglang").mkdir(parents=True)
    (tree / "sglang/__init__.py").touch()
    where = shadow(ready, tree, monkeypatch)
    with pytest.raises(VerifyError) as caught:
        verify_environment(ready.python)
    assert str(caught.value) == (
        f"Python imports sglang from {where}, not from sglang 1.0+overlay.3 in {ready.site.resolve()}."
    )
    assert "PYTHONPATH" in caught.value.hint


def test_a_folder_of_that_name_which_is_no_package_shadows_nothing(
    ready: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sglang/python").mkdir(parents=True)
    (tmp_path / "json.py").write_text("raise SystemExit('the working folder is not asked')\n")
    monkeypatch.chdir(tmp_path)
    assert ready.differences() == {"sglang 1.0+overlay.3": [], "sglang-kernel 0.4+cpu.3": []}


def test_upstreams_before_ours_is_an_error_that_names_both(
    mini: Miniature, ready: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.install("uv", [upstreams(mini)], "--target", str(tmp_path / "first"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))
    with pytest.raises(VerifyError) as caught:
        verify_environment(ready.python)
    assert str(caught.value) == (
        f"Python takes sglang 1.0 in {tmp_path / 'first'}, not sglang 1.0+overlay.3 in {ready.site.resolve()}."
    )


def test_upstreams_after_ours_is_remarked(
    mini: Miniature, environment: Environment, ours: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.install("uv", [upstreams(mini)])
    environment.install("uv", ours, "--target", str(tmp_path / "first"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))
    found = verify_environment(environment.python)
    assert differences(found)["sglang 1.0+overlay.3"] == []
    site = environment.site.resolve()
    assert f"sglang 1.0 in {site} is not used: it comes after {tmp_path / 'first'}" in found.remarks


def test_the_plugin_is_verified_and_upstreams_sglang_beside_it(mini: Miniature, environment: Environment) -> None:
    make_plugin(mini)
    kernel = for_any(write_wheel(mini.root / "sglang_kernel-0.4-py3-none-any.whl", KERNEL))
    environment.install("uv", [upstreams(mini), for_any(build_plugin(mini.project).path), kernel])
    found = verify_environment(environment.python)
    assert [(one.name, one.upstreams, one.differences) for one in found.verified] == [
        ("sglang-overlay-plugin 3", False, []),
        ("sglang 1.0", True, []),
    ]
    assert f"sglang-kernel 0.4 in {environment.site.resolve()} is upstream's: not compared" in found.remarks
    for name in ("sglang/loader.py", "sglang_overlay_plugin/attach.py", "sglang_overlay_plugin.pth"):
        (environment.site / name).unlink()
        (environment.site / name).write_text("x = 1\n" if name.endswith(".py") else "\n")
    (environment.site / "sglang/more.py").touch()
    (environment.site / "sglang_overlay_plugin/more.py").touch()
    assert environment.differences() == {
        "sglang-overlay-plugin 3": [
            "foreign: sglang_overlay_plugin/more.py",
            "differs: sglang_overlay_plugin.pth (added)",
            "differs: sglang_overlay_plugin/attach.py (added)",
        ],
        "sglang 1.0": ["foreign: sglang/more.py", "differs: sglang/loader.py (upstream's)"],
    }


def test_plugins_of_other_names_are_verified_beside_it(mini: Miniature, environment: Environment) -> None:
    make_plugin(mini)
    wheels = [upstreams(mini), for_any(build_plugin(mini.project).path)]
    settings = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", f'{settings}plugin-distribution = "Acme.Models"\nplugin-package = "acme"\n')
    environment.install("uv", [*wheels, for_any(build_plugin(mini.project).path)])
    whole: dict[str, list[str]] = {"acme-models 3": [], "sglang-overlay-plugin 3": [], "sglang 1.0": []}
    assert environment.differences() == whole
    (environment.site / "acme.pth").write_text("\n")
    assert environment.differences() == whole | {"acme-models 3": ["differs: acme.pth (added)"]}
    (environment.site / "acme_models-3.dist-info" / "sglang-overlay.json").unlink()
    with pytest.raises(VerifyError, match=r"sglang-overlay\.json"):
        environment.differences()


def test_a_plugin_of_another_name_that_pip_has_removed_in_part(mini: Miniature, environment: Environment) -> None:
    make_plugin(mini)
    settings = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", f'{settings}plugin-distribution = "acme-models"\nplugin-package = "acme"\n')
    environment.install("uv", [upstreams(mini), for_any(build_plugin(mini.project).path)])
    info = environment.site / "acme_models-3.dist-info"
    info.rename(info.with_name("~cme_models-3.dist-info"))
    with pytest.raises(VerifyError, match="an interrupted pip has left"):
        verify_environment(environment.python)


KERNEL = {
    "sgl_kernel/__init__.py": b"",
    "sglang_kernel-0.4.dist-info/METADATA": b"Metadata-Version: 2.1\nName: sglang-kernel\nVersion: 0.4\n",
    "sglang_kernel-0.4.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def test_the_plugin_without_an_sglang_is_verified_and_that_is_said(mini: Miniature, environment: Environment) -> None:
    make_plugin(mini)
    environment.install("uv", [for_any(build_plugin(mini.project).path)])
    found = verify_environment(environment.python)
    assert differences(found) == {"sglang-overlay-plugin 3": []}
    where = f"The environment of {environment.python} has"
    assert found.remarks == [f"{where} no sglang", f"{where} no kernels"]


def test_an_editable_sglang_beside_the_plugin_cannot_be_vouched_for(
    mini: Miniature, environment: Environment, tmp_path: Path
) -> None:
    make_plugin(mini)
    source = write_source(tmp_path / "source")
    environment.install("uv", [for_any(build_plugin(mini.project).path)])
    environment.install("uv", [], "--no-build-isolation", "--editable", str(source))
    with pytest.raises(VerifyError, match=f"is an editable install of file://{source}"):
        verify_environment(environment.python)


def write_source(folder: Path) -> Path:
    """Write a miniature source tree of sglang whose build needs nothing that is not in it."""
    (folder / "sglang").mkdir(parents=True)
    (folder / "sglang/__init__.py").touch()
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "sglang"\nversion = "1.0"\n'
    )
    (folder / "backend.py").write_text(BACKEND)
    return folder


BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "sglang-1.0-py3-none-any.whl"
    files = {
        "__editable__.sglang-1.0.pth": str(pathlib.Path.cwd()) + "\\n",
        "sglang-1.0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: sglang\\nVersion: 1.0\\n",
        "sglang-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    files["sglang-1.0.dist-info/RECORD"] = "".join(f"{name},,\\n" for name in [*files, "sglang-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"""


@pytest.mark.parametrize("name", ["sglang-1.0.dist-info", "sglang-1.0.egg-info", "sglang.egg-link"])
def test_two_installations_in_one_folder_are_one_error(mini: Miniature, ready: Environment, name: str) -> None:
    (ready.site / name).mkdir()
    with pytest.raises(VerifyError) as caught:
        verify_environment(ready.python)
    site = ready.site.resolve()
    assert str(caught.value) == f"{site} has two distributions of sglang: {DIST_INFO} and {name}."


@pytest.mark.parametrize("left", ["~glang", "~glang-1.0.dist-info", "~gl_kernel", "~glang_kernel-0.4+cpu.2.dist-info"])
def test_what_an_interrupted_pip_has_left_is_an_error(ready: Environment, left: str) -> None:
    (ready.site / left).mkdir()
    with pytest.raises(VerifyError, match=f"{left.replace('+', '.')} is what an interrupted pip has left"):
        verify_environment(ready.python)


def test_a_half_removed_installation_is_one_line(ready: Environment) -> None:
    shutil.rmtree(ready.site / "sglang")
    assert ready.differences() == {
        "sglang 1.0+overlay.3": ["missing: sglang and all that is in it: sglang 1.0+overlay.3 is half removed"],
        "sglang-kernel 0.4+cpu.3": [],
    }


@pytest.mark.parametrize("name", ["RECORD", "sglang-overlay.json"])
def test_an_installation_whose_record_or_manifest_is_gone_is_refused(ready: Environment, name: str) -> None:
    (ready.site / DIST_INFO / name).unlink()
    with pytest.raises(VerifyError, match=f"{name}: No such file") as caught:
        verify_environment(ready.python)
    assert "Install the wheel anew" in caught.value.hint


def test_what_an_uninstalled_one_has_left_is_an_error(ready: Environment) -> None:
    shutil.rmtree(ready.site / DIST_INFO)
    with pytest.raises(VerifyError) as caught:
        verify_environment(ready.python)
    site = ready.site.resolve()
    assert str(caught.value) == f"Python imports sglang from {site / 'sglang'}, which nothing installed brings."
    with pytest.raises(VerifyError, match=f"{ready.site / 'sglang'} belongs to nothing that is installed in"):
        verify_folder(ready.site)


def test_a_file_that_cannot_be_read_is_named(ready: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "loader.py":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(VerifyError, match=r"sglang/loader.py: Permission denied\."):
        verify_environment(ready.python)


def test_an_environment_without_ours_is_refused(mini: Miniature, environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match=r"The environment of .* has no sglang"):
        verify_environment(environment.python)
    environment.install("uv", [upstreams(mini)])
    with pytest.raises(VerifyError, match=r"has sglang-1.0.dist-info, which is not an overlay build of sglang"):
        verify_environment(environment.python)
    with pytest.raises(VerifyError, match=rf"{tmp_path / 'absent'}: No such file or directory"):
        verify_folder(tmp_path / "absent")
    with pytest.raises(VerifyError, match=rf"{tmp_path} has no sglang"):
        verify_folder(tmp_path)


def test_what_is_not_an_interpreter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("neither a program nor a script")
    (tmp_path / "text").chmod(0o755)
    for path in (tmp_path / "absent", tmp_path, tmp_path / "text"):
        with pytest.raises(VerifyError, match=r"is not a Python interpreter: .* cannot be run") as caught:
            verify_environment(str(path))
        assert ".venv/bin/python" in caught.value.hint
    with pytest.raises(VerifyError, match="/bin/true is not a Python interpreter: it did not answer"):
        verify_environment("/bin/true")


def test_a_cache_that_the_wheel_brought_is_compared(mini: Miniature, environment: Environment) -> None:
    name = "sglang/__pycache__/old.cpython-311.pyc"
    mini.lock_release("1.0", {**upstream_files("1.0"), name: b"x"})
    environment.install("uv", [for_any(mini.build().path)])
    assert environment.differences() == {"sglang 1.0+overlay.3": []}
    (environment.site / name).unlink()
    assert environment.differences() == {"sglang 1.0+overlay.3": [f"missing: {name}"]}
