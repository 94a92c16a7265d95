"""What upstream decides for checkpoints, on devices that need not be there.

    python tests/engine/decisions/decide.py CASES.json OUT_FOLDER DEVICE...

Nothing is loaded or started: the server's arguments are resolved and checked as an engine does it first, and the model
configurations of the served model and of its draft are made from them. CASES.json has the `checkpoints` (folders), the
`option_sets` (keyword arguments of ServerArgs), the folder of a checkpoint to `warm_up` with, and the package of the
`plugin` that has the overlay's models, or nothing.

OUT_FOLDER/DEVICE.json gets, for each checkpoint, a list with one member an option set: None where the release lacks one
of the options, or the device is not one of MAIN and is asked about each third set alone; else a mapping of dotted names
to values. Where upstream refuses the options, it has only `refusal`.

A GPU or an NPU is simulated by what PyTorch says of it, and only as far as these decisions ask. Upstream is imported
before, as on a host without one, because the modules with its kernels need a real one. So what they found out when
they were imported stays that host's: their choice among kernels is not part of this.
"""

from __future__ import annotations

import enum
import functools
import importlib
import importlib.util
import inspect
import json
import multiprocessing
import os
import pickle
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import psutil

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
from engine.huge_pages import prepare_to_fork

GPUS = {  # a name: compute capability, name, GiB, multiprocessors
    "sm80": ((8, 0), "NVIDIA A100-SXM4-80GB", 80, 108),
    "sm90": ((9, 0), "NVIDIA H100 80GB HBM3", 80, 132),
    "sm100": ((10, 0), "NVIDIA B200", 180, 148),
    "gfx942": ((9, 4), "AMD Instinct MI300X", 192, 304),
    "npu": ((0, 0), "Ascend910B2", 64, 24),
}
MAIN = ("cpu", "sm80", "sm90", "sm100")
_plugin = ""
# Options of ServerArgs by the names that they had before.
FORMER_NAMES = {"mamba_radix_cache_strategy": "mamba_scheduler_strategy"}  # to 0.5.13.post1

_fork = multiprocessing.get_context("fork")


def simulate(device: str) -> None:
    """Make upstream, imported on a host without a GPU, see one with eight of the kind `device` from now on."""
    import torch
    from sglang.srt.utils import common

    capability, name, gib, multiprocessors = GPUS[device]
    memory = gib << 30
    properties = SimpleNamespace(
        name=name,
        gcnArchName=device,
        major=capability[0],
        minor=capability[1],
        total_memory=memory,
        multi_processor_count=multiprocessors,
    )
    answers = {
        "is_available": True,
        "device_count": 8,
        "current_device": 0,
        "get_device_capability": capability,
        "get_device_name": name,
        "get_device_properties": properties,
        "mem_get_info": (memory, memory),
    }
    if device == "npu":
        torch.npu = MagicMock()
        sys.modules |= {"torch_npu": MagicMock(), "acl": MagicMock()}
    for function, answer in answers.items():
        setattr(torch.npu if device == "npu" else torch.cuda, function, lambda *_, _answer=answer, **__: _answer)
    if device.startswith("sm"):
        torch.version.cuda = torch.version.cuda or "12.8"
    elif device.startswith("gfx"):  # which PyTorch has as a `cuda` too
        torch.version.cuda, torch.version.hip = None, "6.4"
    # They ask programs that come with the device.
    common.get_nvgpu_memory_capacity = common.get_amdgpu_memory_capacity = lambda: memory >> 20
    for probe in vars(common).values():  # they keep what they found when upstream was imported
        if callable(probe) and hasattr(probe, "cache_clear"):
            probe.cache_clear()
    if (platforms := sys.modules.get("sglang.srt.platforms")) is not None:
        vars(platforms)["_current_platform"] = None


def decide(checkpoint: str, options: Mapping[str, Any]) -> dict[str, str] | None:
    """Let upstream resolve `options` for `checkpoint`, and list all that it decided by dotted names.

    Gives None when the installed release lacks one of the options.
    """
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils import get_device_sm

    known = inspect.signature(ServerArgs).parameters
    options = {name if name in known else FORMER_NAMES.get(name, name): value for name, value in options.items()}
    if not known.keys() >= options.keys():
        return None
    random.seed(0)  # upstream draws a seed and ports
    try:
        args = ServerArgs(model_path=checkpoint, **options)
        if hasattr(args, "resolve_once"):  # from 0.5.19 on the constructor leaves it to the engine
            args.resolve_once()
        args.check_server_args()
        model = ModelConfig.from_server_args(args)
        draft = ModelConfig.from_server_args(args, is_draft_model=True)
        found = {
            "device_sm": get_device_sm(),
            "memory": psutil.virtual_memory().available,
            "args": args,
            "resolved": args.resolved_dict() if hasattr(args, "resolved_dict") else None,
            "environment": {name: value for name, value in os.environ.items() if name.startswith("SGL")},
            "model": model,
            "model_kinds": kinds(model, draft=False),
            "draft": draft,
            "draft_kinds": kinds(draft, draft=True),
        }
    except Exception as error:  # whatever upstream refuses with is compared
        return {"refusal": f"{type(error).__name__}: {error}".replace(checkpoint, "CHECKPOINT")}
    flat: dict[str, str] = {}
    flatten("", found, flat, {})
    return {name: value.replace(checkpoint, "CHECKPOINT") for name, value in flat.items()}


def kinds(model_config: object, *, draft: bool) -> dict[str, Any]:
    """Ask upstream which kinds of hybrid models `model_config` is: its functions or properties named `*_config`."""
    if importlib.util.find_spec("sglang.srt.configs.hybrid_arch") is not None:
        functions = vars(importlib.import_module("sglang.srt.configs.hybrid_arch"))
        return {
            name: function(model_config)
            for name, function in functions.items()
            if inspect.isfunction(function) and list(inspect.signature(function).parameters) == ["model_config"]
        }
    # Up to 0.5.15 the model runner answers, in properties, and needs nothing else for it.
    runner_class = importlib.import_module("sglang.srt.model_executor.model_runner").ModelRunner
    runner = runner_class.__new__(runner_class)
    runner.model_config, runner.is_draft_worker = model_config, draft
    names = [name for name, member in vars(runner_class).items() if isinstance(member, property)]
    return {name: getattr(runner, name) for name in names if name.endswith("_config")}


def flatten(name: str, value: object, into: dict[str, str], seen: dict[int, tuple[str, object]]) -> None:
    """Write `value` and all that it is made of into `into`, under dotted names that begin with `name`."""
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)
    if _is_plain(value) or (isinstance(value, list | tuple) and all(_is_plain(part) for part in value)):
        into[name] = repr(value)
    elif inspect.isroutine(value) or isinstance(value, type):
        into[name] = f"{value.__module__}.{value.__qualname__}"
    elif id(value) in seen:
        into[name] = f"as {seen[id(value)][0]}"
    elif (parts := _parts(value)) is None:
        into[name] = repr(value)
    else:
        seen[id(value)] = (name, value)
        into[f"{name}.__class__"] = type(value).__name__
        for part, member in parts.items():
            flatten(f"{name}.{part}" if name else str(part), member, into, seen)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | enum.Enum | Path)


def _parts(value: object) -> dict[Any, Any] | None:
    """List what a container, or an object of upstream's or transformers', holds and its properties answer."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    kind = type(value)
    if kind.__module__.partition(".")[0] not in ("sglang", _plugin, "transformers"):
        return None
    fields = getattr(value, "__struct_fields__", ())  # of msgspec's records: ServerArgs from 0.5.20 on
    parts = {**{name: getattr(value, name) for name in fields}, **getattr(value, "__dict__", {})}
    for name, called in _questions(kind):  # type: ignore[arg-type]  # mypy takes the hash of what it makes for its own
        try:
            parts[f"{name}()"] = getattr(value, name)() if called else getattr(value, name)
        except Exception as error:  # an answer as well
            parts[f"{name}()"] = f"{type(error).__name__}: {error}"
    return parts


@functools.cache
def _questions(kind: type) -> list[tuple[str, bool]]:
    """List what an object of a class can be asked without a parameter, and whether it is to be called for that."""
    found = []
    for name in dir(kind):
        member = inspect.getattr_static(kind, name)
        # What is a method in one release is a property in others.
        called = inspect.isfunction(member) and name.startswith(("get_", "use_", "is_", "enable_mamba"))
        called = called and name != "get_mtp_config"  # a copy of the configuration, and of that one more, without end
        called = called and list(inspect.signature(member).parameters) == ["self"]
        if not name.startswith("__") and (called or isinstance(member, property | functools.cached_property)):
            found.append((name, called))
    return found


def in_a_fork(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401  # whatever it returns
    """Call a function in a process of its own, and return what it returns."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with os.fdopen(write, "wb") as answer:
                pickle.dump(function(*arguments), answer)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        returned = answer.read()
    os.waitpid(pid, 0)
    return pickle.loads(returned)


def decide_all(cases: Mapping[str, Any], device: str, out: Path) -> None:
    """Write what upstream decides on one device."""
    if device in GPUS:
        simulate(device)
    always = {} if device in GPUS else {"device": device}
    # A process for each, as upstream keeps what it read of a checkpoint, changes it, and sets environment variables.
    # What it imports on the way should be there for all.
    environment = dict(os.environ)
    for options in cases["option_sets"][:2]:
        decide(cases["warm_up"], {**always, **options})
    os.environ.clear()
    os.environ.update(environment)
    prepare_to_fork()
    step = 1 if device in MAIN else 3
    decided = {
        checkpoint: [
            in_a_fork(decide, checkpoint, {**always, **options}) if i % step == 0 else None
            for i, options in enumerate(cases["option_sets"])
        ]
        for checkpoint in cases["checkpoints"]
    }
    (out / f"{device}.json").write_text(json.dumps(decided), encoding="utf-8")


def main() -> None:
    """Decide the cases on all devices at once."""
    global _plugin
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    memory = psutil.virtual_memory()
    psutil.virtual_memory = lambda: memory  # a CPU's share of it is decided, and what is free changes all the time
    _plugin = cases["plugin"]
    if _plugin:
        importlib.import_module(_plugin).register()
    if importlib.util.find_spec("sglang.srt.configs.hybrid_arch") is None:
        for name in ("_custom_ops", "model_executor.layers.activation", "model_executor.layers.layernorm"):
            sys.modules.setdefault(f"vllm.{name}", MagicMock())  # 0.5.7 imports it where there is neither GPU nor AMX
        importlib.import_module("sglang.srt.model_executor.model_runner")  # `kinds` asks it, on a simulated GPU as well
    decide(cases["warm_up"], {"device": "cpu"})
    workers = [_fork.Process(target=decide_all, args=(cases, device, Path(sys.argv[2]))) for device in sys.argv[3:]]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(max(abs(worker.exitcode or 0) for worker in workers))


if __name__ == "__main__":
    main()
