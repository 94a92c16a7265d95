"""A request that brings embeddings in the place of tokens is answered by these."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from overlay_tools.engines.server import Server
from reference.cases import cases, make_checkpoint
from reference.checkpoints import change_tensors
from reference.greedy import PROMPTS
from safetensors.torch import load_file

from engine.harness import CHUNK, HELD_OUT, OURS, post, server

ARGUMENTS = {"disable_radix_cache": True}  # which upstream asks for
MODELS = [name for name, case in OURS.items() if case.vector is None]
SAMPLING = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_of_tokens_are_answered_as_the_tokens_are(name: str, tmp_path: Path) -> None:
    make_checkpoint(name, tmp_path)

    def rounded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:  # as upstream rounds what a request has
        return {
            key: tensor.bfloat16().to(tensor.dtype) if key.endswith("embed_tokens.weight") else tensor
            for key, tensor in tensors.items()
        }

    change_tensors(tmp_path, rounded)
    [table] = [t for file in tmp_path.glob("*.safetensors") for key, t in load_file(file).items() if "embed_tok" in key]
    # Upstream's own models take what it has rounded as it is; those of another dtype end with it.
    arguments = ARGUMENTS if cases()[name].state else {**ARGUMENTS, "dtype": "bfloat16"}
    with server(tmp_path, tmp_path / "log", {**arguments, "chunked_prefill_size": CHUNK}) as running:
        for prompt in sorted(PROMPTS, key=len)[1:3]:
            got, wanted = ask(running, input_embeds=embeds(table, prompt)), ask(running, input_ids=prompt)
            assert [token for token, _ in got] == [token for token, _ in wanted]
            assert [logprob for _, logprob in got] == pytest.approx([logprob for _, logprob in wanted], abs=1e-5)
        assert_apart(running, table, exact="dtype" not in arguments)
        assert_in_chunks(running, table)


def assert_apart(running: Server, table: torch.Tensor, *, exact: bool) -> None:
    """Expect requests with and without embeddings, at once, to be answered as each is alone.

    Unless that is `exact`, as in float32, only the first token is looked at: how a batch rounds may change the others.
    """
    prompts = [HELD_OUT[90 * i : 90 * i + 20 + 3 * i] for i in range(8)]
    alone = [ask(running, input_ids=prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        for shift in range(3):  # which of them have embeddings
            asked = [
                pool.submit(
                    ask,
                    running,
                    **({"input_embeds": embeds(table, prompt)} if (i + shift) % 3 else {"input_ids": prompt}),
                )
                for i, prompt in enumerate(prompts)
            ]
            for one, wanted in zip(asked, alone, strict=True):
                seen, near = (len(wanted), 1e-4) if exact else (1, 0.1)
                assert [token for token, _ in one.result()][:seen] == [token for token, _ in wanted][:seen]
                assert [x for _, x in one.result()][:seen] == pytest.approx([x for _, x in wanted][:seen], abs=near)


def assert_in_chunks(running: Server, table: torch.Tensor) -> None:
    """Expect more embeddings than a chunk has to be answered as their tokens are."""
    prompt = HELD_OUT[: 2 * CHUNK + 5]
    by_tokens, by_embeddings = ask(running, input_ids=prompt), ask(running, input_embeds=embeds(table, prompt))
    assert [token for token, _ in by_embeddings] == [token for token, _ in by_tokens]


def ask(running: Server, **given: object) -> list[tuple[int, float]]:
    """Return the tokens of an answer, each with its logprob."""
    answer = post(running.url, "/generate", sampling_params=SAMPLING, return_logprob=True, **given)
    return [(token, logprob) for logprob, token, *_ in answer["meta_info"]["output_token_logprobs"]]


def embeds(table: torch.Tensor, prompt: list[int]) -> list[list[float]]:
    """Return what a prompt's tokens are embedded as."""
    return table[torch.tensor(prompt)].float().tolist()  # type: ignore[no-any-return]
