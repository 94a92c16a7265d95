"""The installed plugin beside stand-ins for sglang and transformers, each case in processes of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from unit.overlay.installed import DIST_INFO, LAUNCH, OURS, PLUGIN, REGISTER, SERVE, VARIABLE, Site, beside, ways
from unit.overlay.published import SGLANG


@pytest.mark.parametrize(("name", "seen"), [("PlainForCausalLM", "16"), ("BaseForCausalLM", "None")])
def test_the_servers_arguments_are_those_of_the_row(site: Site, name: str, seen: str) -> None:
    code = f"from sglang.srt.server_args import ServerArgs; print(ServerArgs(model_path={name!r}).seen)"
    assert site.printed("-c", REGISTER + code) == f"{seen}\n"
    # Until 0.5.18, arguments are resolved when they are made.
    later = SGLANG["sglang/srt/server_args.py"].replace("__post_init__", "resolve_once")
    site.write("sglang/srt/server_args.py", later)
    resolve = f"from sglang.srt.server_args import ServerArgs; a = ServerArgs(model_path={name!r}); a.resolve_once();"
    assert site.printed("-c", REGISTER + resolve + "print(a.seen)") == f"{seen}\n"


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("way", ["entry point", "variable", "by hand"])
def test_our_class_serves(site: Site, way: str, name: str) -> None:
    words, environment = ways(name)[way]
    assert site.printed(*words, **environment) == OURS[name]
    if way != "entry point":  # upstream has no such package before 0.5.11
        site.write("sglang/srt/plugins", None)
        assert site.printed(*words, **environment) == OURS[name]


@pytest.mark.parametrize("before", ["", "import sglang.srt.managers.tokenizer_manager\n"])
def test_our_processor_is_found_after_upstreams(site: Site, before: str) -> None:
    start = "from sglang.srt.managers.tokenizer_manager import start\nstart()\n"
    upstreams = "BaseForCausalLM sglang.srt.multimodal.processors.base\n"
    ours = f"ExtForCausalLM {PLUGIN}.multimodal.processors.ext\n"
    assert site.printed("-c", before + REGISTER + start) == upstreams + ours
    site.write(f"{PLUGIN}/multimodal", None)  # a plugin of text models only
    record = (site.packages / DIST_INFO / "RECORD").read_text().splitlines(keepends=True)
    site.write(f"{DIST_INFO}/RECORD", "".join(line for line in record if "/multimodal/" not in line))
    assert site.printed("-c", before + REGISTER + start) == upstreams


def test_a_model_of_upstream_is_served_as_ever(site: Site) -> None:
    assert site.printed("-m", "sglang.launch_server", "BaseForCausalLM") == (
        "came up with sglang.srt.models.base.BaseForCausalLM\n"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import sglang.srt.model_loader.loader\nimport sglang.srt.models.registry\n" + REGISTER,
        "import sglang.srt.configs.model_config\n" + REGISTER * 2,
        REGISTER * 2 + "from sglang.srt.plugins import load_plugins\nload_plugins()\n",
    ],
)
def test_registering_late_or_twice_serves_our_class(site: Site, code: str) -> None:
    for name, served in OURS.items():  # without the hook, upstream serves the second one's base
        assert site.printed("-c", code + SERVE.replace("PlainForCausalLM", name)) == served


TREE = """\
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from sglang.launch_server import serve

def child(method, depth):
    print(serve("PlainForCausalLM"), serve("ExtForCausalLM"), flush=True)
    if depth:
        process = multiprocessing.get_context(method).Process(target=child, args=(method, depth - 1))
        process.start()
        process.join()
        assert process.exitcode == 0

if __name__ == "__main__":
    if sys.argv[2:] == ["by hand"]:
        import sglang_overlay_plugin
        sglang_overlay_plugin.register()
    elif sys.argv[2:] == ["entry point"]:
        from sglang.srt.plugins import load_plugins
        load_plugins()
    child(sys.argv[1], 2)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(sys.argv[1])) as pool:
        print(*pool.map(serve, ["PlainForCausalLM", "ExtForCausalLM"]))
"""


@pytest.mark.parametrize("way", ["entry point", "variable", "by hand"])
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_every_process_below_serves_our_classes(site: Site, method: str, way: str) -> None:
    (site.folder / "tree.py").write_text(TREE)
    environment = VARIABLE if way == "variable" else {}
    line = " ".join(served.strip() for served in OURS.values()) + "\n"
    assert site.printed("tree.py", method, way, **environment) == line * 4


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_beside_site_packages_every_process_below_serves_our_classes(site: Site, tmp_path: Path, method: str) -> None:
    (site.folder / "tree.py").write_text(TREE)
    line = " ".join(served.strip() for served in OURS.values()) + "\n"
    assert site.printed("tree.py", method, "by hand", **beside(site, tmp_path)) == line * 4


def test_a_program_that_registers_the_plugin_has_it_whatever_sglang_plugins_says(site: Site) -> None:
    assert site.printed("-c", REGISTER + SERVE, SGLANG_PLUGINS="another") == OURS["PlainForCausalLM"]


def test_a_module_that_imports_the_plugin_is_attached_to_when_its_code_has_run(site: Site) -> None:
    site.write(MODEL_CONFIG, REGISTER + SGLANG[MODEL_CONFIG])
    assert site.printed(*LAUNCH[:2], "ExtForCausalLM") == OURS["ExtForCausalLM"]


def test_a_process_that_lacks_the_plugin_does_not_serve(site: Site) -> None:
    code = f"""\
import multiprocessing, shutil, sys
from sglang.launch_server import serve
def child():
    print(serve("PlainForCausalLM"))
if __name__ == "__main__":
    {REGISTER.replace(chr(10), "; ")}
    shutil.rmtree({str(site.packages / PLUGIN)!r})
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""
    (site.folder / "tree.py").write_text(code)
    done = site.run("tree.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"No module named '{PLUGIN}'" in done.stderr


def renamed(name: str) -> str:
    """Give the one file of sglang that defines a name, with that name changed everywhere in it."""
    return next(text for text in SGLANG.values() if re.search(rf"^(def )?{name}\b", text, re.M)).replace(name, "gone")


MODEL_CONFIG, UTILS, REGISTRY = (
    f"sglang/srt/{name}.py" for name in ("configs/model_config", "model_loader/utils", "models/registry")
)
METADATA = "sglang-1.0.dist-info/METADATA"
UNPROVEN = SGLANG[METADATA].replace("1.0", "1.2")
SAYS_UNPROVEN = "3 is not proven on sglang 1.2, but on 1.0, 1.1"
ANOTHER = "class PlainForCausalLM: pass\nEntryClass = PlainForCausalLM\n"
REGISTERS = """\
def load():
    from sglang.srt.models.registry import ModelRegistry
    ModelRegistry.register('another.models'{})
"""
TAKES_THE_HOOK = """\
def load():
    import sglang.srt.model_loader.utils
    sglang.srt.model_loader.utils.get_model_architecture = print
"""
CONFIG = "def load():\n    import transformers\n    transformers.CONFIG_MAPPING['ext'] = transformers.LlamaConfig\n"


def another(load: str, name: str) -> dict[str, str | None]:
    """Give the files of another plugin, which upstream loads before ours or after it by its name."""
    return {
        "another/__init__.py": load,
        "another/models/__init__.py": "",
        "another/models/plain.py": ANOTHER,
        "another-1.dist-info/METADATA": "Metadata-Version: 2.4\nName: another\nVersion: 1\n",
        "another-1.dist-info/entry_points.txt": f"[sglang.srt.plugins]\n{name} = another:load\n",
    }


@dataclass
class Fault:
    """What is changed in the environment, what is set, what is said, and by which ways it is met."""

    says: str
    files: Mapping[str, str | None] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    ways: tuple[str, ...] = ("entry point", "variable", "by hand")


ENTRY, NOT_NAMED = ("entry point",), ("entry point", "by hand")
WHOLE = "sglang-overlay-plugin is not whole; install it anew"
UNREADABLE = "utils.py, where sglang-overlay-plugin attaches, cannot be read"
NAMED = "SGLANG_EXTERNAL_MODEL_PACKAGE"
FAULTS = {
    "unproven": Fault(SAYS_UNPROVEN, {METADATA: UNPROVEN}),
    "unproven, 0": Fault(SAYS_UNPROVEN, {METADATA: UNPROVEN}, {"SGLANG_OVERLAY_ALLOW_UNPROVEN": "0"}),
    "unproven, yes": Fault(SAYS_UNPROVEN, {METADATA: UNPROVEN}, {"SGLANG_OVERLAY_ALLOW_UNPROVEN": "yes"}),
    "sglang not installed": Fault("sglang is not installed", {"sglang-1.0.dist-info": None}),
    "sglang missing": Fault("sglang 1.0 is installed, but cannot be imported", {"sglang": None}, ways=("by hand",)),
    "old drop-in wheel": Fault("drop-in wheel that knows of no plugins", {"sglang/srt/overlay_registry.py": ""}),
    "model deleted": Fault(f"lacks {PLUGIN}/models/plain.py; install it anew", {f"{PLUGIN}/models/plain.py": None}),
    "registry deleted": Fault(f"lacks {PLUGIN}/overlay_registry.py", {f"{PLUGIN}/overlay_registry.py": None}),
    "init deleted": Fault(
        f"lacks {PLUGIN}/__init__.py", {f"{PLUGIN}/__init__.py": None}, ways=("entry point", "variable")
    ),
    "attach deleted": Fault(f"{WHOLE}: ModuleNotFoundError", {f"{PLUGIN}/attach.py": None}),
    "attach unreadable": Fault(f"{WHOLE}: SyntaxError", {f"{PLUGIN}/attach.py": "def f(:"}),
    "record deleted": Fault("lacks its RECORD", {f"{DIST_INFO}/RECORD": None}),
    "dist-info missing": Fault("is not installed; install its wheel", {DIST_INFO: None}, ways=("variable", "by hand")),
    "list renamed": Fault("defines no multimodal_model_archs", {MODEL_CONFIG: renamed("multimodal_model_archs")}),
    "function renamed": Fault("defines no get_model_architecture", {UTILS: renamed("get_model_architecture")}),
    "registry renamed": Fault("defines no ModelRegistry", {REGISTRY: renamed("ModelRegistry")}),
    "file gone": Fault(UNREADABLE, {UTILS: None}, ways=("by hand",)),  # of which upstream says so itself, otherwise
    "file unparsable": Fault(UNREADABLE, {UTILS: "def f(:"}, ways=("by hand",)),
    "another instead": Fault(
        "registry holds the class of another.models.plain",
        another(REGISTERS.format(", overwrite=True"), "z"),
        ways=ENTRY,
    ),
    "another's configuration": Fault("model_type 'ext' is that of", another(CONFIG, "a"), ways=ENTRY),
    "broken model": Fault(
        "ValueError: no kernel",
        {f"{PLUGIN}/models/plain.py": "raise ValueError('no kernel')"},
        {"SGLANG_OVERLAY_ALLOW_UNPROVEN": "1"},
    ),
    "broken config": Fault(
        "ValueError: no config",
        {f"{PLUGIN}/configs/ext.py": "raise ValueError('no config')"},
        {"SGLANG_OVERLAY_ALLOW_UNPROVEN": "1"},
    ),
    "another external package": Fault(
        "has a model of this name", another("", "a"), {NAMED: "another.models"}, ways=NOT_NAMED
    ),
    "variable too short": Fault("it must be sglang_overlay_plugin.models", {}, {NAMED: PLUGIN}, ways=NOT_NAMED),
    "variable mistyped": Fault(f"{PLUGIN}s", {}, {NAMED: f"{PLUGIN}s.models"}, ways=NOT_NAMED),
}


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, fault in FAULTS.items() for way in fault.ways])
def test_a_server_that_would_be_wrong_does_not_come_up(site: Site, name: str, way: str) -> None:
    fault = FAULTS[name]
    for file, text in fault.files.items():
        site.write(file, text)
    words, environment = ways()[way]
    done = site.run(*words, **{**environment, **fault.environment})
    assert "came up" not in done.stdout
    assert done.returncode != 0
    assert fault.says in done.stderr


@pytest.mark.parametrize("way", ["entry point", "variable", "by hand"])
def test_an_unproven_release_serves_where_that_is_allowed(site: Site, way: str) -> None:
    site.write(METADATA, UNPROVEN)
    words, environment = ways()[way]
    done = site.run(*words, **environment, SGLANG_OVERLAY_ALLOW_UNPROVEN="1")
    assert (done.returncode, done.stdout) == (0, OURS["PlainForCausalLM"])
    assert f"{SAYS_UNPROVEN}; SGLANG_OVERLAY_ALLOW_UNPROVEN=1 lets it serve" in done.stderr


@pytest.mark.parametrize("name", ["a", "z"])  # before ours, and after it
def test_another_plugin_does_not_take_our_place(site: Site, name: str) -> None:
    for file, text in another(REGISTERS.format(""), name).items():
        site.write(file, text)
    assert site.printed(*LAUNCH) == OURS["PlainForCausalLM"]


def test_a_cache_that_was_cleared_does_no_harm(site: Site) -> None:
    record = (site.packages / DIST_INFO / "RECORD").read_text()
    site.write(f"{DIST_INFO}/RECORD", f"{record}{PLUGIN}/__pycache__/attach.cpython-311.pyc,,\n")
    assert site.printed(*LAUNCH) == OURS["PlainForCausalLM"]


def test_the_doctor_finds_nothing_wrong(site: Site) -> None:
    said = site.printed("-m", PLUGIN, "doctor").splitlines()
    assert [line for line in said if not line.startswith(("ok ", "       "))] == []
    assert "       sglang-overlay-plugin 3, proven on sglang 1.0, 1.1" in said
    for target in (
        "model_config.multimodal_model_archs",
        "utils.get_model_architecture",
        "registry.ModelRegistry",
        "multimodal_processor.import_processors",
    ):
        assert sum(line.startswith("ok     hook:") and line.endswith(target) for line in said) == 1
    assert f"ok     model: {PLUGIN}.models.plain:PlainForCausalLM" in said
    assert f"ok     configuration: {PLUGIN}.configs.ext:ExtConfig" in said
    assert "ok     multimodal architecture: ExtForCausalLM" in said
    assert "ok     processor of ExtForCausalLM" in said


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (FAULTS["unproven"], SAYS_UNPROVEN),
        (FAULTS["function renamed"], "defines no get_model_architecture"),
        (FAULTS["model deleted"], "models/plain.py"),
        (FAULTS["broken model"], "ValueError: no kernel"),
        (FAULTS["another instead"], "another.models.plain.PlainForCausalLM'> under this name"),
        (FAULTS["broken config"], "ValueError: no config"),
        (Fault("", another(TAKES_THE_HOOK, "z")), "utils.get_model_architecture: it is not this plugin's function"),
        (FAULTS["another's configuration"], "model_type 'ext'"),
        (
            Fault("", {f"{DIST_INFO}/entry_points.txt": "", f"{DIST_INFO}/RECORD": f"{PLUGIN}/attach.py,,\n"}),
            "entry point in",
        ),
        (
            Fault("", environment={"SGLANG_PLUGINS": "another"}),
            "SGLANG_PLUGINS=another leaves sglang_overlay_plugin out",
        ),
    ],
)
def test_the_doctor_says_what_is_wrong(site: Site, fault: Fault, says: str) -> None:
    for file, text in fault.files.items():
        site.write(file, text)
    done = site.run("-m", PLUGIN, "doctor", **fault.environment)
    assert done.returncode == 1
    assert any(line.startswith("FAILED") and says in line for line in done.stdout.splitlines()), done.stdout
