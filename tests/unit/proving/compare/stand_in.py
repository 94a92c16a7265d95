"""What answers in an engine's place: it adds 1 to the last token."""

from __future__ import annotations

import io
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError


class StandIn:
    """What answers in a server's place: the logprob of token t at place p is -(t + p / 100), a vector 3n, 4n."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.kept: set[tuple[int, ...]] = set()
        self.log: Path | None = None  # that tells what came from the cache
        self.busy = 2
        self.more = 0  # tokens that it reads than it is sent

    def post(self, url: str, body: Mapping[str, Any], *, timeout: float) -> object:
        path = url.rpartition("/")[2]
        self.asked.append((path, body))
        if path == "flush_cache":
            self.busy -= 1
            if self.busy >= 0:
                raise refusal(url, b"busy")
            self.kept.clear()
            return None
        if path == "encode":
            cached = sum(len(prompt) - 1 for prompt in body["input_ids"] if tuple(prompt) in self.kept)
            self.kept.update(tuple(prompt) for prompt in body["input_ids"])
            if self.log is not None:
                with self.log.open("a") as log:
                    log.write(f"Prefill batch, #new-seq: 1, #cached-token: {cached}, token usage: 0.00\n")
            return [{"embedding": [3.0 * len(prompt), 4.0 * len(prompt)]} for prompt in body["input_ids"]]
        return [self.answer(prompt, body) for prompt in body["input_ids"]]

    def answer(self, prompt: list[int], body: Mapping[str, Any]) -> dict[str, Any]:
        cached = len(prompt) - 1 if tuple(prompt) in self.kept else 0
        self.kept.add(tuple(prompt))
        count = body["sampling_params"]["max_new_tokens"]
        tokens = [prompt[-1] + 1 + n for n in range(count)]
        whole = [(-(t + place / 100), t, None) for place, t in enumerate([*prompt, *tokens])]
        meta = {
            "output_token_logprobs": whole[len(prompt) :],
            "output_top_logprobs": [[one] for one in whole[len(prompt) :]],
            "cached_tokens": cached,
            "prompt_tokens": len(prompt) + self.more,
            "completion_tokens": count,
        }
        if body.get("logprob_start_len") == 0:
            meta["input_token_logprobs"] = [(None, prompt[0], None), *whole[1 : len(prompt)]]
            meta["input_top_logprobs"] = [None, *([one] for one in whole[1 : len(prompt)])]
        return {"meta_info": meta}


def refusal(url: str, said: bytes) -> HTTPError:
    return HTTPError(url, 400, "Bad Request", Message(), io.BytesIO(said))
