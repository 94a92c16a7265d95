"""A request that brings embeddings in the place of tokens is answered by these."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest
import torch
from overlay_tools.engines.server import Server
from packaging.version import Version
from reference.cases import cases, make_checkpoint
from reference.checkpoints import change_tensors
from reference.greedy import PROMPTS
from safetensors.torch import load_file

from engine.harness import CHUNK, HELD_OUT, OURS, RELEASE, ours, post, server, speculative

ARGUMENTS = {"disable_radix_cache": True}  # which upstream asks for
MODELS = [name for name, case in OURS.items() if case.vector is None]
SAMPLING = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_of_tokens_are_answered_as_the_tokens_are(name: str, tmp_path: Path) -> None:
    make_checkpoint(name, tmp_path)
    change_tensors(tmp_path, rounded)
    table = table_of(tmp_path)
    # Upstream's own models take what it has rounded as it is; those of another dtype end with it.
    arguments = ARGUMENTS if cases()[name].state else {**ARGUMENTS, "dtype": "bfloat16"}
    with server(tmp_path, tmp_path / "log", {**arguments, "chunked_prefill_size": CHUNK}) as running:
        for prompt in sorted(PROMPTS, key=len)[1:3]:
            got, wanted = ask(running, input_embeds=embeds(table, prompt)), ask(running, input_ids=prompt)
            assert [token for token, _ in got] == [token for token, _ in wanted]
            assert [logprob for _, logprob in got] == pytest.approx([logprob for _, logprob in wanted], abs=1e-5)
        assert_apart(running, table, exact="dtype" not in arguments)
        assert_in_chunks(running, table)


@pytest.mark.parametrize("name", [name for name in MODELS if cases()[name].draft is not None and cases()[name].state])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_drafts_go_on_from_embeddings(name: str, dtype: str, tmp_path: Path) -> None:
    make_checkpoint(name, tmp_path)
    change_tensors(tmp_path, rounded)
    arguments, environment = speculative(3)
    with server(tmp_path, tmp_path / "log", {**ARGUMENTS, **arguments, "dtype": dtype}, environment) as running:
        table, sampling = table_of(tmp_path), {**SAMPLING, "max_new_tokens": 24}
        if Version("0.5.10") > RELEASE:
            with pytest.raises(HTTPError) as refusal:
                post(running.url, "/generate", sampling_params=sampling, input_embeds=embeds(table, PROMPTS[-1]))
            assert refusal.value.code == 400
            assert "no input_embeds with --speculative-algorithm" in refusal.value.read().decode()
            return
        for prompt in [HELD_OUT[200 * i : 200 * i + 60] for i in range(6)]:
            got = post(running.url, "/generate", sampling_params=sampling, input_embeds=embeds(table, prompt))
            wanted = post(running.url, "/generate", sampling_params=sampling, input_ids=prompt)
            assert got["output_ids"] == wanted["output_ids"]
            assert got["meta_info"]["spec_verify_ct"] == wanted["meta_info"]["spec_verify_ct"]


def test_a_request_with_embeddings_is_answered_again_once_it_is_retracted() -> None:
    """There are embeddings of its prompt alone; from 0.5.10 on upstream does the same."""
    reset = ours("managers.embeddings_apart")._without_answer(lambda request: None)
    for given, left in (([[0.5]], []), (None, [7])):
        request = SimpleNamespace(input_embeds=given, output_ids=[7])
        reset(request)
        assert request.output_ids == left


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


def rounded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Round the embeddings of a checkpoint as upstream rounds what a request has."""
    return {
        key: tensor.bfloat16().to(tensor.dtype) if key.endswith("embed_tokens.weight") else tensor
        for key, tensor in tensors.items()
    }


def table_of(folder: Path) -> torch.Tensor:
    """Return the embeddings of a checkpoint's tokens."""
    [table] = [t for file in folder.glob("*.safetensors") for key, t in load_file(file).items() if "embed_tok" in key]
    return table


def ask(running: Server, **given: object) -> list[tuple[int, float]]:
    """Return the tokens of an answer, each with its logprob."""
    answer = post(running.url, "/generate", sampling_params=SAMPLING, return_logprob=True, **given)
    return [(token, logprob) for logprob, token, *_ in answer["meta_info"]["output_token_logprobs"]]


def embeds(table: torch.Tensor, prompt: list[int]) -> list[list[float]]:
    """Return what a prompt's tokens are embedded as."""
    return table[torch.tensor(prompt)].float().tolist()  # type: ignore[no-any-return]
