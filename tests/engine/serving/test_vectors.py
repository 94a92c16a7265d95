"""A model that generates no text gives the reference model's vector for each text, alone, in a batch and in chunks."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from overlay_tools.engines.loopback import openai_client
from overlay_tools.engines.server import Server
from reference.cases import cases, make_checkpoint
from reference.greedy import PROMPTS, TEXT, encode, vectors

from engine.harness import flush, post, server

ARGUMENTS: Mapping[str, Mapping[str, object]] = {
    "as it is": {},
    "chunks": {"chunked_prefill_size": 48, "max_total_tokens": 1024, "max_running_requests": 4},
}
MODELS = [name for name, case in cases().items() if case.vector is not None]
SERVERS = [(name, kind) for name in MODELS for kind in ARGUMENTS]

__test__ = bool(SERVERS)  # without such a model there is nothing to test here


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A running server, and the vectors that its reference model gives for PROMPTS."""

    server: Server
    wanted: list[list[float]]

    def ask(self, prompts: list[list[int]]) -> list[list[float]]:
        """Give the vectors of some prompts, sent at once."""
        answers = post(self.server.url, "/encode", input_ids=prompts)
        return [answer["embedding"] for answer in answers]


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, reference_process: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Run one server after the other."""
    name, kind = request.param
    folder = tmp_path_factory.mktemp(name)
    make_checkpoint(name, folder)
    wanted = reference_process.submit(vectors, name, folder).result()
    with server(folder, folder / "log", ARGUMENTS[kind]) as running:
        yield Served(server=running, wanted=wanted)


on_servers = pytest.mark.parametrize("served", SERVERS, indirect=True, ids=", ".join, scope="module")


def assert_same(got: list[list[float]], wanted: list[list[float]]) -> None:
    """Assert that vectors are the same but for rounding."""
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_model_computes_where_it_is(name: str, tmp_path: Path) -> None:
    """`compare` has it on a GPU."""

    def look(_: torch.nn.Module, tokens: tuple[torch.Tensor]) -> None:
        raise InterruptedError(tokens[0].device)  # what comes after it may need values, and there are none

    make_checkpoint(name, tmp_path)
    case = cases()[name]
    assert case.vector is not None
    model = case.load(tmp_path, torch.float32).to("meta")
    model.get_input_embeddings().register_forward_pre_hook(look)
    with pytest.raises(InterruptedError, match="meta"):
        case.vector(model, PROMPTS[0])


@on_servers
def test_one_by_one_then_again(served: Served) -> None:
    for _ in range(2):
        assert_same([served.ask([prompt])[0] for prompt in PROMPTS], served.wanted)


@on_servers
def test_in_one_batch(served: Served) -> None:
    flush(served.server)
    assert_same(served.ask(PROMPTS), served.wanted)
    assert len({tuple(vector) for vector in served.wanted}) == len(PROMPTS)  # they are not all alike


@on_servers
def test_the_openai_client_asks_for_a_text(served: Served) -> None:
    client = openai_client(served.server.url, timeout=120)
    answer = client.embeddings.create(model=str(served.server.model), input=TEXT)
    assert_same([answer.data[0].embedding], [served.wanted[PROMPTS.index(encode(TEXT))]])


@on_servers
def test_a_request_for_a_text_is_refused(served: Served) -> None:
    requests: dict[str, dict[str, object]] = {
        "/generate": {"input_ids": PROMPTS[0], "sampling_params": {"max_new_tokens": 4}},
        "/v1/completions": {"model": "default", "prompt": TEXT, "max_tokens": 4},
        "/v1/chat/completions": {"model": "default", "messages": [{"role": "user", "content": TEXT}]},
    }
    for path, body in requests.items():
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(served.server.url, path, **body)
        assert 400 <= refused.value.code < 500, path
        assert "generates none" in refused.value.read().decode(), path
    assert_same(served.ask(PROMPTS), served.wanted)  # and it goes on
