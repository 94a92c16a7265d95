"""The derived model beside its base, beside Transformers, and with its drafts beside without."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from engine.harness import EXTRA_BUFFER, HELD_OUT, ours, post, speculative
from models.qwen3_next.case import CONFIG as QWEN3_NEXT
from models.qwen3_next_ext.case import TRAINED
from overlay_tools.checkpoints.adopt import adopt, read_stock
from overlay_tools.engines.server import Server
from reference.checkpoints import changed
from safetensors.torch import save_file

from gpu.servers import Wanted, graphs
from gpu.timing import figure, in_turns, ratios, table

# 3.6 billion parameters, half a billion of them active: small enough for three engines and Transformers on one GPU.
REALISTIC: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 65_536,
    "max_position_embeddings": 32_768,
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
}
OVERLAY = Path(__file__).parents[2] / "overlay"
EVERYTHING = [
    "nope_layers=[7, 15]",
    "scoring_func=sigmoid",
    "n_group=8",
    "topk_group=4",
    "head_adapter_rank=16",
    "logit_transform=softcap",
    "logit_softcap=30.0",
]
BASE, OFF, ON = "Qwen3-Next", "Ext, all off", "Ext, all on"
NO_DRAFTS = "no drafts"
PROMPT = 128  # tokens of a prompt
DECODED = 256  # tokens of a continuation after the first
ARGUMENTS: dict[str, object] = {  # of servers that are measured at up to 64 requests
    "max_total_tokens": 40_960,
    "max_running_requests": 64,
    "max_mamba_cache_size": 128,
    "disable_radix_cache": True,
    "skip_tokenizer_init": True,
    **graphs(64),
}
LONG, AT_ONCE = 4096, 4  # tokens of a long prompt, and how many are sent at once

_random = torch.Generator().manual_seed(2)


def random_prompts(count: int, length: int) -> list[list[int]]:
    """Draw prompts, never the same twice: nothing comes from a cache."""
    return torch.randint(10, REALISTIC["vocab_size"], (count, length), generator=_random).tolist()  # type: ignore[no-any-return]


def make_stock(folder: Path) -> Path:
    """Write a stock Qwen3-Next checkpoint of random weights, in shards, into a new folder."""
    config = changed(QWEN3_NEXT, REALISTIC)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    derived = ours("configs.qwen3_next_ext").Qwen3NextExtConfig(**config)
    shapes = ours("models.qwen3_next_ext").Qwen3NextExtForCausalLM.checkpoint_shapes(derived)
    generator = torch.Generator("cuda").manual_seed(1)
    weight_map: dict[str, str] = {}
    for start in range(0, len(shapes), 512):
        tensors = {}
        for name in list(shapes)[start : start + 512]:
            values = torch.randn(shapes[name], generator=generator, device="cuda", dtype=torch.bfloat16)
            tensors[name] = (0.02 * values).cpu()
        shard = f"model-{start:05}.safetensors"
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def realistic_models(folder: Path) -> dict[str, Wanted]:
    """Describe servers of the base and its two derived models, on the same weights, which are made in `folder`."""
    stock = make_stock(folder / "stock")
    adopt(read_stock(stock), folder / "off", [], OVERLAY)
    adopt(read_stock(stock), folder / "on", EVERYTHING, OVERLAY)
    return {
        name: Wanted(model, ARGUMENTS) for name, model in {BASE: stock, OFF: folder / "off", ON: folder / "on"}.items()
    }


def draft_models() -> dict[str, Wanted]:
    """Describe servers of the trained checkpoint with and without drafts."""
    arguments: dict[str, object] = {"max_total_tokens": 8192, "max_running_requests": 8, "max_mamba_cache_size": 128}
    arguments |= graphs(8)
    wanted = {NO_DRAFTS: Wanted(TRAINED, arguments | EXTRA_BUFFER)}
    for steps in (1, 3):
        drafts, environment = speculative(steps)
        wanted[f"drafts of {steps}"] = Wanted(TRAINED, arguments | drafts, environment)
    return wanted


def generate(server: Server, prompts: Sequence[list[int]], tokens: int) -> tuple[float, list[dict[str, Any]]]:
    """Continue prompts greedily by so many tokens, sent at once; give the seconds it took, and the outputs."""
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    started = time.perf_counter()
    outputs = post(server.url, "/generate", input_ids=list(prompts), sampling_params=sampling)
    return time.perf_counter() - started, outputs


def decode_step(server: Server, *, batch: int) -> float:
    """Give the milliseconds of a step of decoding: request and prefill taken out."""
    prompts = random_prompts(batch, PROMPT)
    return 1e3 * (generate(server, prompts, DECODED + 1)[0] - generate(server, prompts, 1)[0]) / DECODED


def prefill(server: Server) -> float:
    """Give the tokens a second of long prompts."""
    return LONG * AT_ONCE / generate(server, random_prompts(AT_ONCE, LONG), 1)[0]


def bench_overhead(running: Mapping[str, Server]) -> None:
    """Compare the base, Ext with everything off and Ext with everything on."""
    models = {name: running[name] for name in (BASE, OFF, ON)}

    def row(name: str, run: Callable[[Server], float], form: str, rounds: int) -> list[str]:
        times = in_turns({model: partial(run, server) for model, server in models.items()}, rounds)
        to_base = [figure(ratios(times[model], times[BASE]), ".4f") for model in (OFF, ON)]
        return [name, *(figure(taken, form) for taken in times.values()), *to_base]

    # A small batch takes the host's time more than the GPU's, and the host's is what varies: it needs the most rounds.
    runs: list[tuple[str, Callable[[Server], float], str, int]] = [
        *(
            (f"decode step, batch {n}, ms", partial(decode_step, batch=n), ".3f", rounds)
            for n, rounds in ((64, 11), (16, 21), (1, 61))
        ),
        (f"prefill, {AT_ONCE} prompts of {LONG}, tokens a second", prefill, ".0f", 21),
    ]
    title = f"Beside the base: {REALISTIC['num_hidden_layers']} layers of {REALISTIC['hidden_size']}, bfloat16"
    table(title, ["", *models, f"{OFF} / base", f"{ON} / base"], (row(*run) for run in runs))


def bench_transformers(running: Mapping[str, Server]) -> None:
    """Compare Ext with everything off and Transformers' own Qwen3-Next on the same weights."""
    from transformers import Qwen3NextForCausalLM

    model = Qwen3NextForCausalLM.from_pretrained(running[BASE].model, dtype=torch.bfloat16).to("cuda").eval()

    def engine(batch: int, tokens: int) -> float:
        return generate(running[OFF], random_prompts(batch, PROMPT), tokens)[0]

    def theirs(batch: int, tokens: int) -> float:
        ids = torch.tensor(random_prompts(batch, PROMPT), device="cuda")
        exactly = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        torch.cuda.synchronize()
        started = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **exactly)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    def row(batch: int, tokens: int) -> list[str]:
        times = in_turns({"engine": partial(engine, batch, tokens), "theirs": partial(theirs, batch, tokens)}, rounds=5)
        if tokens == 1:
            name, shown = "ms to the first token", [[1e3 * s for s in taken] for taken in times.values()]
        else:
            name, shown = "tokens a second", [[batch * tokens / s for s in taken] for taken in times.values()]
        faster = figure(ratios(times["theirs"], times["engine"]), ".2f")
        return [f"batch {batch}, {name}", *(figure(values, ".1f") for values in shown), faster]

    rows = (row(batch, tokens) for batch in (1, 16) for tokens in (1, 128))
    table(f"Beside Transformers' generate: {OFF}, same weights", ["", "engine", "Transformers", "times faster"], rows)


def bench_drafts(running: Mapping[str, Server]) -> None:
    """Compare decoding with and without drafts on the trained checkpoint, at batch 1."""
    tokens, rounds, models = 256, 40, list(draft_models())
    verified = dict.fromkeys(models, 0)
    starts = {name: iter(range(0, len(HELD_OUT) - PROMPT, 331)) for name in models}  # all continue the same places

    def run(name: str) -> float:
        start = next(starts[name])
        seconds, [output] = generate(running[name], [HELD_OUT[start : start + PROMPT]], tokens)
        verified[name] += output["meta_info"].get("spec_verify_ct", 0)
        return tokens / seconds

    speeds = in_turns({name: partial(run, name) for name in models}, rounds)
    rows = []
    for name, speed in speeds.items():
        per_step = f"{tokens * (rounds + 1) / verified[name]:.2f}" if verified[name] else "1"
        rows.append([name, figure(speed, ".0f"), figure(ratios(speed, speeds[NO_DRAFTS]), ".2f"), per_step])
    table("Drafts on the trained checkpoint, batch 1", ["", "tokens a second", "times faster", "tokens a step"], rows)
