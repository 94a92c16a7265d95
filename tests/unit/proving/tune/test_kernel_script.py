"""What the script says of upstream's files and defaults, with stand-ins for upstream and torch."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from overlay_tools.proving.tune import bench

NEW, OLD = "sglang.srt.layers.moe.moe_runner.triton_utils", "sglang.srt.layers.moe.fused_moe_triton"
SHAPE = {
    "experts": 64,
    "all_experts": 64,
    "width": 512,
    "hidden": 2048,
    "topk": 8,
    "shared": 0,
    "dtype": "bfloat16",
    "fp8": False,
    "block": [],
    "activation": "silu",
}
FP8 = {**SHAPE, "fp8": True, "block": [128, 128]}
NAME = "E=64,N=512,device_name=NVIDIA_H200.json"
FP8_NAME = "E=64,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json"
SMALL, LARGE = {"BLOCK_SIZE_M": 16}, {"BLOCK_SIZE_M": 64}


def module(monkeypatch: pytest.MonkeyPatch, name: str, **names: object) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(names)
    monkeypatch.setitem(sys.modules, name, made)
    return made


class Upstream:
    """An sglang that has its kernel in one of two places."""

    def __init__(self, site: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.place = monkeypatch, place
        self.folder = site / place.replace(".", "/")
        self.configs = self.folder / "configs"
        self.configs.mkdir(parents=True)
        self.published: list[Any] = []
        module(monkeypatch, "sglang", __version__="0.5.17", __file__=str(site / "sglang" / "__init__.py"))
        for name in ("sglang.srt", "sglang.srt.layers", "sglang.srt.layers.moe"):
            module(monkeypatch, name, __path__=[])
        self.server_args = module(
            monkeypatch,
            "sglang.srt.server_args",
            ServerArgs=lambda model_path: SimpleNamespace(model_path=model_path),
            set_global_server_args_for_scheduler=self.published.append,
        )
        sys.modules["sglang.srt"].server_args = self.server_args  # type: ignore[attr-defined]
        module(monkeypatch, "sglang.srt.layers.moe.topk", StandardTopKOutput=tuple)
        module(monkeypatch, "sglang.srt.layers.moe.moe_runner", MoeRunnerConfig=SimpleNamespace, __path__=[])
        module(monkeypatch, place, override_config=None, fused_experts=None, __path__=[])
        self.config = module(
            monkeypatch,
            f"{place}.fused_moe_triton_config",
            __file__=str(self.folder / "fused_moe_triton_config.py"),
            get_config_file_name=self.file_name,
            get_moe_configs=self.read,
            try_get_optimal_moe_config=self.tile,
        )

    def file_name(self, e: int, n: int, dtype: str | None, block: list[int], down_moe: bool = False) -> str:
        parts = f"E={e},N={n},device_name=NVIDIA_H200" + (f",dtype={dtype}" if dtype else "")
        return parts + (f",block_shape={block}" if all(block) else "") + "_down" * down_moe + ".json"

    def read(self, e: int, n: int, dtype: str | None, *block: int) -> dict[int, Any] | None:
        folder = Path(os.environ["SGLANG_MOE_CONFIG_DIR"], "configs")
        for version in ("triton_3_6_0", "triton_3_5_1"):
            if (path := folder / version / self.file_name(e, n, dtype, list(block))).exists():
                return {int(key): of for key, of in json.loads(path.read_text()).items()}
        return None

    def tile(
        self,
        w1: tuple[int, ...],
        w2: tuple[int, ...],
        topk: int,
        dtype: str | None,
        m: int,
        block_shape: list[int] | None,
    ) -> dict[str, int]:
        found = self.read(w2[0], w2[2], dtype, *(block_shape or (0, 0)))
        assert w1 == (w2[0], 2 * w2[2], w2[1])
        if found:
            return dict(found[min(found, key=lambda key: abs(key - m))])
        return SMALL if m <= w2[0] else LARGE

    def write(self, version: str, name: str, **entries: dict[str, int]) -> None:
        (self.configs / version).mkdir(exist_ok=True)
        entries = entries or {"1": SMALL}
        (self.configs / version / name).write_text(json.dumps({key.lstrip("_"): of for key, of in entries.items()}))

    def script(self) -> Any:  # noqa: ANN401  # a module
        spec = importlib.util.spec_from_file_location("own_kernel_script", bench.SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        made.__dict__["_MOST"] = 256  # tokens; all of upstream's range would take seconds
        return made

    def describe(self, folder: Path, shape: dict[str, Any] = SHAPE, own: tuple[str, ...] = ()) -> dict[str, Any]:
        found: dict[str, Any] = self.script().Kernel(shape, weighed=True).describe(own, folder)
        return found


@contextmanager
def no_gradients() -> Iterator[None]:
    yield


@pytest.fixture(params=[NEW, OLD])
def upstream(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Upstream:
    cuda = SimpleNamespace(
        get_device_properties=lambda number: SimpleNamespace(L2_cache_size=0, shared_memory_per_block_optin=232_448),
        mem_get_info=lambda: (7, 9),
        get_device_name=lambda: "NVIDIA H200",
        empty_cache=lambda: None,
    )
    values = {"bfloat16": "bfloat16", "float8_e4m3fn": "fp8", "inference_mode": no_gradients}
    module(
        monkeypatch, "torch", cuda=cuda, empty=lambda *_, **__: [], full=lambda *_, **__: None, Tensor=None, **values
    )
    module(monkeypatch, "triton", __version__="3.6.0")
    monkeypatch.setenv("SGLANG_MOE_CONFIG_DIR", "/of/the/user")
    made = Upstream(tmp_path / "site-packages", request.param, monkeypatch)
    made.write("triton_3_6_0", "E=1,N=1,device_name=NVIDIA_H200.json")
    return made


def test_the_file_is_where_this_release_looks_for_it(upstream: Upstream, tmp_path: Path) -> None:
    found = upstream.describe(tmp_path)
    assert found["place"] == f"{upstream.place.replace('.', '/')}/configs"
    assert found["file"] == f"triton_3_6_0/{NAME}"
    assert found["defaults"] == [(1, SMALL), (65, LARGE)]
    assert (found["exact"], found["taken"], found["down"]) == (False, False, False)
    assert (found["release"], found["triton"], found["device"]) == ("0.5.17", "3.6.0", "NVIDIA H200")
    assert bench.Described(**json.loads(json.dumps(found))).shared_memory == 232_448


def test_fp8_is_named_with_its_blocks(upstream: Upstream, tmp_path: Path) -> None:
    assert upstream.describe(tmp_path, FP8)["file"] == f"triton_3_6_0/{FP8_NAME}"
    upstream.write("triton_3_6_0", FP8_NAME)
    assert upstream.describe(tmp_path, FP8)["exact"]
    assert not upstream.describe(tmp_path)["exact"]


def test_a_file_of_another_triton_is_upstream_s_default(upstream: Upstream, tmp_path: Path) -> None:
    upstream.write("triton_3_5_1", NAME, _1=SMALL, _9=LARGE)
    found = upstream.describe(tmp_path)
    assert (found["exact"], found["taken"]) == (False, True)
    assert found["defaults"] == [(1, SMALL), (6, LARGE)]


def test_what_is_ours_is_not_upstream_s(upstream: Upstream, tmp_path: Path) -> None:
    """It is installed, from the overlay, and measured anew."""
    upstream.write("triton_3_6_0", NAME, _1=LARGE)
    assert upstream.describe(tmp_path)["exact"]
    place = f"{upstream.place.replace('.', '/')}/configs/triton_3_6_0"
    own = (f"{place}/{NAME}", f"{place}/not-installed.json", "sglang/elsewhere/configs/triton_3_6_0/x.json")
    found = upstream.describe(tmp_path, own=own)
    assert (found["exact"], found["taken"]) == (False, False)
    assert found["defaults"] == [(1, SMALL), (65, LARGE)]
    assert (upstream.configs / "triton_3_6_0" / NAME).exists()


def test_a_file_for_the_second_half_is_noticed(upstream: Upstream, tmp_path: Path) -> None:
    upstream.write("triton_3_5_1", NAME.replace(".json", "_down.json"))
    assert upstream.describe(tmp_path)["down"]


@pytest.mark.parametrize("missing", ["get_config_file_name", "get_moe_configs", "try_get_optimal_moe_config"])
def test_what_a_release_lacks_is_named_with_it(upstream: Upstream, missing: str) -> None:
    delattr(upstream.config, missing)
    script = upstream.script()
    with pytest.raises(script.KernelProblem, match=rf"sglang 0\.5\.17 has no {upstream.place}.*\.{missing}$"):
        script.Kernel(SHAPE, weighed=True)


def test_a_release_without_the_kernel_is_named(upstream: Upstream) -> None:
    for name in (upstream.place, f"{upstream.place}.fused_moe_triton_config"):
        upstream.monkeypatch.delitem(sys.modules, name)
    script = upstream.script()
    with pytest.raises(script.KernelProblem, match=r"sglang 0\.5\.17 has its fused MoE kernel in none of"):
        script.Kernel(SHAPE, weighed=True)


def test_what_upstream_s_kernel_lacks_is_not_taken_for_another_release(upstream: Upstream) -> None:
    def broken(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'sgl_kernel'", name="sgl_kernel")

    script = upstream.script()
    upstream.monkeypatch.setattr(script.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="sgl_kernel"):
        script.Kernel(SHAPE, weighed=True)


KEYS = ["num_experts", "n_routed_experts"]
FLAGS = ["--tp-size", "2", "--enable-dp-attention", "--dp-size", "2"]
LAYER = {
    "num_experts": 65,
    "num_fused_shared_experts": 1,
    "top_k": 9,
    "hidden_size": 2048,
    "intermediate_size": 512,
    "activation": "silu",
    "is_gated": True,
}


class Builder:
    """An sglang that builds models, each with one layer of experts, as `build` does."""

    def __init__(self, upstream: Upstream, place: str = "sglang.benchmark.one_batch") -> None:
        self.parsed: list[list[str]] = []
        self.built: list[tuple[Any, Any]] = []
        self.dtypes = ["float32"]
        self.text = SimpleNamespace(num_experts=64)

        class FusedMoE:
            def __init__(
                self,
                num_experts: int,
                hidden_size: int,
                intermediate_size: int,
                layer_id: int,
                top_k: int | None = None,
                num_fused_shared_experts: int = 0,
                activation: str = "silu",
                is_gated: bool = True,
            ) -> None:
                raise AssertionError("it is not made")

        class OfAnotherKind(FusedMoE):
            def __init__(self, **options: Any) -> None:  # noqa: ANN401
                super().__init__(**options)

        self.experts, self.kind = FusedMoE, OfAnotherKind
        whole = SimpleNamespace(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
        model = SimpleNamespace(hf_text_config=self.text, hf_config=whole, dtype="torch.bfloat16", quantization="fp8")
        patch = upstream.monkeypatch
        module(patch, "sglang.srt.configs", __path__=[])
        config = SimpleNamespace(from_server_args=lambda arguments: model)
        module(patch, "sglang.srt.configs.model_config", ModelConfig=config)
        module(patch, "sglang.srt.layers.moe.fused_moe_triton", __path__=[], override_config=None, fused_experts=None)
        module(patch, "sglang.srt.layers.moe.fused_moe_triton.layer", FusedMoE=FusedMoE)
        module(patch, "sglang.benchmark", __path__=[])
        self.module = module(patch, place, BenchArgs=lambda: "bench", load_model=self.load, latency_test=self.measure)
        ports = SimpleNamespace(init_new=lambda arguments: f"ports of tp {arguments.tp_size}")
        upstream.server_args.__dict__.update(prepare_server_args=self.prepare, PortArgs=ports)
        sys.modules["torch"].__dict__.update(
            get_default_dtype=lambda: self.dtypes[-1], set_default_dtype=self.dtypes.append
        )
        self.script = upstream.script()

    def prepare(self, words: list[str]) -> SimpleNamespace:
        self.parsed.append(words)
        last = {flag: int(value) for flag, value in pairwise(words) if value.isdigit()}
        return SimpleNamespace(**{flag.removeprefix("--").replace("-", "_"): size for flag, size in last.items()})

    def measure(self, arguments: Any, ports: Any, bench: Any, gpu: int, rank: int) -> None:  # noqa: ANN401
        assert (bench, gpu, rank) == ("bench", 0, 0)
        self.module.__dict__["load_model"](arguments, ports, gpu, rank)
        raise AssertionError("a model is not run")

    def load(self, arguments: Any, ports: Any, gpu: int, rank: int) -> None:  # noqa: ANN401
        self.built.append((arguments, ports))
        self.dtypes.append("bfloat16")
        self.build()

    def build(self) -> None:
        try:
            self.kind(
                num_experts=65, hidden_size=2048, intermediate_size=512, layer_id=3, top_k=9, num_fused_shared_experts=1
            )
        except Exception:  # as upstream does, which then tries another way
            raise AssertionError("upstream was not stopped") from None

    def read(self) -> dict[str, Any]:
        before = self.experts.__init__
        facts = self.script.read_facts({"checkpoint": "model", "flags": FLAGS, "keys": KEYS})
        assert self.experts.__init__ is before
        assert self.module.__dict__["load_model"] == self.load
        assert self.dtypes[-1] == "float32"
        return dict(json.loads(json.dumps(facts)))


def test_facts_are_those_that_upstream_serves_by(upstream: Upstream) -> None:
    builder = Builder(upstream)
    found = builder.read()
    assert builder.parsed[0] == ["--model-path", "model", *FLAGS]
    assert found["experts"] == 64
    assert (found["dtype"], found["quantization"], found["block"]) == ("bfloat16", "fp8", [128, 128])
    assert (found["server"]["tp_size"], found["server"]["moe_dp_size"]) == (2, None)
    assert upstream.published[0].tp_size == 2


@pytest.mark.parametrize("place", ["sglang.benchmark.one_batch", "sglang.bench_one_batch"])
def test_the_layer_is_what_upstream_makes_for_one_rank_without_weights(upstream: Upstream, place: str) -> None:
    builder = Builder(upstream, place)
    found = builder.read()
    assert (found["layer"], found["problem"]) == (LAYER, "")
    [(arguments, ports)] = builder.built
    assert (arguments.tp_size, arguments.dp_size, ports) == (1, 1, "ports of tp 1")
    assert builder.parsed[1][-2:] == ["--load-format", "dummy"]
    assert "--enable-dp-attention" not in builder.parsed[1]
    assert upstream.published[-1] is arguments


@pytest.mark.parametrize("experts", [None, 0, 1])
def test_a_model_without_experts_is_not_built(upstream: Upstream, experts: int | None) -> None:
    builder = Builder(upstream)
    builder.text.num_experts = experts
    found = builder.read()
    assert (found["experts"], found["layer"], found["problem"], builder.built) == (experts, None, "", [])


def test_a_model_that_is_built_to_its_end_has_no_layer_of_experts(upstream: Upstream) -> None:
    builder = Builder(upstream)
    builder.build = lambda: None  # type: ignore[method-assign]
    found = builder.read()
    assert (found["layer"], found["problem"], len(builder.built)) == (None, "", 1)


def test_what_upstream_says_where_it_does_not_build_is_kept(upstream: Upstream) -> None:
    def fail() -> None:
        raise ValueError("hidden_sizes is not a key.\nAnd more.")

    builder = Builder(upstream)
    builder.build = fail  # type: ignore[method-assign]
    found = builder.read()
    assert (found["layer"], found["problem"]) == (None, "ValueError: hidden_sizes is not a key")


def test_a_release_that_builds_otherwise_is_named(upstream: Upstream) -> None:
    builder = Builder(upstream, "sglang.another")
    assert "sglang 0.5.17 has a way to build a model in none of" in builder.read()["problem"]
