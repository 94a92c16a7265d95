"""Run upstream's fused MoE kernel with tiles that are asked for. It runs by itself, in an engine's environment.

    python kernel_script.py JOB

JOB is a file of JSON. With a `checkpoint` in it, and the arguments of a server as `flags`, the first line printed says
what upstream makes of these; `keys` are the names that configurations have for the number of experts. Else that line is
empty. Then each line read, of which `what` says what is asked, is answered by a line:

- open: takes a shape, `own`, names of files in a wheel that do not count, and a folder to copy the others to; says
  which file upstream looks for, and which tiles it has without;
- compile: takes a tile and some numbers of tokens, of which it runs each once;
- time: takes a number of tokens, tiles, and rounds; gives the microseconds of each round, first of what upstream takes
  itself, then of each tile, or why that does not run.

An answer with a `problem` is all there is.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import sglang
import torch
import triton
from sglang.srt import server_args

# Where releases have the kernel, the newest first.
_PLACES = ("sglang.srt.layers.moe.moe_runner.triton_utils", "sglang.srt.layers.moe.fused_moe_triton")
_SERVER = (
    "tp_size",
    "ep_size",
    "moe_dp_size",
    "moe_a2a_backend",
    "moe_runner_backend",
    "enable_deterministic_inference",
    "chunked_prefill_size",
)
# Where releases build a model as a server does, the newest first.
_BUILDERS = ("sglang.benchmark.one_batch", "sglang.bench_one_batch")
# What a layer of experts is made with: all of the model's, whatever a rank has of them.
_LAYER = (
    "num_experts",
    "num_fused_shared_experts",
    "top_k",
    "hidden_size",
    "intermediate_size",
    "activation",
    "is_gated",
)
_SPREAD = ("tp_size", "ep_size", "dp_size", "moe_dp_size", "pp_size", "attn_cp_size", "dcp_size", "nnodes")
_OF_MANY = ("--enable-dp-attention", "--enable-dp-lm-head", "--enable-eplb")  # refused with one rank
_MOST = 65536  # tokens up to which upstream's own tiles are looked up
_CALLS, _FEW_CALLS, _LONG = 16, 4, 1024  # in a graph: few from _LONG tokens on, which take long
_SAME = 0.05  # of a token's output, by which tiles may differ: they add up in another order, and round in between


class KernelProblem(Exception):  # noqa: N818  # as in `looking`
    """What keeps the kernel from being run, in words for a person."""


class Stop(BaseException):  # not Exception, which upstream may take for a fault of the model
    """Ends upstream's work once it has said what is asked."""


class Kernel:
    """Upstream's kernel for a shape, with weights made up.

    Parameters: `shape`, the fields of `shape.Shape`; `weighed`, whether it is to be measured, in which case its weights
    have values, and there are as many layers of them as a cache does not hold.
    """

    def __init__(self, shape: Mapping[str, Any], *, weighed: bool) -> None:
        self.shape = shape
        package, self.configs = _find_package()
        names = ("get_config_file_name", "get_moe_configs", "try_get_optimal_moe_config")
        self.file_name, self.get_configs, self.get_tile = (_name(self.configs, name) for name in names)
        self.override, self.fused_experts = (_name(package, name) for name in ("override_config", "fused_experts"))
        self.topk_output = _name(importlib.import_module("sglang.srt.layers.moe.topk"), "StandardTopKOutput")
        runner = _name(importlib.import_module("sglang.srt.layers.moe.moe_runner"), "MoeRunnerConfig")
        self.runner = runner(
            num_experts=shape["all_experts"],
            num_local_experts=shape["experts"],
            num_fused_shared_experts=shape["shared"],
            top_k=shape["topk"],
            hidden_size=shape["hidden"],
            intermediate_size_per_partition=shape["width"],
            activation=shape["activation"],
            inplace=True,  # or upstream would ask its groups of ranks where the output is to be
        )
        self.dtype = getattr(torch, shape["dtype"])
        self.config_dtype = "fp8_w8a8" if shape["fp8"] else None
        self.block = list(shape["block"]) or None
        e, n, k = shape["experts"], shape["width"], shape["hidden"]
        self.shapes = (e, 2 * n, k), (e, k, n)
        size = 3 * e * n * k * (1 if shape["fp8"] else 2)
        cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
        self.layers = [self._weights(weighed) for _ in range(1 + 2 * cache // size if weighed else 1)]

    def describe(self, own: Sequence[str], folder: Path) -> dict[str, Any]:
        """Say which file upstream looks for, where it has it, and from which number of tokens on it has which tile."""
        e, n = self.shape["experts"], self.shape["width"]
        version = f"triton_{triton.__version__.replace('.', '_')}"
        name = self.file_name(e, n, self.config_dtype, self.block or [0, 0])
        down = self.file_name(e, n, self.config_dtype, self.block or [0, 0], down_moe=True)
        source = Path(self.configs.__file__).parent / "configs"
        place = source.relative_to(Path(sglang.__file__).parents[1]).as_posix()
        # What upstream has without files of ours, which may be installed.
        shutil.rmtree(folder / "configs", ignore_errors=True)
        shutil.copytree(source, folder / "configs")
        for file in own:
            if file.startswith(f"{place}/"):
                (folder / "configs" / file.removeprefix(f"{place}/")).unlink(missing_ok=True)
        os.environ["SGLANG_MOE_CONFIG_DIR"] = str(folder)
        found = {path.parent.name for path in (folder / "configs").glob("triton_*/*.json") if path.name == name}
        defaults: list[tuple[int, dict[str, Any]]] = []
        for tokens in range(1, _MOST + 1):
            tile = self.get_tile(*self.shapes, self.shape["topk"], self.config_dtype, tokens, block_shape=self.block)
            if not defaults or defaults[-1][1] != tile:
                defaults.append((tokens, dict(tile)))
        free, _ = torch.cuda.mem_get_info()
        return {
            "release": sglang.__version__,
            "triton": triton.__version__,
            "device": torch.cuda.get_device_name(),
            "place": place,
            "file": f"{version}/{name}",
            "exact": version in found,
            "taken": self.get_configs(e, n, self.config_dtype, *(self.block or (0, 0))) is not None,
            "down": any(path.name == down for path in (folder / "configs").glob("triton_*/*.json")),
            "defaults": defaults,
            "shared_memory": getattr(torch.cuda.get_device_properties(0), "shared_memory_per_block_optin", 1 << 30),
            "free": free,
        }

    def compile(self, tile: Mapping[str, int], tokens: Sequence[int]) -> None:
        """Run the kernel once for each number of tokens."""
        for number in tokens:
            self._call(tile, Inputs(self, number, 1), 0)
        torch.cuda.synchronize()

    def time(self, tokens: int, tiles: Sequence[Mapping[str, int]], rounds: int) -> list[list[float] | str]:
        """Measure in turns, in CUDA graphs, what upstream takes itself and each tile."""
        inputs = Inputs(self, tokens, _CALLS if tokens < _LONG else _FEW_CALLS)
        pool = torch.cuda.graph_pool_handle()  # one for all these graphs, of which no output is needed again
        own, right = self._capture(None, inputs, pool)
        found: list[list[float] | str] = [[]]
        graphs = {0: own}
        for number, tile in enumerate(tiles, 1):
            try:
                graph, output = self._capture(tile, inputs, pool)
            except Exception as error:  # out of shared memory or registers, or a fault of the compiler
                found.append(f"{type(error).__name__}: {error}".splitlines()[0])
                continue
            distance = (output - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(1e-9)
            if not bool((distance <= _SAME).all()):
                found.append(f"its output is {distance.max():.2g} of a token's away from upstream's")
                continue
            found.append([])
            graphs[number] = graph
        order = list(graphs)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for turn in range(rounds):
            for number in order[turn % len(order) :] + order[: turn % len(order)]:
                graphs[number].replay()  # and while it runs, the next is sent off
                begin.record()
                graphs[number].replay()
                end.record()
                end.synchronize()
                times = found[number]
                assert isinstance(times, list)
                times.append(1000 * begin.elapsed_time(end) / inputs.calls)
        return found

    def _capture(self, tile: Mapping[str, int] | None, inputs: Inputs, pool: Any) -> tuple[Any, torch.Tensor]:  # noqa: ANN401
        """Return a graph of some calls, and the output of the first."""
        for _ in range(2):
            self._call(tile, inputs, 0)
        torch.cuda.synchronize()
        output = inputs.hidden.float()
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # what a tile that failed has left must not be collected, and freed, while calls are recorded
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                for number in range(inputs.calls):
                    self._call(tile, inputs, number)
        finally:
            gc.enable()
        return graph, output

    def _call(self, tile: Mapping[str, int] | None, inputs: Inputs, number: int) -> None:
        w1, w2, scales = self.layers[number % len(self.layers)]
        inputs.hidden.copy_(inputs.source)  # the kernel writes its output there
        with self.override(None if tile is None else dict(tile)):
            self.fused_experts(inputs.hidden, w1, w2, inputs.routes[number], self.runner, **scales)

    def _weights(self, weighed: bool) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        kind = torch.float8_e4m3fn if self.shape["fp8"] else self.dtype
        made = [torch.empty(shape, device="cuda", dtype=kind) for shape in self.shapes]
        for of_all in made if weighed else ():
            for expert in of_all:
                values = torch.randn(expert.shape, device="cuda", dtype=self.dtype)
                expert.copy_(values if self.shape["fp8"] else values / expert.shape[1] ** 0.5)
        if not self.shape["fp8"]:
            return made[0], made[1], {}
        scales = []
        for e, n, k in self.shapes:
            blocks = (e, -(-n // self.block[0]), -(-k // self.block[1])) if self.block else (e,)
            scales.append(torch.full(blocks, k**-0.5, device="cuda"))
        options = {"use_fp8_w8a8": True, "w1_scale": scales[0], "w2_scale": scales[1], "block_shape": self.block}
        return made[0], made[1], options


class Inputs:
    """What the kernel is given for a number of tokens: other experts in each call, as in each layer of a model."""

    def __init__(self, kernel: Kernel, tokens: int, calls: int) -> None:
        self.calls = calls
        made = torch.Generator("cuda").manual_seed(tokens)
        self.source = torch.randn(tokens, kernel.shape["hidden"], device="cuda", generator=made).to(kernel.dtype)
        self.hidden = torch.empty_like(self.source)
        self.routes = []
        experts, shared = kernel.shape["experts"], kernel.shape["shared"]
        of_all = torch.arange(experts - shared, experts, device="cuda").expand(tokens, -1)
        for _ in range(calls):
            logits = torch.randn(tokens, kernel.shape["all_experts"] - shared, device="cuda", generator=made)
            weights, ids = logits.softmax(-1).topk(kernel.shape["topk"] - shared)
            ids = ids.masked_fill(ids >= experts - shared, -1)  # those of other GPUs
            weights = weights / weights.sum(-1, keepdim=True)
            weights = torch.cat([weights, torch.ones_like(of_all, dtype=weights.dtype)], -1)
            ids = torch.cat([ids, of_all], -1)
            self.routes.append(kernel.topk_output(weights, ids.to(torch.int32), logits))


def read_facts(job: Mapping[str, Any]) -> dict[str, Any]:
    """Say what upstream makes of a checkpoint and a server's arguments.

    That is the number of `experts` that the configuration has, None where it has none; `layer`, what the model's first
    layer of experts is made with, None where there is none, or the `problem` that kept upstream from building it.
    """
    from sglang.srt.configs.model_config import ModelConfig

    arguments = server_args.prepare_server_args(["--model-path", job["checkpoint"], *job["flags"]])
    server_args.set_global_server_args_for_scheduler(arguments)
    model = ModelConfig.from_server_args(arguments)
    text = model.hf_text_config
    quantized = getattr(model.hf_config, "quantization_config", None) or getattr(text, "quantization_config", None)
    if quantized is not None and not isinstance(quantized, Mapping):
        quantized = quantized.to_dict()
    experts = next((value for key in job["keys"] if (value := getattr(text, key, None)) is not None), None)
    layer, problem = None, ""
    if experts not in (None, 0, 1):  # a large model without is not to be built for nothing
        try:
            layer = _read_layer(job, arguments)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(":.,; ")
        gc.collect()  # what is half built, now that no traceback holds it: the same process measures
        torch.cuda.empty_cache()
    return {
        "experts": experts,
        "layer": layer,
        "problem": problem,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": model.quantization,
        "block": (quantized or {}).get("weight_block_size"),
        "server": {name: getattr(arguments, name, None) for name in _SERVER},
    }


def _read_layer(job: Mapping[str, Any], served: Any) -> dict[str, Any] | None:  # noqa: ANN401
    """Let upstream build a model up to its first layer of experts; return what that is made with, None without one.

    It is built for one rank, with weights made up: nothing is read, and only what comes before that layer is allocated.
    """
    flags = [flag for flag in job["flags"] if flag not in _OF_MANY]
    for name in (name for name in _SPREAD if (getattr(served, name, None) or 1) > 1):
        flags += [f"--{name.replace('_', '-')}", "1"]
    if getattr(served, "node_rank", 0):
        flags += ["--node-rank", "0"]
    arguments = server_args.prepare_server_args(["--model-path", job["checkpoint"], *flags, "--load-format", "dummy"])
    server_args.set_global_server_args_for_scheduler(arguments)
    builder = _first_module(_BUILDERS, "a way to build a model")
    experts = _name(importlib.import_module("sglang.srt.layers.moe.fused_moe_triton.layer"), "FusedMoE")
    make, load = experts.__init__, builder.load_model
    signature, found = inspect.signature(make), {}

    def stop(*given: Any, **named: Any) -> NoReturn:  # noqa: ANN401
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        found.update({name: bound.arguments.get(name) for name in _LAYER})
        raise Stop

    def load_alone(*given: Any) -> NoReturn:  # noqa: ANN401
        load(*given)
        raise Stop

    dtype = torch.get_default_dtype()  # which upstream sets, and leaves so where it is stopped
    experts.__init__, builder.load_model = stop, load_alone
    try:
        ports = server_args.PortArgs.init_new(arguments)
        builder.latency_test(arguments, ports, builder.BenchArgs(), 0, 0)
    except Stop:
        return found or None
    finally:
        experts.__init__, builder.load_model = make, load
        torch.set_default_dtype(dtype)
    raise KernelProblem(f"sglang {sglang.__version__} builds no model where it measures one")


def _find_package() -> tuple[Any, Any]:
    """Return the package that has the kernel, and its module that looks for files."""
    configs = _first_module([f"{place}.fused_moe_triton_config" for place in _PLACES], "its fused MoE kernel")
    return importlib.import_module(configs.__name__.rpartition(".")[0]), configs


def _first_module(places: Sequence[str], what: str) -> Any:  # noqa: ANN401
    for place in places:
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if not place.startswith(error.name or " "):  # it is there, and lacks something else
                raise
    raise KernelProblem(f"sglang {sglang.__version__} has {what} in none of {', '.join(places)}")


def _name(module: Any, name: str) -> Any:  # noqa: ANN401
    try:
        return getattr(module, name)
    except AttributeError:
        raise KernelProblem(f"sglang {sglang.__version__} has no {module.__name__}.{name}") from None


def _open(job: Mapping[str, Any], asked: Mapping[str, Any]) -> Kernel:
    if "checkpoint" not in job:  # otherwise its arguments have been published
        server_args.set_global_server_args_for_scheduler(server_args.ServerArgs(model_path="dummy"))
    return Kernel(asked["shape"], weighed=asked["weighed"])


def main() -> None:
    """Say what there is, then answer lines until there are no more."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    printed = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what upstream and compilers print is no answer
    print(json.dumps(read_facts(job) if "checkpoint" in job else {}, default=str), file=printed, flush=True)
    gc.freeze()  # there are millions of objects, and each capture of a graph collects
    kernel: Kernel | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        said: dict[str, Any] = {}
        try:
            with torch.inference_mode():
                if kernel is None:
                    kernel = _open(job, asked)
                    said = kernel.describe(asked["own"], Path(asked["folder"])) if asked["weighed"] else {}
                elif asked["what"] == "compile":
                    kernel.compile(asked["tile"], asked["tokens"])
                else:
                    said = {"times": kernel.time(asked["tokens"], asked["tiles"], asked["rounds"])}
        except KernelProblem as problem:
            said = {"problem": str(problem)}
        except Exception as error:
            if kernel is None or asked["what"] != "compile":
                raise
            said = {"problem": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(said), file=printed, flush=True)


if __name__ == "__main__":
    main()
