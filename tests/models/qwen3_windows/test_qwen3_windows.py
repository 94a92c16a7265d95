"""How much Qwen3-Windows caches, what of a cached prompt still serves past its window, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from engine.harness import (
    HELD_OUT,
    RELEASE,
    assert_answers,
    cached,
    flush,
    generate,
    ours,
    server,
    tokens_of,
)
from overlay_tools.engines.server import Server
from packaging.version import Version
from reference.cases import make_checkpoint
from reference.greedy import Completion, all_answers

from models.qwen3_windows.case import CONFIG, WINDOW, WINDOWS

POOLED = Version("0.5.13") <= RELEASE
"""Whether layers with a window have a pool of their own: before, upstream makes one for those that it lists alone."""

# A process of a server says how large the pools are that it makes.
TOLD = """
def tell(module):
    kind = module.MHATokenToKVPool
    construct = kind.__init__
    def told(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        held = sum(buffer.numel() * buffer.element_size() for buffer in (*self.k_buffer, *self.v_buffer))
        print(f"a pool of {held} bytes, {len(self.k_buffer)} layers, {self.size + self.page_size} tokens", flush=True)
    kind.__init__ = told

CHANGES["sglang.srt.mem_cache.memory_pool"] = tell
"""
TOKENS = 2000  # of layers that attend to all
RATIO = 0.25
FEW = 8  # tokens of an answer

Ask = Callable[[list[list[int]]], list[Completion]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a server whose layers with a window have room for a quarter of the tokens."""
    folder = tmp_path_factory.mktemp("windows")
    make_checkpoint("qwen3-windows", folder / "model")
    arguments = {"max_total_tokens": TOKENS, "swa_full_tokens_ratio": RATIO, "chunked_prefill_size": 128}
    with server(folder / "model", folder / "log", arguments, changes=TOLD) as running:
        yield running


@pytest.fixture(scope="module")
def answers(served: Server, reference_process: ProcessPoolExecutor) -> Ask:
    """Ask the reference model."""

    def ask(prompts: list[list[int]]) -> list[Completion]:
        found = reference_process.submit(all_answers, "qwen3-windows", served.model, prompts).result()
        return [replace(each, tokens=each.tokens[:FEW], logprobs=each.logprobs[:FEW]) for each in found]

    return ask


def test_layers_with_a_window_have_a_pool_of_their_own(served: Server) -> None:
    """A token takes a key and a value a KV head in each layer of a pool, of four bytes a number."""
    told = re.findall(r"a pool of (\d+) bytes, (\d+) layers, (\d+) tokens", served.log.read_text(encoding="utf-8"))
    slots = [TOKENS + 1, int(TOKENS * RATIO) + 1] if POOLED else [TOKENS + 1]
    layers = CONFIG["num_hidden_layers"] // len(slots)
    cell = layers * CONFIG["num_key_value_heads"] * 2 * CONFIG["head_dim"] * 4
    assert sorted(tuple(map(int, each)) for each in told) == sorted((cell * each, layers, each) for each in slots)


def test_prompts_that_part_at_the_edge_of_a_window(served: Server, answers: Ask) -> None:
    """A branch is right whatever side of an edge it parts, and whatever of what it shares comes from the cache.

    That ends where it parts, or where one before it did if upstream has dropped a window since, as it may.
    """
    flush(served)
    stem = HELD_OUT[600:720]
    places = sorted({at + near for at in (WINDOW, 2 * WINDOW, 64, 118) for near in (-1, 0, 1)})
    # A token that no other has there, and a text.
    branches = [[*stem[:at], i + 4, *HELD_OUT[2000 + 50 * at : 2030 + 50 * at]] for i, at in enumerate(places)]
    first, *others = answers([stem, *branches])
    assert_answers(generate(served, [stem], FEW), [first])
    outputs = [generate(served, [branch], FEW)[0] for branch in branches]
    assert_answers(outputs, others)
    hits = cached(outputs)
    assert all(hit in (0, before, at) for hit, before, at in zip(hits, [0, *places], places, strict=False))
    assert hits.count(0) < len(places) // 2


def test_what_goes_on_from_an_answer_longer_than_its_window(served: Server, answers: Ask) -> None:
    """Upstream drops what decoding has left behind the window: what parts there is computed again, and right."""
    flush(served)
    prompt = HELD_OUT[3000:3050]
    [long] = generate(served, [prompt], 200)
    whole = prompt + tokens_of(long)
    further = [whole[:at] + HELD_OUT[4000:4020] for at in (51, 100, 249, 250)]
    first, *others = answers([prompt, *further])
    assert tokens_of(long)[:FEW] == first.tokens
    outputs = [generate(served, [each], FEW)[0] for each in further]
    assert_answers(outputs, others)
    assert max(cached(outputs)) > 200


def test_many_requests_in_a_pool_of_windows_that_holds_few(served: Server, answers: Ask) -> None:
    flush(served)
    prompts = [HELD_OUT[200 * i : 200 * i + 150] for i in range(12)]  # 1,800 tokens, of which windows have room for 500
    wanted = answers(prompts)
    for _ in range(2):
        assert_answers(generate(served, prompts, FEW), wanted)


def settled(**changes: object) -> Any:  # noqa: ANN401
    """Make the configuration of a config.json as a server does."""
    module = ours("configs.qwen3_windows")
    said = json.loads(json.dumps({key: value for key, value in {**CONFIG, **changes}.items() if value is not None}))
    config = module.Qwen3WindowsConfig.from_dict(dict(said))
    module.settle(config, said)
    return config


def test_upstream_is_told_which_layers_have_windows() -> None:
    assert settled().hybrid_layer_pattern == [1, 0, 1, 0]
    assert settled().is_hybrid_swa
    assert settled(layer_types=None, max_window_layers=3).hybrid_layer_pattern == [0, 0, 0, 1]
    off = settled(**dict.fromkeys(WINDOWS))
    assert (off.is_hybrid_swa, off.hybrid_layer_pattern) == (False, [0, 0, 0, 0])


def test_a_window_is_that_many_tokens_with_the_queries_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream counts those before it, in what it asks the model for and in a layer."""
    module = ours("models.qwen3_windows")
    monkeypatch.setattr(module, "attention_backends", lambda: ("torch_native", "torch_native"))
    size_of = module.Qwen3WindowsForCausalLM.get_attention_sliding_window_size
    assert size_of(SimpleNamespace(config=settled())) == WINDOW - 1
    assert size_of(SimpleNamespace(config=settled(**dict.fromkeys(WINDOWS)))) is None
    attention = SimpleNamespace(attn=SimpleNamespace(sliding_window_size=-1), use_fused_qk_norm_rope=True)
    module.keep_to_window(attention, 5)
    assert attention.attn.sliding_window_size == 5
    assert not attention.use_fused_qk_norm_rope


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"sliding_window": 1}, "sliding_window must be 2 or more for layers of sliding_attention, not 1"),
        ({"sliding_window": 0}, "sliding_window must be a whole number from 1 on, not 0"),
        ({"use_sliding_window": False}, "sliding_window must be 2 or more for layers of sliding_attention, not None"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types may have full_attention and sliding_attention alone"),
        ({"sliding_windows": 24}, "sliding_windows is not a key of this model; did you mean sliding_window?"),
    ],
)
def test_what_is_no_window_is_named(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"config.json: {re.escape(named)}"):
        settled(**keys)


def test_what_the_servers_overrides_leave_behind_is_named() -> None:
    """Upstream puts each into the configuration that config.json has made, where others have followed from it."""
    module = ours("configs.qwen3_windows")
    said = {key: value for key, value in CONFIG.items() if key not in WINDOWS}
    config = module.Qwen3WindowsConfig.from_dict(dict(said))
    given = {"use_sliding_window": True, "max_window_layers": 2}
    config.update(given)
    with pytest.raises(ValueError, match=r"config.json: layer_types is .* and with the server's overrides"):
        module.settle(config, {**said, **given})


@pytest.mark.parametrize(("backends", "size"), [(("fa3", "triton"), WINDOW), (("triton", "flashinfer"), WINDOW - 1)])
def test_each_backend_decodes_with_the_whole_window(
    backends: tuple[str, str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream's for Triton takes the size for that of all tokens of a window, others for that of those before."""
    module = ours("models.qwen3_windows")
    monkeypatch.setattr(module, "attention_backends", lambda: backends)
    model = SimpleNamespace(config=SimpleNamespace(is_hybrid_swa=True, sliding_window=WINDOW))
    assert module.Qwen3WindowsForCausalLM.get_attention_sliding_window_size(model) == size
