"""A request that brings embeddings in the place of tokens is answered by these."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference.cases import cases, make_checkpoint
from reference.checkpoints import change_tensors
from reference.greedy import PROMPTS
from safetensors.torch import load_file

from engine.harness import OURS, post, server

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
    with server(tmp_path, tmp_path / "log", arguments) as running:
        for prompt in sorted(PROMPTS, key=len)[1:3]:
            by_tokens, by_embeddings = (
                post(running.url, "/generate", sampling_params=SAMPLING, return_logprob=True, **given)
                for given in ({"input_ids": prompt}, {"input_embeds": table[torch.tensor(prompt)].float().tolist()})
            )
            got, wanted = (x["meta_info"]["output_token_logprobs"] for x in (by_embeddings, by_tokens))
            assert [token for _, token, *_ in got] == [token for _, token, *_ in wanted]
            assert [logprob for logprob, *_ in got] == pytest.approx([logprob for logprob, *_ in wanted], abs=1e-5)
