"""A plugin that is damaged, or has been: it stops servers, with the reason, and no other Python of its environment."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from unit.overlay.installed import DIST_INFO, LAUNCH, OURS, PLUGIN, REGISTER, SERVE, START, VARIABLE, Site, beside

PTH = f"{PLUGIN}.pth"
STOCK = ("-m", "sglang.launch_server", "BaseForCausalLM")
# Raises where a module of the plugin is read, as a file does that may not be read.
UNREADABLE = """\
import sys
class Unreadable:
    def find_spec(name, path=None, target=None):
        if name.startswith({!r}):
            raise PermissionError(13, "Permission denied", name)
sys.meta_path.insert(0, Unreadable)
"""


def unreadable(name: str) -> dict[str, str | None]:
    return {"a.pth": "import unreadable\n", "unreadable.py": UNREADABLE.format(name)}


NOT_WHOLE = "sglang-overlay-plugin is not whole; install it anew"
# What is wrong: the files that differ, None for one that is gone, and what a server says of it.
DAMAGES: dict[str, tuple[Mapping[str, str | None], str]] = {
    "package gone": ({PLUGIN: None}, f"{NOT_WHOLE}: ModuleNotFoundError"),
    "package empty": ({PLUGIN: None, f"{PLUGIN}/data": ""}, f"{NOT_WHOLE}: ModuleNotFoundError"),
    "package a file": ({PLUGIN: None, f"{PLUGIN}.py": "def f(:"}, f"{NOT_WHOLE}: SyntaxError"),
    "package unreadable": (unreadable(f"{PLUGIN}."), f"{NOT_WHOLE}: PermissionError"),
    "init damaged": ({f"{PLUGIN}/__init__.py": "def f(:"}, f"{NOT_WHOLE}: SyntaxError"),
    "init not text": ({f"{PLUGIN}/__init__.py": "\0"}, f"{NOT_WHOLE}: "),
    "init gone": ({f"{PLUGIN}/__init__.py": None}, f"lacks {PLUGIN}/__init__.py; install it anew"),
    "attach gone": ({f"{PLUGIN}/attach.py": None}, f"{NOT_WHOLE}: ModuleNotFoundError"),
    "attach damaged": ({f"{PLUGIN}/attach.py": "def f(:"}, f"{NOT_WHOLE}: SyntaxError"),
    "attach raises": ({f"{PLUGIN}/attach.py": "1 / 0"}, f"{NOT_WHOLE}: ZeroDivisionError"),
    "attach cut short": ({f"{PLUGIN}/attach.py": ""}, f"{NOT_WHOLE}: AttributeError"),
    "checks gone": ({f"{PLUGIN}/checks.py": None}, f"{NOT_WHOLE}: ModuleNotFoundError"),
    "registry gone": ({f"{PLUGIN}/overlay_registry.py": None}, f"lacks {PLUGIN}/overlay_registry.py; install it anew"),
    "model changed": ({f"{PLUGIN}/models/plain.py": "# cut"}, f"has changed since it was installed: {PLUGIN}/models"),
    "file a folder": (
        {f"{PLUGIN}/models/plain.py": None, f"{PLUGIN}/models/plain.py/x": ""},
        f"{PLUGIN}/models/plain.py of sglang-overlay-plugin cannot be read: Is a directory",
    ),
    "RECORD gone": ({f"{DIST_INFO}/RECORD": None}, "lacks its RECORD"),
    "dist-info gone": ({DIST_INFO: None}, "sglang-overlay-plugin is not installed; install its wheel"),
    "line gone": ({PTH: None}, f"lacks {PTH}"),
    "line damaged": ({PTH: "import\n"}, f"has changed since it was installed: {PTH}"),
    "start gone": ({START: None}, f"{NOT_WHOLE}: ModuleNotFoundError"),
    "start damaged": ({START: "def f(:"}, f"{NOT_WHOLE}: SyntaxError"),
    "start raises": ({START: "1 / 0"}, f"{NOT_WHOLE}: ZeroDivisionError"),
    "start cut short": ({START: ""}, f"{NOT_WHOLE}: ImportError"),
    "start unreadable": (unreadable(f"{PLUGIN}_start"), f"{NOT_WHOLE}: PermissionError"),
    "another release": (
        {"sglang-1.0.dist-info/METADATA": "Metadata-Version: 2.4\nName: sglang\nVersion: 1.2\n"},
        "is not proven on sglang 1.2",
    ),
}
LINE = "line damaged"  # of which Python itself says so, for it is not the line any more
WHERE_THE_DOCTOR_RUNS = [
    name for name in DAMAGES if not name.startswith(("package", "init", "start", LINE, "attach cut"))
]
# What is left of a plugin that is not installed any more: it is out of every server's way.
REMAINS: dict[str, tuple[str, ...]] = {
    "the line": (PLUGIN, DIST_INFO, START),
    "the line and what it runs": (PLUGIN, DIST_INFO),
    "those and a folder": (f"{PLUGIN}/__init__.py", f"{PLUGIN}/attach.py", DIST_INFO),
    "a folder": (f"{PLUGIN}/__init__.py", f"{PLUGIN}/attach.py", DIST_INFO, START, PTH),
}


def damage(site: Site, files: Mapping[str, str | None]) -> None:
    for file, text in files.items():
        site.write(file, text)


def assert_that_pythons_run(site: Site) -> None:
    """Assert that programs which serve nothing run as ever, and that nothing is in their output."""
    for environment in ({}, VARIABLE):
        assert quietly(site, "-c", "print('here')", **environment) == "here\n"
    assert quietly(site, "-m", "sglang.check_env") == "checked\n"


def pip_list(site: Site) -> str:
    """List what is installed with this environment's own pip, which site's Python runs."""
    spec = importlib.util.find_spec("pip")
    assert spec is not None
    assert spec.origin is not None
    return quietly(site, str(Path(spec.origin).parent), "list", "--disable-pip-version-check", **VARIABLE)


def quietly(site: Site, *words: str, **environment: str) -> str:
    done = site.run(*words, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != LINE])
def test_a_damaged_plugin_shows_in_no_program_that_serves_nothing(site: Site, name: str) -> None:
    damage(site, DAMAGES[name][0])
    assert_that_pythons_run(site)


@pytest.mark.parametrize("name", ["package gone", "attach damaged", "start damaged", "another release"])
def test_pip_works_where_a_damaged_plugin_is(site: Site, name: str) -> None:
    damage(site, DAMAGES[name][0])
    assert "sglang-overlay-plugin" in pip_list(site)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_plugin_stops_a_server_and_says_why_once(site: Site, name: str) -> None:
    files, says = DAMAGES[name]
    damage(site, files)
    for words in (LAUNCH, (*LAUNCH[:2], "ExtForCausalLM"), STOCK):
        done = site.run(*words)
        assert (done.returncode, done.stdout) == (1, "")
        last = done.stderr.splitlines()[-1]
        assert says in last
        assert last.startswith("sglang-overlay-plugin")
        assert done.stderr.count("stops this server") <= 1
        if not name.startswith(("attach", "init", "checks", "package", "start", "line")):
            assert done.stderr == last + "\n"


@pytest.mark.parametrize("name", ["model changed", "another release"])
def test_a_server_that_would_be_stopped_shows_its_help(site: Site, name: str) -> None:
    damage(site, DAMAGES[name][0])
    assert quietly(site, *LAUNCH[:2], "--help") == "usage: launch_server\n"


@pytest.mark.parametrize("name", REMAINS)
def test_what_is_left_of_a_plugin_stops_nothing(site: Site, name: str) -> None:
    damage(site, dict.fromkeys(REMAINS[name]))
    assert_that_pythons_run(site)
    assert quietly(site, *STOCK) == "came up with sglang.srt.models.base.BaseForCausalLM\n"


def test_without_sglang_python_runs_and_the_doctor_says_that_it_is_not_installed(site: Site) -> None:
    damage(site, {"sglang": None, "sglang-1.0.dist-info": None})
    for environment in ({}, VARIABLE):
        assert quietly(site, "-c", "print('here')", **environment) == "here\n"
    assert "sglang-overlay-plugin" in pip_list(site)
    done = site.run("-m", PLUGIN, "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == "FAILED this plugin and the installed sglang: sglang is not installed"


@pytest.mark.parametrize(
    "name", [name for name in DAMAGES if not name.startswith(("package", "init", "start", LINE, "attach cut"))]
)
def test_the_doctor_says_of_a_damaged_plugin_what_a_server_says(site: Site, name: str) -> None:
    files, says = DAMAGES[name]
    damage(site, files)
    done = site.run("-m", PLUGIN, "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    (fault,) = (line for line in done.stdout.splitlines() if line.startswith("FAILED"))
    assert says.partition(": ")[0] in fault


@pytest.mark.parametrize("chosen", ["another", " another , third"])
def test_a_plugin_that_is_left_out_is_in_no_servers_way(site: Site, chosen: str) -> None:
    damage(site, DAMAGES["another release"][0])
    left_out = {"SGLANG_PLUGINS": chosen}
    assert quietly(site, *STOCK, **left_out) == "came up with sglang.srt.models.base.BaseForCausalLM\n"
    site.write("sglang/srt/plugins", None)  # whether or not upstream knows the variable
    assert quietly(site, *STOCK, **left_out) == "came up with sglang.srt.models.base.BaseForCausalLM\n"
    done = site.run(*LAUNCH, **VARIABLE, **left_out)  # one that the program asks for by name is not left out
    assert (done.returncode, done.stdout) == (1, "")
    assert "stops this server" in done.stderr


@pytest.mark.parametrize("chosen", ["", " , ", "another, sglang_overlay_plugin"])
def test_a_plugin_that_is_chosen_serves(site: Site, chosen: str) -> None:
    site.write("sglang/srt/plugins", None)
    assert quietly(site, *LAUNCH, SGLANG_PLUGINS=chosen) == OURS["PlainForCausalLM"]


MODULES = "import sys; print(*sorted(sys.modules))"


def test_a_start_of_python_imports_one_module(site: Site) -> None:
    with_it = [set(quietly(site, "-c", MODULES, **environment).split()) for environment in ({}, VARIABLE)]
    site.write(PTH, None)
    without = set(quietly(site, "-c", MODULES).split())
    assert [names - without for names in with_it] == [{f"{PLUGIN}_start"}] * 2


def test_a_start_of_python_takes_no_time(site: Site, tmp_path: Path) -> None:
    bare = Site(shutil.copytree(site.folder, tmp_path / "bare", symlinks=True))
    bare.write(PTH, None)
    cases = {"without": (bare, {}), "with": (site, {}), "with the variable": (site, VARIABLE)}
    for where, _ in cases.values():
        where.run("-c", "", PYTHONDONTWRITEBYTECODE="")
    # The least of many, of this process alone, each case in turn: whatever else the machine does only adds to it.
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(20):
        for name, case in cases.items():
            seconds[name].append(seconds_to_start(*case))
    least = {name: min(measured) for name, measured in seconds.items()}
    assert least["with"] < least["without"] + 0.005
    assert least["with the variable"] < least["without"] + 0.005


def seconds_to_start(site: Site, environment: Mapping[str, str]) -> float:
    python = str(site.folder / "bin" / "python")
    process = subprocess.Popen([python, "-c", ""], env={"PATH": os.environ["PATH"], **environment})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


# As a program starts what is to serve with Ray.
DRIVER = """\
import sys
if sys.argv[1:] == ["by hand"]:
    import sglang_overlay_plugin
    sglang_overlay_plugin.register()
from sglang.srt.ray.engine import RayEngine
print(RayEngine().start(), flush=True)
"""


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("how", ["", "by hand"])
def test_an_actor_serves_our_class(site: Site, how: str, name: str) -> None:
    site.write("driver.py", DRIVER)
    assert quietly(site, "-m", "driver", how, MODEL=name) == OURS[name] + "\n"


def test_an_actor_that_would_lack_the_plugin_is_not_started(site: Site, tmp_path: Path) -> None:
    elsewhere = beside(site, tmp_path)
    site.write("driver.py", DRIVER)
    done = site.run("-m", "driver", "by hand", **elsewhere, MODEL="PlainForCausalLM")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "sglang-overlay-plugin stops this server: Ray would start its processes without it; install"
        " sglang-overlay-plugin in site-packages, where Python reads sglang_overlay_plugin.pth when it starts\n"
    )


@pytest.mark.parametrize("name", OURS)
def test_beside_site_packages_upstream_finds_the_entry_point(site: Site, tmp_path: Path, name: str) -> None:
    elsewhere = beside(site, tmp_path)
    assert quietly(site, *LAUNCH[:2], name, **elsewhere) == OURS[name]
    site.write("sglang/srt/plugins", None)
    assert OURS[name] not in site.run(*LAUNCH[:2], name, **elsewhere).stdout
    done = site.run("-m", PLUGIN, "doctor", **elsewhere)
    assert done.returncode == 1
    assert "FAILED nothing loads it: install it in site-packages" in done.stdout


@pytest.mark.parametrize("name", OURS)
def test_beside_site_packages_it_may_be_imported_after_sglang(site: Site, tmp_path: Path, name: str) -> None:
    code = "import sglang.srt.models.registry\n" + REGISTER + SERVE.replace("PlainForCausalLM", name)
    assert quietly(site, "-c", code, **beside(site, tmp_path)) == OURS[name]


@pytest.mark.parametrize("name", ["attach gone", "attach damaged", "checks gone", "start gone"])
def test_beside_site_packages_a_damaged_plugin_stops_a_server(site: Site, tmp_path: Path, name: str) -> None:
    files, says = DAMAGES[name]
    damage(site, files)
    done = site.run(*LAUNCH, **beside(site, tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr.splitlines()[-1]
