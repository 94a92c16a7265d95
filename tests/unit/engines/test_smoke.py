"""First questions to a server, with a stand-in that answers as an OpenAI server does."""

from __future__ import annotations

import base64
import http.server
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from overlay_tools.engines import smoke
from overlay_tools.engines.server import Server
from overlay_tools.engines.smoke import Questions, ask, media_environment
from overlay_tools.errors import ServeError

ALLOWED = "SGLANG_OVERLAY_ALLOWED_LOCAL_MEDIA_PATH"


class Answering(http.server.ThreadingHTTPServer):
    """A server that notes what it is asked, and answers with `text`, or with an error if it is None."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.text: str | None = "Paris"
        self.field, self.tokens = "content", 7
        self.refused = ""
        self.about: dict[str, Any] = {"is_generation": True, "has_image_understanding": False}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                models = [{"id": "tiny", "object": "model", "created": 1, "owned_by": "us"}]
                self.answer(outer.about if self.path == "/model_info" else {"object": "list", "data": models})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, body))
                usage = {"completion_tokens": outer.tokens, "prompt_tokens": 3, "total_tokens": 10}
                message = {"role": "assistant", "content": None, outer.field: outer.text}
                if outer.text is None:
                    self.send_error(500)
                elif outer.refused and "messages" in body:
                    self.answer({"message": outer.refused}, status=400)
                elif "input" in body:
                    vectors = [{"object": "embedding", "index": n, "embedding": [n, 0.5, 2, 3, 4]} for n in range(2)]
                    self.answer({"object": "list", "data": vectors, "model": "tiny", "usage": usage})
                elif body.get("stream"):
                    chunks = [{"choices": [{"index": 0, "delta": {outer.field: piece}}]} for piece in outer.text]
                    self.answer_lines([*chunks, {"choices": [], "usage": usage}])
                else:
                    self.answer({"choices": [{"index": 0, "text": outer.text, "message": message}], "usage": usage})

            def answer(self, data: object, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(data).encode())

            def answer_lines(self, rows: list[dict[str, Any]]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for row in [*rows]:
                    self.wfile.write(f"data: {json.dumps(row)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def answering() -> Iterator[Answering]:
    server = Answering()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "log").write_text("the last line\n")
    monkeypatch.setattr(Server, "check", lambda self: None)
    return Server(Path("python"), model, [], env={}, log=tmp_path / "log", port=answering.server_port)


def test_a_completion_and_a_streamed_chat_are_shown(
    server: Server,
    answering: Answering,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count(0, 0.25)
    monkeypatch.setattr(smoke, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    ask(server, Questions(prompt="Once upon", question="Who?"), tmp_path)
    (path, body), (chat_path, chat) = answering.asked
    assert (path, chat_path) == ("/v1/completions", "/v1/chat/completions")
    assert (body["model"], body["prompt"], body["temperature"], body["max_tokens"]) == (
        "tiny",
        "Once upon",
        0,
        32,
    )
    assert (chat["model"], chat["stream"], chat["temperature"]) == ("tiny", True, 0)
    assert chat["stream_options"] == {"include_usage": True}
    assert chat["messages"] == [{"role": "user", "content": "Who?"}]
    said = capsys.readouterr().out
    completion, streamed = said.split("streamed chat")
    assert completion.splitlines()[-2:] == ["  answer   'Paris'", "  timings  7 tokens in 0.25 s, 28 tokens/s"]
    assert streamed.splitlines()[-2:] == [
        "  answer   'Paris'",
        "  timings  7 tokens in 0.50 s, 14 tokens/s, first after 0.25 s",
    ]
    assert "picture" not in said


@pytest.mark.parametrize("named", [True, False])
def test_a_picture_is_shown_by_its_data_and_by_its_path(
    server: Server, answering: Answering, tmp_path: Path, named: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    answering.about["has_image_understanding"] = True
    picture, folder = tmp_path / "cat.png", tmp_path / "pictures"
    picture.write_bytes(b"a picture")
    folder.mkdir()
    ask(server, Questions(), folder, picture if named else None)
    messages = [message for _, body in answering.asked[2:] for message in body["messages"]]
    urls = [message["content"][0]["image_url"]["url"] for message in messages]
    assert {message["role"] for message in messages} == {"user"}
    shown = folder / ("cat.png" if named else "red-square.png")
    assert urls == [f"data:image/png;base64,{base64.b64encode(shown.read_bytes()).decode()}", str(shown.resolve())]
    assert named == (shown.read_bytes() == b"a picture")
    said = capsys.readouterr().out
    assert f"picture, by base64\n  prompt   '{shown.name}: What is this?'\n" in said
    assert "picture, by path\n" in said


def test_a_model_that_gives_vectors_is_asked_for_two(
    server: Server, answering: Answering, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering.about["is_generation"] = False
    ask(server, Questions(), tmp_path)
    [(path, body)] = answering.asked
    assert (path, body["input"]) == ("/v1/embeddings", [Questions().prompt, Questions().question])
    said = capsys.readouterr().out
    assert "  answer   0.0000, 0.5000, 2.0000, 3.0000, ... (5 values)" in said
    assert "  answer   1.0000, 0.5000, 2.0000, 3.0000, ... (5 values)" in said


def test_a_model_that_is_still_thinking_answers(
    server: Server, answering: Answering, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering.field = "reasoning_content"  # as with a reasoning parser, before the answer itself
    answering.about["has_image_understanding"] = True
    ask(server, Questions(), tmp_path)
    assert capsys.readouterr().out.count("  answer   'Paris'\n") == 4


def test_a_model_without_a_chat_template_completes(
    server: Server, answering: Answering, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering.refused = "Cannot use chat template functions because tokenizer.chat_template is not set"
    ask(server, Questions(), tmp_path)
    assert "It has no chat template: completions only." in capsys.readouterr().out
    answering.refused = "max_tokens is too large"
    with pytest.raises(ServeError, match="answered with an error"):
        ask(server, Questions(), tmp_path)


def test_an_answer_without_text_is_shown_as_it_is(
    server: Server, answering: Answering, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a model whose first token is its end."""
    answering.about["has_image_understanding"] = True
    answering.text = ""
    ask(server, Questions(), tmp_path)
    assert capsys.readouterr().out.count("  answer   ''\n") == 4


def test_an_answer_without_tokens_is_an_error(server: Server, answering: Answering, tmp_path: Path) -> None:
    answering.text, answering.tokens = "", 0
    with pytest.raises(ServeError, match=r"The completion came back empty\.") as caught:
        ask(server, Questions(), tmp_path)
    assert caught.value.hint


def test_an_error_shows_the_server_s_last_lines(server: Server, answering: Answering, tmp_path: Path) -> None:
    answering.text = None
    with pytest.raises(ServeError, match=r"answered with an error: (.|\n)*the last line"):
        ask(server, Questions(), tmp_path)


def test_a_server_that_has_died_is_said_to(
    server: Server, answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering.text = None

    def died(self: Server) -> None:
        raise ServeError("It has died.")

    monkeypatch.setattr(Server, "check", died)
    with pytest.raises(ServeError, match="It has died"):
        ask(server, Questions(), tmp_path)


def test_a_server_may_read_its_pictures_beside_what_it_might_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ALLOWED, raising=False)
    folder = tmp_path / "a" / "pictures"
    assert media_environment(folder) == {ALLOWED: str(folder)}
    assert folder.is_dir()
    monkeypatch.setenv(ALLOWED, "/srv/pictures")
    assert media_environment(folder) == {ALLOWED: f"/srv/pictures:{folder}"}
