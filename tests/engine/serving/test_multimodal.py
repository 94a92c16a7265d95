"""Models that take pictures give on the real engine what their reference models give, whatever the pictures.

A run counts where the reference model itself is decided.
"""

from __future__ import annotations

import base64
import functools
import importlib
import io
import json
import struct
import time
import urllib.error
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import BadRequestError
from overlay_tools.engines.loopback import open_directly, openai_client
from overlay_tools.engines.server import Server
from packaging.version import Version
from PIL import Image
from reference.cases import cases, make_checkpoint
from reference.drawing import (
    HELD_OUT_SEED,
    IM_END,
    IM_START,
    KINDS,
    PICTURE,
    SIZES,
    START,
    STOP,
    Task,
    draw,
    make_task,
    make_tasks,
)
from reference.drawing import prompt as prompt_of
from reference.greedy import decode, encode, judge

from engine.harness import (
    CHUNK,
    EXTRA_BUFFER,
    OURS,
    RELEASE,
    SPAWN,
    TWO_RANKS,
    cached,
    flush,
    ours,
    post,
    post_request,
    server,
    tokens_of,
)

Request = tuple[list[int], list[bytes]]  # a prompt with one token a picture, and the pictures' files

LISTS_HOSTS = Version("0.5.18") <= RELEASE  # upstream can be told from which hosts pictures may come

ARGUMENTS: dict[str, dict[str, object]] = {
    "extra_buffer": {
        **EXTRA_BUFFER,
        "max_mamba_cache_size": 128,
        **({"allowed_media_domains": "localhost"} if LISTS_HOSTS else {}),
    },
    "small chunks": {
        **dict.fromkeys(EXTRA_BUFFER, "no_buffer"),
        "disable_overlap_schedule": True,  # what 0.5.13 and later ask for with no_buffer
        "chunked_prefill_size": 24,  # divides the 16 tokens of a small picture, and others, anywhere
        "max_mamba_cache_size": 64,
    },
}
PICTURED = {name: case for name, case in cases().items() if case.pictures}
SERVERS = [(name, kind) for name in PICTURED for kind in ARGUMENTS]
TEXT = next((name for name, case in OURS.items() if not case.pictures and case.vector is None), "")

__test__ = bool(SERVERS)  # without such a model there is nothing to test here


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A running server of a case with the reference model of its checkpoint.

    `registered`: the template that the model's row registers, if the server writes chats with it.
    """

    name: str
    kind: str
    server: Server
    judge: Callable[[list[tuple[list[int], list[bytes], list[int]]]], Any]
    registered: str = ""

    def generate(self, requests: Sequence[Request], tokens: int = 16, **options: object) -> list[dict[str, Any]]:
        """Continue prompts greedily by so many tokens, sent at once."""
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}

        def send(request: Request) -> dict[str, Any]:
            prompt, files = request
            body: dict[str, Any] = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, **options}
            if files:
                body["image_data"] = [base64.b64encode(file).decode() for file in files]
            return dict(post(self.server.url, "/generate", **body))

        with ThreadPoolExecutor(max_workers=8) as pool:
            return list(pool.map(send, requests))

    def flush(self) -> None:
        """Empty the caches."""
        flush(self.server)

    def assert_right(
        self, requests: Sequence[Request], outputs: Sequence[dict[str, Any]], least: float = 0.85
    ) -> float:
        """Assert that outputs are what the reference model gives where it is decided: tokens, and logprobs within 1e-3.

        It must be decided in a share of `least` of them. It seldom is in a long prompt: each token must have clear
        experts. Returns the largest difference of two logprobs.
        """
        runs = [(*request, tokens_of(output)) for request, output in zip(requests, outputs, strict=True)]
        decided, largest = 0, 0.0
        for (prompt, files, tokens), output, verdict in zip(runs, outputs, self.judge(runs), strict=True):
            # Pictures have as many tokens.
            assert output["meta_info"]["prompt_tokens"] == len(verdict.prompt_logprobs) + 1
            if verdict.margin < 1e-3 or verdict.router_margin < 2e-6:
                continue
            decided += 1
            what = f"prompt of {len(prompt)} tokens, {len(files)} pictures, {cached([output])[0]} cached"
            assert tokens == verdict.tokens, what
            got = [logprob for logprob, *_ in output["meta_info"]["output_token_logprobs"]]
            assert got == pytest.approx(verdict.logprobs, abs=1e-3, rel=0), what
            largest = max(largest, *(abs(a - b) for a, b in zip(got, verdict.logprobs, strict=True)))
        assert decided >= int(len(outputs) * least)
        return largest


def answer_of(output: Mapping[str, Any]) -> str:
    """Give the text before the end of the answer."""
    tokens = tokens_of(output)
    return decode(tokens[: tokens.index(IM_END)] if IM_END in tokens else tokens)


def request_of(*parts: str | bytes) -> Request:
    """Make a prompt of text and pictures, in their order, as the chat template does."""
    middle: list[int] = []
    for part in parts:
        middle += encode(part) if isinstance(part, str) else [START, PICTURE, STOP]
    before, after = prompt_of(Task(question="", answer="", pictures=[], first=True))[:6], [IM_END, *encode("\n")]
    prompt = [*before, *middle, *after, before[0], *encode("assistant\n")]
    return prompt, [part for part in parts if isinstance(part, bytes)]


def file_of(picture: Image.Image, kind: str = "PNG") -> bytes:
    """Write a picture as a file."""
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def drawn(width: int, height: int, seed: int) -> Image.Image:
    """Draw a picture of several things."""
    import random

    [things] = make_task(random.Random(seed), "count").pictures
    [pixels] = draw([things], width, height, torch.Generator().manual_seed(seed))
    return Image.frombytes("RGB", (width, height), bytes(pixels.permute(1, 2, 0).to(torch.uint8).flatten().tolist()))


def ramp(mode: str) -> Image.Image:
    """Make a picture of another mode than RGB, with transparency where the mode has it."""
    grey = Image.linear_gradient("L").resize((60, 50))
    if mode == "I;16":
        return Image.frombytes("I;16", grey.size, b"".join(struct.pack("<H", value * 257) for value in grey.tobytes()))
    if mode == "LA":
        return Image.merge("LA", (grey, grey.rotate(180)))
    if mode == "RGBA":
        picture = drawn(60, 50, 3)
        picture.putalpha(grey)
        return picture
    return grey.convert(mode)


@contextmanager
def serving(
    name: str,
    kind: str,
    arguments: Mapping[str, object],
    environment: Mapping[str, str],
    folder: Path,
    reference_process: ProcessPoolExecutor,
    registered: str = "",
) -> Iterator[Served]:
    """Run a server of a case's checkpoint, which is made in `folder`."""
    make_checkpoint(name, folder)
    with server(folder, folder / "log", arguments, environment) as running:
        yield Served(
            name=name,
            kind=kind,
            server=running,
            judge=lambda runs: reference_process.submit(judge, name, folder, runs).result(),
            registered=registered,
        )


@pytest.fixture(scope="module", params=SERVERS, ids=", ".join)
def served(
    request: pytest.FixtureRequest, reference_process: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Run one server after the other, the first one's processes started as for users."""
    name, kind = request.param
    arguments, registered = ARGUMENTS[kind], ""
    environment = {"SGLANG_OVERLAY_ALLOWED_LOCAL_MEDIA_PATH": str(tmp_path_factory.getbasetemp())}
    if kind == "extra_buffer":
        environment |= SPAWN
    elif registered := template_of(PICTURED[name].architecture):
        arguments = {**arguments, "chat_template": registered}
    folder = tmp_path_factory.mktemp("pictured")
    with serving(name, kind, arguments, environment, folder, reference_process, registered) as running:
        yield running


on_extra_buffer = pytest.mark.parametrize(
    "served", [server for server in SERVERS if "extra_buffer" in server], indirect=True, ids=", ".join
)


def template_of(architecture: str) -> str:
    """Name the chat template that a model's row registers, if any."""
    [row] = [row for row in ours("overlay_registry").MODELS if row.architecture == architecture]
    if not row.chat_template:
        return ""
    module, _, function = row.chat_template.partition(":")
    return str(getattr(importlib.import_module(module), function)().name)


def requests() -> dict[str, Request]:
    """Give a request for each way in which pictures may come."""
    a, b, c = (file_of(drawn(64, 64, seed)) for seed in (1, 2, 3))
    sizes = [(64, 64), (57, 71), (33, 17), (1, 1), (5, 200), (400, 3), (300, 200), (16_384, 2), (31, 129)]
    ask = "How many squares?"
    return {
        "no picture": request_of("Repeat: blue circle"),
        **{f"{w} x {h}": request_of(file_of(drawn(w, h, w)), ask) for w, h in sizes},
        **{mode: request_of(file_of(ramp(mode)), "What is this?") for mode in ("L", "LA", "RGBA", "P", "1", "I;16")},
        "JPEG": request_of(file_of(drawn(90, 75, 9), "JPEG"), ask),
        "three": request_of(a, b, c, "What is picture 2?"),
        "side by side, of other sizes": request_of(a, file_of(drawn(96, 48, 4)), file_of(drawn(20, 30, 5)), ask),
        "interleaved": request_of("First ", a, " then ", b, " and this: ", c, " What is picture 3?"),
        "the same twice": request_of(a, a, "What is picture 1?"),
        "at the end": request_of("How many squares? " * 6, b),
    }


def test_tokens_and_logprobs_match_the_reference_model(served: Served) -> None:
    served.flush()
    asked = list(requests().values())
    one_by_one = [served.generate([request])[0] for request in asked]
    served.assert_right(asked, one_by_one)
    at_once = served.generate(asked)  # and from the cache, where it holds them
    served.assert_right(asked, at_once)
    assert len({tuple(tokens_of(output)) for output in one_by_one}) > 5


BEFORE, AFTER = "Look well at this. " * 5, "How many squares are there? " * 4
BEFORE_PICTURE = len(request_of(BEFORE)[0])  # tokens that a prompt shares with one of another picture


@pytest.mark.alone
@pytest.mark.parametrize("by_picture", [False, True], ids=["weights shared", "pictures shared"])
@pytest.mark.parametrize("name", PICTURED)
def test_two_ranks_give_what_one_gives(
    reference_process: ProcessPoolExecutor, name: str, by_picture: bool, tmp_path: Path
) -> None:
    arguments = {**EXTRA_BUFFER, **TWO_RANKS[0], "mm_enable_dp_encoder": by_picture}
    with serving(name, "two ranks", arguments, TWO_RANKS[1], tmp_path, reference_process) as served:
        alone = request_of(file_of(drawn(48, 48, 11)), "How many squares?")  # shared by pictures, one rank has none
        asked = list(requests().values())
        served.assert_right([alone, *asked], [*served.generate([alone]), *served.generate(asked)])


def test_the_same_picture_is_found_in_the_cache(served: Served) -> None:
    asked, outputs = [], []
    for seed in range(6):
        served.flush()
        request = request_of(BEFORE, file_of(drawn(128, 96, seed)), AFTER)
        [first] = served.generate([request])
        [second] = served.generate([request])
        assert cached([first]) == [0]
        if served.kind == "extra_buffer" and PICTURED[served.name].state:
            assert cached([second]) == [(first["meta_info"]["prompt_tokens"] - 1) // CHUNK * CHUNK]
        assert tokens_of(first) == tokens_of(second)
        asked += [request, request]
        outputs += [first, second]
    served.assert_right(asked, outputs, 0.3)


def test_another_picture_of_the_same_size_never_is(served: Served) -> None:
    served.flush()
    asked = [request_of(BEFORE, file_of(drawn(128, 96, seed)), AFTER) for seed in range(10, 20)]
    outputs = [served.generate([request])[0] for request in asked]
    assert max(cached(outputs)) <= BEFORE_PICTURE
    assert cached(outputs)[0] == 0
    served.assert_right(asked, outputs, 0.3)


def test_the_same_patches_in_other_rows_are_another_picture(served: Served) -> None:
    served.flush()
    asked = []
    for seed in range(3):
        tiles = [drawn(16, 16, 100 * seed + i) for i in range(32)]
        for columns in (8, 4):
            picture = Image.new("RGB", (16 * columns, 16 * (32 // columns)))
            for i, tile in enumerate(tiles):
                picture.paste(tile, (16 * (i % columns), 16 * (i // columns)))
            asked.append(request_of(BEFORE, file_of(picture), "What is this?"))
    outputs = [served.generate([request])[0] for request in asked]
    assert max(cached(outputs)) <= BEFORE_PICTURE
    served.assert_right(asked, outputs, 0.3)
    logprobs = [[logprob for logprob, *_ in output["meta_info"]["output_token_logprobs"]] for output in outputs]
    assert len(set(map(tuple, logprobs))) == len(logprobs)


def held_out() -> tuple[list[Request], list[str]]:
    """Give requests with 200 held-out pictures at least, and the right answers."""
    tasks = make_tasks(HELD_OUT_SEED + 99, 200, [kind for kind in KINDS if kind != "repeat"])
    asked = []
    for i, task in enumerate(tasks):
        width, height = SIZES[i % len(SIZES)]
        pixels = draw(task.pictures, width, height, torch.Generator().manual_seed(HELD_OUT_SEED + i))
        whole = pixels.permute(0, 2, 3, 1).to(torch.uint8)
        files = [file_of(Image.frombytes("RGB", (width, height), bytes(one.flatten().tolist()))) for one in whole]
        asked.append((prompt_of(task), files))
    return asked, [task.answer for task in tasks]


@on_extra_buffer
def test_held_out_pictures_are_answered(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.flush()
    asked, right = held_out()
    started = time.monotonic()
    outputs = served.generate(asked)
    seconds = time.monotonic() - started
    largest = served.assert_right(asked, outputs)
    found = sum(answer_of(output) == answer for output, answer in zip(outputs, right, strict=True))
    assert found / len(asked) >= PICTURED[served.name].right
    served.flush()
    started = time.monotonic()
    served.generate(asked, tokens=1)
    prefill = time.monotonic() - started
    pictures = sum(len(files) for _, files in asked)
    with capsys.disabled():
        print(
            f"\nsglang {RELEASE} on the CPU: {found} of {len(asked)} right, logprobs within {largest:.0e};",
            f"{pictures / prefill:.0f} pictures/s prepared and prefilled, {len(asked) / seconds:.1f} answers/s",
        )


@pytest.mark.parametrize("source", ["base64", "path", "file address"])
def test_the_openai_client_sends_a_picture(served: Served, source: str, tmp_path: Path) -> None:
    # Upstream itself adds a line break after a picture where a template is a registered one.
    break_after = "\n" * bool(served.registered)
    prompt, files = request_of(file_of(drawn(64, 64, 21)), f"{break_after}How many squares?")
    request = [IM_START, *encode("system\nLook well."), IM_END, *encode("\n"), *prompt], files
    path = tmp_path / "picture.png"
    path.write_bytes(request[1][0])
    urls = {
        "base64": f"data:image/png;base64,{base64.b64encode(request[1][0]).decode()}",
        "path": str(path),
        "file address": path.as_uri(),
    }
    client = openai_client(served.server.url, timeout=120)
    content: Any = [
        {"type": "image_url", "image_url": {"url": urls[source]}},
        {"type": "text", "text": "How many squares?"},
    ]
    messages: Any = [{"role": "system", "content": "Look well."}, {"role": "user", "content": content}]
    completion = client.chat.completions.create(
        model=str(served.server.model), messages=messages, temperature=0, max_tokens=16
    )
    [wanted] = served.generate([request])
    assert completion.choices[0].message.content == answer_of(wanted)
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == wanted["meta_info"]["prompt_tokens"]


def bomb() -> bytes:
    """Write a PNG of few bytes that says it is 60,000 pixels wide and high."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(bytes(9))) + part(b"IEND", b"")


def zero() -> bytes:
    """Write a GIF that says it has no pixels."""
    return (
        b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0) + b"\x2c" + struct.pack("<HHHHB", 0, 0, 0, 0, 0) + b"\x02\x00;"
    )


def coded(file: bytes) -> str:
    """Write a file as base64."""
    return base64.b64encode(file).decode()


GOOD = coded(file_of(Image.new("RGB", (32, 32), "blue")))
BAD: dict[str, tuple[int, list[str], str]] = {  # places in the prompt, pictures, and what the answer says
    "broken": (1, [coded(file_of(drawn(64, 64, 1))[:900])], "picture 1 is broken"),
    "no pixels": (1, [coded(zero())], "picture 1"),
    "20,000 pixels wide": (1, [coded(file_of(Image.new("RGB", (20_000, 8))))], "too large: it is 20000 x 8"),
    "bomb": (1, [coded(bomb())], "too large"),
    "too few": (2, [GOOD], "places for 2 pictures, and 1 were given"),
    "too many": (1, [GOOD, GOOD], "places for 1 pictures, and 2 were given"),
    "no place": (0, [GOOD], "places for 0 pictures, and 1 were given"),
    "a file elsewhere": (1, ["/nowhere/at/all.png"], "picture 1 cannot be read: it is not below a folder"),
    "a device": (1, ["file:///dev/zero"], "picture 1 cannot be read: it is not below a folder"),
    "no base64": (1, ["!!!"], "picture 1 cannot be read"),
    "the second": (2, [GOOD, coded(b"GIF89a")], "picture 2"),
    "an address that does not answer": (1, ["http://localhost:9/x.png"], "picture 1 cannot be read"),
    "an address that is not allowed": (
        1,
        ["http://127.0.0.1:9/x.png"],
        f"picture 1 cannot be read{': Media URL domain is not allowed' if LISTS_HOSTS else ''}",
    ),
}


def refused(served: Served, path: str, **body: object) -> str:
    """Send what must be refused with a 4xx and give the answer's message."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        open_directly(post_request(served.server.url, path, body), timeout=120)
    with caught.value as error:
        assert 400 <= error.code < 500
        answer = json.loads(error.read())
    return str(answer.get("message") or answer["error"]["message"])


@on_extra_buffer
@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused(served: Served, name: str) -> None:
    places, pictures, message = BAD[name]
    prompt, _ = request_of(*[b""] * places, "What is this?")
    sampling = {"temperature": 0, "max_new_tokens": 4}
    said = refused(served, "/generate", input_ids=prompt, image_data=pictures, sampling_params=sampling)
    assert message in said
    assert len(said) < 400
    good = request_of(base64.b64decode(GOOD), "What is this?")
    served.assert_right([good], served.generate([good]))


@pytest.mark.skipif(not TEXT, reason="there is no model that takes text alone")
def test_a_picture_for_a_model_of_text_is_refused(tmp_path: Path) -> None:
    url = f"data:image/png;base64,{GOOD}"
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    make_checkpoint(TEXT, tmp_path)
    with server(tmp_path, tmp_path / "log") as text:
        client = openai_client(text.url, timeout=120)
        create = functools.partial(client.chat.completions.create, model=str(text.model), max_tokens=4, temperature=0)
        messages: Any = [{"role": "user", "content": content}]
        with pytest.raises(BadRequestError, match=r"takes text, and no image|only supports text input"):
            create(messages=messages)
        messages[0]["content"] = content[:1]
        by_parts = create(messages=messages).choices[0].message.content
        messages[0]["content"] = "What is this?"
        assert create(messages=messages).choices[0].message.content == by_parts


@on_extra_buffer
def test_bad_pictures_in_a_chat_are_refused(served: Served, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture at all", encoding="utf-8")
    for url, message in (
        (str(text), "picture 1 is not a picture"),
        (f"data:image/png;base64,{coded(bomb())}", "too large"),
    ):
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
        messages = [{"role": "user", "content": content}]
        body = {"model": str(served.server.model), "messages": messages, "max_tokens": 4}
        assert message in refused(served, "/v1/chat/completions", **body)
    video = [{"type": "video_url", "video_url": {"url": str(text)}}, {"type": "text", "text": "What is this?"}]
    said = refused(
        served, "/v1/chat/completions", model=str(served.server.model), messages=[{"role": "user", "content": video}]
    )
    assert "neither sound nor video" in said
