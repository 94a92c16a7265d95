"""Where anything of the plugin is missing or in another's way, the server does not come up, and says why."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from engine.harness import OURS, PACKAGE, RELEASE, SPAWN, run_first, server
from overlay_tools.errors import ServeError
from reference.cases import make_checkpoint
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from plugin.names import DISTRIBUTION, WHEEL

# A model of ours that shares its model_type with upstream's, and one that has its own.
PLAIN = next(name for name, case in OURS.items() if case.served and case.config["model_type"] in CONFIG_MAPPING_NAMES)
DERIVED = next(name for name, case in OURS.items() if case.trained is not None)
ARCHITECTURE, MODEL_TYPE = OURS[PLAIN].architecture, OURS[DERIVED].config["model_type"]

# What a process runs first where nothing is to load the plugin: neither its line in site-packages nor its entry point.
NAMED = f"PLUGIN = {PACKAGE!r}\n"
NOTHING_LOADS_IT = """
import importlib.metadata

sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != f"{PLUGIN}_start"]

every = importlib.metadata.entry_points
def entry_points(**chosen):
    found = every(**chosen)
    return type(found)(point for point in found if point.name != PLUGIN) if chosen else found
importlib.metadata.entry_points = entry_points
"""
BY_HAND = """
import sys
if "--multiprocessing-fork" not in sys.orig_argv and "sglang.launch_server" in sys.orig_argv:
    import importlib
    importlib.import_module(PLUGIN).register()
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
        if name.startswith(f"{PLUGIN}."):
            raise PermissionError(13, "Permission denied", name)

sys.meta_path.insert(0, Unreadable())
"""
ANOTHERS_CONFIG = """
import sys
if "sglang.launch_server" in sys.orig_argv:
    from transformers import AutoConfig, PretrainedConfig
    class Anothers(PretrainedConfig):
        model_type = MODEL_TYPE
    AutoConfig.register(MODEL_TYPE, Anothers)
"""
ANOTHERS_MODEL = """
from torch import nn

EntryClass = type(ARCHITECTURE, (nn.Module,), {"__module__": __name__})
"""


def plain(folder: Path) -> None:
    make_checkpoint(PLAIN, folder)


def derived(folder: Path) -> None:
    make_checkpoint(DERIVED, folder)


def nothing_loads_it(folder: Path) -> dict[str, str]:
    return run_first(NAMED + NOTHING_LOADS_IT, folder)


def unreadable(folder: Path) -> dict[str, str]:
    return run_first(NAMED + UNREADABLE, folder)


def file_missing(folder: Path) -> dict[str, str]:
    """Put the plugin's distribution first on the path once more, with a file that is not there."""
    change_distribution(folder, "RECORD", f"{PACKAGE}/absent.py,,\n")
    return run_first("", folder)


def unproven(folder: Path) -> dict[str, str]:
    change_distribution(folder, "METADATA", f"Metadata-Version: 2.4\nName: {DISTRIBUTION}\nVersion: 1\n")
    return run_first("", folder)


def unproven_but_allowed(folder: Path) -> dict[str, str]:
    return unproven(folder) | {"SGLANG_OVERLAY_ALLOW_UNPROVEN": "1"}


def change_distribution(folder: Path, name: str, text: str) -> None:
    own = distribution(DISTRIBUTION)
    changed = folder / f"{WHEEL}-{own.version}.dist-info"
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
    return run_first(NAMED + NOTHING_LOADS_IT + NOTHING_IS_CARRIED + BY_HAND, folder) | SPAWN  # a fork would have it


def anothers_config(folder: Path) -> dict[str, str]:
    return run_first(f"MODEL_TYPE = {MODEL_TYPE!r}\n{ANOTHERS_CONFIG}", folder)


def anothers_model(folder: Path) -> dict[str, str]:
    (folder / "anothers").mkdir()
    (folder / "anothers" / "__init__.py").touch()
    (folder / "anothers" / "model.py").write_text(
        f"ARCHITECTURE = {ARCHITECTURE!r}\n{ANOTHERS_MODEL}", encoding="utf-8"
    )
    return run_first("", folder) | {"SGLANG_EXTERNAL_MODEL_PACKAGE": "anothers"}


Fault = Callable[[Path], dict[str, str]]
# What a server says where the plugin itself is not there to say more.
UNKNOWN = {plain: ARCHITECTURE, derived: MODEL_TYPE}
NOT_READ = "is not whole; install it anew: PermissionError"
CASES: dict[str, tuple[Fault, Callable[[Path], None], str]] = {
    "nothing loads it, plain": (nothing_loads_it, plain, UNKNOWN[plain]),
    "nothing loads it, derived": (nothing_loads_it, derived, UNKNOWN[derived]),
    "unreadable, plain": (unreadable, plain, NOT_READ),
    "unreadable, derived": (unreadable, derived, NOT_READ),
    "file missing": (file_missing, plain, f"lacks {PACKAGE}/absent.py; install it anew"),
    "unproven": (unproven, plain, f"is not proven on sglang {version('sglang')}"),
    "target renamed": (target_renamed, derived, f"of sglang {RELEASE} defines no get_model_architecture"),
    "spawned without, plain": (spawned_without, plain, UNKNOWN[plain]),
    "another's configuration": (anothers_config, derived, f"model_type {MODEL_TYPE!r} is that of"),
    "another's model": (anothers_model, plain, "has a model of this name"),
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
    plain(checkpoint)
    with server(checkpoint, tmp_path / "log", env=unproven_but_allowed(tmp_path)):
        said = (tmp_path / "log").read_text(errors="replace")
    assert f"is not proven on sglang {version('sglang')}" in said
    assert "SGLANG_OVERLAY_ALLOW_UNPROVEN=1 lets it serve" in said


def test_a_process_that_is_handed_our_configuration_has_the_plugin_with_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    derived(checkpoint)
    with server(checkpoint, tmp_path / "log", env=spawned_without(tmp_path)):
        said = (tmp_path / "log").read_text(errors="replace")
    assert f"type={OURS[DERIVED].architecture}," in said
