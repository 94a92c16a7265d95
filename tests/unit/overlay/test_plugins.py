"""Several overlays in one environment: two plugins of different names, and a plugin beside the drop-in wheel."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from overlay_tools.settings import load_project
from overlay_tools.wheels.plugin import runtime_files

from unit.conftest import REPOSITORY, write_wheel
from unit.overlay.installed import LAUNCH, OURS, OVERLAY, PLUGIN, SERVE, Site, make_plugin, overlay_files, pip
from unit.overlay.published import SGLANG

PACKAGES = ("acme_models", "zeta_models")  # Python reads the line of one before ours, and that of the other after it
RENAMED = {"PlainForCausalLM": "TeamPlainForCausalLM", "ExtForCausalLM": "TeamExtForCausalLM", '"ext"': '"team_ext"'}


def renamed(text: str, *kept: str) -> str:
    for old, new in RENAMED.items():
        text = text if old in kept else text.replace(old, new)
    return text


def distribution(package: str) -> str:
    return f"{package.partition('_')[0]}-sglang-models"


def theirs(package: str) -> dict[str, str]:
    """Give what serves each model of a team's plugin."""
    names = {name: renamed(name) for name in OURS}
    return {new: f"came up with {package}.models.{old[:-11].lower()}.{new}\n" for old, new in names.items()}


def team_plugin(folder: Path, package: str, *kept: str, more: Mapping[str, str] | None = None) -> Path:
    """Build a plugin of a team: the same models under other names, but for those that are kept."""
    files = {name: renamed(text, *kept) for name, text in overlay_files().items()}
    names = f'plugin-distribution = "{distribution(package)}"\nplugin-package = "{package}"\n'
    return make_plugin(folder, {**files, **(more or {})}, names)


@pytest.fixture(scope="session", params=PACKAGES)
def team(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return the package of a team's plugin and its wheel."""
    return request.param, team_plugin(tmp_path_factory.mktemp("team") / "project", request.param)


@pytest.fixture
def both(site: Site, team: tuple[str, Path]) -> tuple[Site, str]:
    """Return an environment with our plugin and a team's, and the package of that."""
    pip(site, "install", "--no-deps", team[1])
    return site, team[0]


def everything(package: str) -> dict[str, str]:
    return {**OURS, **theirs(package)}


def quietly(site: Site, *words: str, **environment: str) -> str:
    done = site.run(*words, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("plugins", ["", f"zeta_models,{PLUGIN},acme_models"])
def test_each_plugin_serves_its_own_models(both: tuple[Site, str], plugins: str) -> None:
    site, package = both
    for loaded_by_upstream in (True, False):  # from 0.5.11 on, it loads plugins itself
        for name, served in everything(package).items():
            assert quietly(site, *LAUNCH[:2], name, SGLANG_PLUGINS=plugins) == served
        base = "came up with sglang.srt.models.base.BaseForCausalLM\n"
        assert quietly(site, *LAUNCH[:2], "BaseForCausalLM", SGLANG_PLUGINS=plugins) == base
        if loaded_by_upstream:
            site.write("sglang/srt/plugins", None)


def test_one_of_them_may_be_left_out(both: tuple[Site, str]) -> None:
    site, package = both
    for chosen, served, other in ((PLUGIN, OURS, theirs(package)), (package, theirs(package), OURS)):
        for name, line in served.items():
            assert quietly(site, *LAUNCH[:2], name, SGLANG_PLUGINS=chosen) == line
        for name, line in other.items():
            assert line not in site.run(*LAUNCH[:2], name, SGLANG_PLUGINS=chosen).stdout


@pytest.mark.parametrize("ours_first", [True, False])
def test_both_are_registered_by_hand_in_any_order(both: tuple[Site, str], tmp_path: Path, ours_first: bool) -> None:
    site, package = both
    elsewhere = {"PYTHONPATH": str(move_plugins(site, tmp_path))}
    names = (PLUGIN, package) if ours_first else (package, PLUGIN)
    register = "".join(f"import {name}; {name}.register()\n" for name in names)
    late = "import sglang.srt.model_loader.loader, sglang.srt.models.registry\n"
    site.write("sglang/srt/plugins", None)
    for before in ("", late):
        for name, served in everything(package).items():
            code = before + register + SERVE.replace("PlainForCausalLM", name)
            assert site.printed("-c", code, **elsewhere) == served


def test_beside_site_packages_upstream_finds_both_entry_points(both: tuple[Site, str], tmp_path: Path) -> None:
    site, package = both
    elsewhere = str(move_plugins(site, tmp_path))
    for name, served in everything(package).items():
        assert quietly(site, *LAUNCH[:2], name, PYTHONPATH=elsewhere) == served


def move_plugins(site: Site, folder: Path) -> Path:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for package in (PLUGIN, *PACKAGES):
        for path in [*site.packages.glob(f"{package}*"), *site.packages.glob(f"{package.partition('_')[0]}_sglang*")]:
            path.rename(elsewhere / path.name)
    return elsewhere


@pytest.mark.parametrize("ours", [True, False])
def test_upstream_may_be_told_to_load_the_models_of_one(both: tuple[Site, str], ours: bool) -> None:
    site, package = both
    named = {"SGLANG_EXTERNAL_MODEL_PACKAGE": f"{PLUGIN if ours else package}.models"}
    for name, served in everything(package).items():
        assert quietly(site, *LAUNCH[:2], name, **named) == served


TREE = """\
import multiprocessing, sys
from sglang.launch_server import serve

def child(depth):
    print(*map(serve, sys.argv[2:]), flush=True)
    if depth:
        process = multiprocessing.get_context(sys.argv[1]).Process(target=child, args=(depth - 1,))
        process.start()
        process.join()
        assert process.exitcode == 0

if __name__ == "__main__":
    from sglang.srt.plugins import load_plugins
    load_plugins()
    child(2)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("in_site_packages", [True, False])
def test_every_process_below_serves_the_models_of_both(
    both: tuple[Site, str], tmp_path: Path, method: str, in_site_packages: bool
) -> None:
    site, package = both
    (site.folder / "tree.py").write_text(TREE)
    environment = {} if in_site_packages else {"PYTHONPATH": str(move_plugins(site, tmp_path))}
    served = everything(package)
    line = " ".join(text.strip() for text in served.values()) + "\n"
    assert site.printed("tree.py", method, *served, **environment) == line * 3


def test_the_processors_of_both_are_found(both: tuple[Site, str]) -> None:
    site, package = both
    code = "from sglang.srt.managers.tokenizer_manager import start\nstart()\nstart()\n"
    assert set(quietly(site, "-c", code).splitlines()) == {
        "BaseForCausalLM sglang.srt.multimodal.processors.base",
        f"ExtForCausalLM {PLUGIN}.multimodal.processors.ext",
        f"TeamExtForCausalLM {package}.multimodal.processors.ext",
    }


@pytest.mark.parametrize(
    ("name", "seen"), [("PlainForCausalLM", "16"), ("TeamPlainForCausalLM", "16"), ("BaseForCausalLM", "None")]
)
def test_the_servers_arguments_are_those_of_the_row(both: tuple[Site, str], name: str, seen: str) -> None:
    code = f"from sglang.srt.server_args import ServerArgs; print(ServerArgs(model_path={name!r}).seen)"
    assert both[0].printed("-c", code) == f"{seen}\n"


def test_the_doctor_of_each_finds_nothing_wrong(both: tuple[Site, str]) -> None:
    site, package = both
    for name in (PLUGIN, package):
        said = quietly(site, "-m", name, "doctor").splitlines()
        assert [line for line in said if not line.startswith(("ok ", "       "))] == []
        assert f"ok     loaded by {name}.pth, in each process" in said
        assert any(line.startswith(f"ok     model: {name}.models.plain:") for line in said)
    said = quietly(site, "-m", package, "doctor").splitlines()
    assert f"       {distribution(package)} 3, proven on sglang 1.0, 1.1" in said
    done = site.run("-m", package, "doctor", SGLANG_PLUGINS=PLUGIN)
    assert f"FAILED SGLANG_PLUGINS={PLUGIN} leaves {package} out" in done.stdout.splitlines()


@pytest.mark.parametrize("ours", [True, False])
def test_when_one_is_uninstalled_the_other_serves(both: tuple[Site, str], ours: bool) -> None:
    site, package = both
    pip(site, "uninstall", "sglang-overlay-plugin" if ours else distribution(package))
    gone, served = (PLUGIN, theirs(package)) if ours else (package, OURS)
    assert list(site.packages.glob(f"{gone}*")) == []
    for name, line in served.items():
        assert quietly(site, *LAUNCH[:2], name) == line


@pytest.mark.parametrize("file", ["attach.py", "models/plain.py"])
def test_a_damaged_one_says_that_it_is_the_one(both: tuple[Site, str], file: str) -> None:
    site, package = both
    site.write(f"{package}/{file}", None)
    done = site.run(*LAUNCH)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(distribution(package))
    assert "sglang-overlay-plugin" not in done.stderr.splitlines()[-1]
    assert quietly(site, *LAUNCH, SGLANG_PLUGINS=PLUGIN) == OURS["PlainForCausalLM"]


TEMPLATE = """\
class Template: name = "common"
def make(): return Template()
"""
CONVERSATION = "chat_templates = {}\n"
ROW = """\
from sglang.srt.overlay_models import OverlayModel
ROW = OverlayModel(model="sglang.srt.models.NAME:CLASS", chat_template="sglang.srt.configs.template:make")
"""
PROCESSOR = """\
from sglang.srt.models.base import BaseForCausalLM
class Processor: models = (BaseForCausalLM,)
"""
# What both plugins have: names that a team's plugin keeps, files that both get, the program and what it says.
CLASHES: dict[str, tuple[tuple[str, ...], Mapping[str, str], tuple[str, ...], str]] = {
    "architecture": (("PlainForCausalLM",), {}, LAUNCH, "both have the architecture PlainForCausalLM"),
    "architecture of upstream's model": (
        ("PlainForCausalLM",),
        {},
        (*LAUNCH[:2], "BaseForCausalLM"),
        "both have the architecture PlainForCausalLM",
    ),
    "model_type": (('"ext"',), {}, LAUNCH, "both have the model_type ext"),
    "chat template": (
        (),
        {
            "configs/template.py": TEMPLATE,
            "models/chatty.py": "class CLASS: pass\nEntryClass = CLASS\n",
            "overlay_models/chatty.py": ROW.replace("NAME", "chatty"),
        },
        LAUNCH,
        "both have the chat_template common",
    ),
    "processor": (
        (),
        {"multimodal/processors/more.py": PROCESSOR},
        ("-c", "from sglang.srt.managers.tokenizer_manager import start\nstart()\n"),
        "both have the processor of BaseForCausalLM",
    ),
}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", CLASHES)
def test_a_name_that_both_have_is_refused_and_both_are_named(
    site: Site, tmp_path: Path, name: str, package: str
) -> None:
    kept, more, words, says = CLASHES[name]
    site.write("sglang/srt/parser/__init__.py", "")
    site.write("sglang/srt/parser/conversation.py", CONVERSATION)
    ours, teams = (
        {file: text.replace("CLASS", cls) for file, text in more.items()} for cls in ("Chatty", "TeamChatty")
    )
    pip(site, "install", "--no-deps", make_plugin(tmp_path / "ours", overlay_files() | ours))
    pip(site, "install", "--no-deps", team_plugin(tmp_path / "team", package, *kept, more=teams))
    done = site.run(*words)
    assert done.returncode == 1
    assert "came up" not in done.stdout
    last = done.stderr.splitlines()[-1]
    assert says in last
    assert "sglang-overlay-plugin 3" in last
    assert f"{distribution(package)} 3" in last
    assert "uninstall one, or let SGLANG_PLUGINS leave one out" in last
    assert site.run(*words, SGLANG_PLUGINS=PLUGIN).returncode == 0
    for each in (PLUGIN, package):
        told = site.run("-m", each, "doctor")
        assert told.returncode == 1
        assert any(line.startswith("FAILED") and says in line for line in told.stdout.splitlines()), told.stdout
        if name != "processor" and each == min(PLUGIN, package):  # the first one, which has not been refused itself
            assert re.search(rf"^FAILED \S+ 3 and \S+ 3 {says}", told.stdout, re.MULTILINE)


HOOKS = {
    "sglang/srt/configs/model_config.py": "from sglang.srt import overlay_registry\n"
    "overlay_registry.install(multimodal_model_archs)\n",
    "sglang/srt/model_loader/utils.py": """\
def upstreams(model_config, find=get_model_architecture):
    return find(model_config)
def get_model_architecture(model_config):
    from sglang.srt import overlay_registry
    return overlay_registry.resolve_model(model_config) or upstreams(model_config)
""",
}
DROP_IN = {name: line.replace(f"{PLUGIN}.", "sglang.srt.") for name, line in OURS.items()}


def drop_in(site: Site) -> None:
    """Put the drop-in wheel of the overlay in place of sglang."""
    for name, text in overlay_files().items():
        site.write(f"sglang/srt/{name}", text)
    for name, more in HOOKS.items():
        site.write(name, SGLANG[name] + more)
    site.write("sglang-1.0.dist-info", None)
    site.write(
        "sglang-1.0+overlay.3.dist-info/METADATA", "Metadata-Version: 2.4\nName: sglang\nVersion: 1.0+overlay.3\n"
    )
    site.write("sglang-1.0+overlay.3.dist-info/top_level.txt", "sglang\n")


def test_beside_the_drop_in_wheel_a_teams_plugin_serves(both: tuple[Site, str]) -> None:
    site, package = both
    pip(site, "uninstall", "sglang-overlay-plugin")
    drop_in(site)
    for name, served in {**DROP_IN, **theirs(package)}.items():
        assert quietly(site, *LAUNCH[:2], name) == served
    code = "from sglang.srt.managers.tokenizer_manager import start\nstart()\n"
    assert f"TeamExtForCausalLM {package}.multimodal.processors.ext" in quietly(site, "-c", code)
    assert "FAILED" not in quietly(site, "-m", package, "doctor")


def test_the_drop_in_wheel_and_a_plugin_of_the_same_models_do_not_go_together(site: Site) -> None:
    drop_in(site)
    for name in (*DROP_IN, "BaseForCausalLM"):
        done = site.run(*LAUNCH[:2], name)
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1
        assert "sglang 1.0+overlay.3 and sglang-overlay-plugin 3 both have the architecture" in done.stderr
    for name, served in DROP_IN.items():
        assert quietly(site, *LAUNCH[:2], name, SGLANG_PLUGINS="none") == served
    assert quietly(site, "-m", "sglang.check_env") == "checked\n"
    # As a server imports them: the plugin attaches to the first before the wheel's own hook is in the second.
    both = "import sglang.srt.server_args, sglang.srt.configs.model_config\n"
    assert quietly(site, "-c", both + "print('here')") == "here\n"
    done = site.run("-c", both + SERVE)
    assert (done.returncode, done.stdout) == (1, "")
    assert "sglang 1.0+overlay.3 and sglang-overlay-plugin 3 both have the architecture" in done.stderr


def test_a_project_of_its_own_takes_what_a_plugin_needs_whole(site: Site, tmp_path: Path) -> None:
    """Its models and rows are written under its own names, and its wheel by whatever builds wheels."""
    project = replace(load_project(REPOSITORY), plugin_distribution="acme-sglang-models", plugin_package="acme_models")
    files = runtime_files(project)
    assert [name for name, data in files.items() if b"sglang.srt.overlay" in data or b"overlay_plugin" in data] == []
    assert not any("qwen" in name or "llama" in name for name in files)
    own = {
        f"acme_models/{name}": renamed(text).replace("sglang.srt.", "acme_models.").encode()
        for name, text in OVERLAY.items()
    }
    info = {
        "METADATA": "Metadata-Version: 2.4\nName: acme-sglang-models\nVersion: 0.1\nKeywords: sglang==1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": "[sglang.srt.plugins]\nacme_models = acme_models.attach:attach\n",
    }
    metadata = {f"acme_sglang_models-0.1.dist-info/{name}": text.encode() for name, text in info.items()}
    wheel = write_wheel(tmp_path / "acme_sglang_models-0.1-py3-none-any.whl", {**files, **own, **metadata})
    pip(site, "install", "--no-deps", wheel)
    for name, served in everything("acme_models").items():
        assert quietly(site, *LAUNCH[:2], name) == served
    assert "FAILED" not in quietly(site, "-m", "acme_models", "doctor")


def another_revision(site: Site, folder: Path) -> Path:
    """Put another revision of our plugin in a folder."""
    elsewhere = shutil.copytree(site.packages, folder / "elsewhere", ignore=shutil.ignore_patterns("sglang", "pip*"))
    info = elsewhere / f"{PLUGIN}-3.dist-info"
    (info / "METADATA").write_text((info / "METADATA").read_text().replace("Version: 3", "Version: 4"))
    info.rename(info.with_name(f"{PLUGIN}-4.dist-info"))
    record = info.with_name(f"{PLUGIN}-4.dist-info") / "RECORD"
    record.write_text("".join(line for line in record.read_text().splitlines(True) if "dist-info" not in line))
    return elsewhere


def test_of_two_revisions_the_one_that_python_takes_serves(site: Site, tmp_path: Path) -> None:
    elsewhere = another_revision(site, tmp_path)
    for name, served in OURS.items():
        assert quietly(site, *LAUNCH[:2], name, PYTHONPATH=str(elsewhere)) == served
    said = quietly(site, "-m", PLUGIN, "doctor", PYTHONPATH=str(elsewhere))
    assert "sglang-overlay-plugin 4, proven on" in said


def test_parts_of_two_revisions_do_not_serve(site: Site, tmp_path: Path) -> None:
    elsewhere = another_revision(site, tmp_path)
    done = site.run("-c", f"import sys; sys.path.insert(0, {str(elsewhere)!r})\n{SERVE}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "sglang-overlay-plugin is installed twice: Python has taken" in done.stderr
