"""Where anything of the plugin is missing or in another's way, the server does not come up, and says why."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from engine.harness import RELEASE, run_first, server
from overlay_tools.errors import ServeError
from reference.checkpoints import make_checkpoint, make_variant

# What a process runs first where nothing is to load the plugin: neither its line in site-packages nor its entry point.
NOTHING_LOADS_IT = """
import importlib.metadata, sys

sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "sglang_overlay_plugin_start"]

every = importlib.metadata.entry_points
def entry_points(**chosen):
    found = every(**chosen)
    return type(found)(point for point in found if "sglang_overlay_plugin" not in point.value) if chosen else found
importlib.metadata.entry_points = entry_points
"""
BY_HAND = """
import sys
if "--multiprocessing-fork" not in sys.orig_argv and "sglang.launch_server" in sys.orig_argv:
    import sglang_overlay_plugin
    sglang_overlay_plugin.register()
"""
# Processes are spawned as if the plugin were not there.
NOTHING_IS_CARRIED = """
import multiprocessing.popen_spawn_posix, multiprocessing.spawn, types
multiprocessing.popen_spawn_posix.spawn = types.SimpleNamespace(**vars(multiprocessing.spawn))
"""
UNREADABLE = """
import importlib.abc, sys

class Unreadable(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("sglang_overlay_plugin."):
            raise PermissionError(13, "Permission denied", name)

sys.meta_path.insert(0, Unreadable())
"""
ANOTHERS_CONFIG = """
import sys
if "sglang.launch_server" in sys.orig_argv:
    from transformers import AutoConfig, PretrainedConfig
    class Anothers(PretrainedConfig):
        model_type = "qwen3_next_ext"
    AutoConfig.register("qwen3_next_ext", Anothers)
"""
ANOTHERS_MODEL = """
from sglang.srt.models.llama import LlamaForCausalLM

class LlamaLogitShapingForCausalLM(LlamaForCausalLM):
    pass

EntryClass = LlamaLogitShapingForCausalLM
"""


def llama(folder: Path) -> None:
    make_checkpoint("llama-logit-shaping", folder)


def qwen(folder: Path) -> None:
    make_variant(folder, {})


def nothing_loads_it(folder: Path) -> dict[str, str]:
    return run_first(NOTHING_LOADS_IT, folder)


def unreadable(folder: Path) -> dict[str, str]:
    return run_first(UNREADABLE, folder)


def file_missing(folder: Path) -> dict[str, str]:
    """Put the plugin's distribution first on the path once more, with a file that is not there."""
    change_distribution(folder, "RECORD", "sglang_overlay_plugin/absent.py,,\n")
    return run_first("", folder)


def unproven(folder: Path) -> dict[str, str]:
    change_distribution(folder, "METADATA", "Metadata-Version: 2.4\nName: sglang-overlay-plugin\nVersion: 1\n")
    return run_first("", folder)


def unproven_but_allowed(folder: Path) -> dict[str, str]:
    return unproven(folder) | {"SGLANG_OVERLAY_ALLOW_UNPROVEN": "1"}


def change_distribution(folder: Path, name: str, text: str) -> None:
    own = distribution("sglang-overlay-plugin")
    changed = folder / f"sglang_overlay_plugin-{own.version}.dist-info"
    changed.mkdir()
    for file in ("METADATA", "entry_points.txt"):
        (changed / file).write_text(own.read_text(file) or "", encoding="utf-8")
    (changed / "RECORD").write_text(f"{changed.name}/METADATA,,\n", encoding="utf-8")
    (changed / name).write_text(text, encoding="utf-8")


def target_renamed(folder: Path) -> dict[str, str]:
    """Put an sglang first on the path in which a function that the plugin needs has another name everywhere."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    (upstream,) = map(Path, spec.submodule_search_locations or ())
    for file in upstream.rglob("*"):
        copy = folder / "sglang" / file.relative_to(upstream)
        if file.is_dir() or "__pycache__" in file.parts:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".py" and b"get_model_architecture" in (data := file.read_bytes()):
            copy.write_bytes(data.replace(b"get_model_architecture", b"architecture_of_model"))
        else:
            copy.symlink_to(file)
    return run_first("", folder)


def spawned_without(folder: Path) -> dict[str, str]:
    return run_first(NOTHING_LOADS_IT + NOTHING_IS_CARRIED + BY_HAND, folder)


def anothers_config(folder: Path) -> dict[str, str]:
    return run_first(ANOTHERS_CONFIG, folder)


def anothers_model(folder: Path) -> dict[str, str]:
    (folder / "anothers").mkdir()
    (folder / "anothers" / "__init__.py").touch()
    (folder / "anothers" / "llama.py").write_text(textwrap.dedent(ANOTHERS_MODEL), encoding="utf-8")
    return run_first("", folder) | {"SGLANG_EXTERNAL_MODEL_PACKAGE": "anothers"}


Fault = Callable[[Path], dict[str, str]]
# What a server says where the plugin itself is not there to say more.
UNKNOWN = {llama: "LlamaLogitShapingForCausalLM", qwen: "qwen3_next_ext"}
NOT_READ = "is not whole; install it anew: PermissionError"
CASES: dict[str, tuple[Fault, Callable[[Path], None], str]] = {
    "nothing loads it, llama": (nothing_loads_it, llama, UNKNOWN[llama]),
    "nothing loads it, qwen": (nothing_loads_it, qwen, UNKNOWN[qwen]),
    "unreadable, llama": (unreadable, llama, NOT_READ),
    "unreadable, qwen": (unreadable, qwen, NOT_READ),
    "file missing": (file_missing, llama, "lacks sglang_overlay_plugin/absent.py; install it anew"),
    "unproven": (unproven, llama, f"is not proven on sglang {version('sglang')}"),
    "target renamed": (target_renamed, qwen, f"of sglang {RELEASE} defines no get_model_architecture"),
    "spawned without, llama": (spawned_without, llama, UNKNOWN[llama]),
    "spawned without, qwen": (spawned_without, qwen, UNKNOWN[qwen]),
    "another's configuration": (anothers_config, qwen, "model_type 'qwen3_next_ext' is that of"),
    "another's model": (anothers_model, llama, "has a model of this name"),
}


def refusal(name: str, folder: Path) -> str:
    """Start a server that must end by itself; give what it printed."""
    fault, make, _ = CASES[name]
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    make(checkpoint)
    log = folder / "log"
    with (
        pytest.raises(ServeError, match=r"The server ended with status [^0]"),
        server(checkpoint, log, env=fault(folder)),
    ):
        pytest.fail(f"{name}: it serves")
    return log.read_text(errors="replace")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | BaseException]:
    """Start the servers of all cases, two at once, and give what each printed before it ended."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        started = {name: pool.submit(refusal, name, tmp_path_factory.mktemp("fault")) for name in CASES}
        return {name: future.exception() or future.result() for name, future in started.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_server_that_would_be_wrong_does_not_come_up(name: str, refusals: dict[str, str | BaseException]) -> None:
    said = refusals[name]
    if isinstance(said, BaseException):
        raise said
    assert CASES[name][2] in said


def test_an_unproven_release_serves_where_that_is_allowed(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    llama(checkpoint)
    with server(checkpoint, tmp_path / "log", env=unproven_but_allowed(tmp_path)):
        said = (tmp_path / "log").read_text(errors="replace")
    assert f"is not proven on sglang {version('sglang')}" in said
    assert "SGLANG_OVERLAY_ALLOW_UNPROVEN=1 lets it serve" in said
