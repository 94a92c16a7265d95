"""The questions to an engine, with a stand-in for its server."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.error import URLError

import pytest
from overlay_tools.engines.server import Server
from overlay_tools.errors import CompareError, ServeError
from overlay_tools.proving.compare import engine
from overlay_tools.proving.compare.engine import TOP, ask_at_once, ask_for_vectors, ask_plainly
from overlay_tools.proving.reference import Prompt

from unit.proving.compare.stand_in import StandIn, refusal

PROMPTS = [Prompt(tokens=[10, 20]), Prompt(tokens=[30])]


def test_one_prompt_is_computed_in_every_way(stand_in: StandIn, server: Server) -> None:
    ways = dict(ask_plainly(server, PROMPTS, 3))
    assert list(ways) == ["prefill", "decode", "from the cache", "further turn", "answer as prompt", "in a batch"]
    first = {way: answers[0] for way, answers in ways.items()}
    assert first["prefill"].tokens == [10, 20]
    assert first["prefill"].logprobs == [-20.01]
    assert first["decode"].tokens == [10, 20, 21, 22, 23]
    assert first["decode"].logprobs == pytest.approx([-21.02, -22.03, -23.04])
    assert first["decode"].top[0] == [(21, -21.02)]
    assert first["from the cache"].cached == 1
    assert first["further turn"].tokens == [10, 20, 21, 22, 23, 24, 25, 26]
    # The same tokens at the same places, but read and not chosen.
    assert first["answer as prompt"].tokens == first["decode"].tokens
    assert first["answer as prompt"].start == first["decode"].start
    assert first["answer as prompt"].logprobs == pytest.approx(first["decode"].logprobs)
    assert first["in a batch"].cached == 0
    assert all(answer.chosen == len(prompt.tokens) for prompt, answer in zip(PROMPTS, ways["in a batch"], strict=True))


def test_a_prompt_of_one_token_has_no_logprob_of_its_own(stand_in: StandIn, server: Server) -> None:
    assert dict(ask_plainly(server, PROMPTS, 3))["prefill"][1].logprobs == []


def test_answers_are_greedy_and_of_the_asked_length(stand_in: StandIn, server: Server) -> None:
    ask_at_once(server, PROMPTS, 5)
    [(path, body)] = stand_in.asked
    assert path == "generate"
    assert body["sampling_params"] == {"temperature": 0, "max_new_tokens": 5, "ignore_eos": True}
    assert body["top_logprobs_num"] == TOP


def test_pictures_are_sent_beside_their_prompts(stand_in: StandIn, server: Server, tmp_path: Path) -> None:
    """One token is sent for a picture, which becomes several; a prompt without any has none."""
    (tmp_path / "a.png").write_bytes(b"picture")
    seen = Prompt(
        tokens=[10, 7, 7, 20], sent=[10, 7, 20], text="<image>", images=[str(tmp_path / "a.png")], places=[1, 2]
    )
    stand_in.more = 1
    ways = dict(ask_plainly(server, [seen], 2))
    assert ways["decode"][0].tokens == [10, 7, 7, 20, 21, 22]
    assert ways["further turn"][0].tokens == [10, 7, 7, 20, 21, 22, 23, 24]
    sent = [body for path, body in stand_in.asked if path == "generate"]
    assert [body["input_ids"] for body in sent[2:4]] == [[[10, 7, 20, 21, 22]], [[10, 7, 20, 21, 22]]]
    assert {body["image_data"][0][0] for body in sent} == {base64.b64encode(b"picture").decode()}
    stand_in.more, stand_in.asked = 0, []
    ask_at_once(server, PROMPTS, 2)
    assert "image_data" not in stand_in.asked[0][1]


@pytest.mark.parametrize("told", [True, False])
def test_what_came_from_the_cache_is_in_the_log(told: bool, stand_in: StandIn, server: Server) -> None:
    """Of vectors an answer does not say it; a log may be quiet too, which is no zero."""
    stand_in.log = server.log if told else None
    server.log.write_text("#cached-token: 99\n" * told)  # of what was asked before
    found = {way: vectors.cached for way, vectors in ask_for_vectors(server, PROMPTS)}
    assert found == ({"alone": 0, "from the cache": 1, "in a batch": 0} if told else dict.fromkeys(found))


def test_an_engine_that_reads_other_tokens_is_no_match(stand_in: StandIn, server: Server) -> None:
    stand_in.more = 1
    with pytest.raises(CompareError, match=r"engine reads 3 tokens where the reference model reads 2: \[10, 20\]\."):
        ask_at_once(server, PROMPTS, 1)


def test_what_the_server_says_against_a_request_is_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, body: object, *, timeout: float) -> None:
        raise refusal(url, b'{"message": "the prompt is too long"}')

    monkeypatch.setattr(engine, "post", refuse)
    with pytest.raises(CompareError, match="the prompt is too long") as caught:
        ask_at_once(server, PROMPTS, 1)
    assert str(server.log) in caught.value.hint


def test_a_server_that_has_died_shows_its_last_lines(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, body: object, *, timeout: float) -> None:
        raise URLError("refused")

    monkeypatch.setattr(engine, "post", fail)
    monkeypatch.setattr(server, "check", lambda: None)
    with pytest.raises(ServeError, match="its last words"):
        ask_at_once(server, PROMPTS, 1)
