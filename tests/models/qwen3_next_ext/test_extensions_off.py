"""With its extensions off, Qwen3-Next-Ext gives the logits of upstream's own class, bit for bit, in one process."""

from __future__ import annotations

import pytest
from engine.harness import HELD_OUT, PACKAGE, post, server
from reference.cases import make_checkpoint

from models.qwen3_next_ext.case import OFF

# In the server, upstream's class is made and loaded beside ours. It answers while the file SWITCH is there.
BESIDE = """
import pathlib

def put_beside(module):
    ours, upstreams = module.Qwen3NextExtForCausalLM, module.Qwen3NextForCausalLM
    load_weights, forward = ours.load_weights, ours.forward

    def load_both(self, weights):
        weights = [(name, tensor.clone()) for name, tensor in weights]
        load_weights(self, iter(weights))
        other = upstreams(self.config, self.quant_config)
        other.load_weights(iter(weights))
        self.other = other

    def forward_one(self, *args, **kwargs):
        if pathlib.Path(SWITCH).exists():
            print("upstream's class answers", flush=True)
            return self.other(*args, **kwargs)
        return forward(self, *args, **kwargs)

    ours.load_weights, ours.forward = load_both, forward_one

CHANGES[OURS] = put_beside
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """Ask both classes of one server the same, from empty caches; give every logprob that each returns."""
    folder = tmp_path_factory.mktemp("off")
    make_checkpoint("qwen3-next-ext", folder, OFF)
    switch = folder / "switch"
    changes = f"OURS = {PACKAGE + '.models.qwen3_next_ext'!r}\nSWITCH = {str(switch)!r}\n" + BESIDE
    prompts = [HELD_OUT[500 * i : 500 * i + length] for i, length in enumerate((1, 2, 17, 64, 100, 129, 300))]
    sampling = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    options = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 20}
    found: dict[str, list[object]] = {}
    with server(folder, folder / "log", {"max_mamba_cache_size": 64}, changes=changes) as running:
        for name in ("ours", "upstream's", "ours again"):
            if name == "upstream's":
                switch.touch()
            else:
                switch.unlink(missing_ok=True)
            outputs: list[object] = []
            for prompt in prompts:
                body = {"input_ids": prompt, "sampling_params": sampling, **options}
                meta = post(running.url, "/generate", **body)["meta_info"]
                assert meta["cached_tokens"] == 0  # prompt logprobs from the start are computed, never cached
                outputs.append([meta[f"{part}_top_logprobs"] for part in ("input", "output")])
            found[name] = outputs
            found[f"{name}: upstream's steps"] = [(folder / "log").read_text().count("upstream's class answers")]
    return found


def test_logprobs_are_equal_to_the_last_bit(answers: dict[str, list[object]]) -> None:
    assert answers["ours"] == answers["upstream's"] == answers["ours again"]


def test_each_class_did_answer(answers: dict[str, list[object]]) -> None:
    assert answers["ours: upstream's steps"] == [0]
    assert answers["upstream's: upstream's steps"] == answers["ours again: upstream's steps"]
    [steps] = answers["upstream's: upstream's steps"]
    assert isinstance(steps, int)
    assert steps >= 7 * 24
