"""The models that lm-eval asks: a server, and the reference model. What evaluate_script.py is in imports it."""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
import torch
import transformers
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from looking import first_line, inputs_of, message, png, read_tokenizer, show_to_case  # type: ignore[import-not-found]
from reference_script import Compute, ReferenceProblem, find, find_case, find_vectors, load  # type: ignore[import-not-found]  # sys.path has it

JOB: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
GENERATED = 256  # tokens, where a task does not say how many: lm-eval's own default, of both kinds of models
MOST = 8  # choices that the reference model reads at once, one beside the other, the shorter ones with padding behind
LOGITS = 1 << 27  # values that it then may give
PATIENCE = 3600  # seconds that a request may take


class Problem(Exception):  # noqa: N818  # it is not an error of this script
    """Something that a person can mend."""


class Seen:
    """A question about pictures, as lm-eval has it."""

    def __init__(self, prompt: str, options: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
        self.prompt, self.tokens, self.stops = prompt, options["max_gen_toks"], options["until"]
        self.pictures: list[Any] = shown.get("visual") or []
        message(prompt, self.pictures, lambda _: {})  # with as many as it has places for


class Alike:
    """What both kinds of models do in one way: they make the same tokens of a text, and cut none off.

    `asked` takes all tokens that are asked, to show that they were the same.
    """

    MULTIMODAL = True  # as lm-eval calls what takes pictures
    tokenizer: Any
    limit: int
    asked: Any

    def tok_encode(self, string: str | Sequence[str], add_special_tokens: bool | None = None, **_: object) -> Any:  # noqa: ANN401
        """Turn a text into tokens, or each of several, as the tokenizer does by itself."""
        if not isinstance(string, str):
            return [self.tok_encode(each, add_special_tokens) for each in string]
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)

    def loglikelihood(self, requests: Any, **kwargs: object) -> list[tuple[float, bool]]:  # noqa: ANN401
        """Tell how likely choices are. A model that says it of none has no best."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, **kwargs)  # type: ignore[misc]
        for request, (logprob, _) in zip(requests, found, strict=True):
            if not math.isfinite(logprob):
                raise Problem(f"the model gives {logprob} as the logprob of {request.args[1]!r}")
        return found

    def _loglikelihood_tokens(self, requests: Any, **kwargs: object) -> list[tuple[float, bool]]:  # noqa: ANN401
        for (prompt, choice), before, tokens in requests:
            if not tokens:
                raise Problem(f"the tokenizer makes no token of {choice!r} after {prompt[-20:]!r}")
            self._take(prompt, [*before, *tokens], 0)
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **kwargs)  # type: ignore[misc]
        return found

    def generate_until(self, requests: Any, **kwargs: object) -> list[str]:  # noqa: ANN401
        """Go on with prompts, greedily whatever a task says; or answer chats of a message where there are pictures."""
        for request in requests:
            prompt, options, *shown = request.args
            request.arguments = (prompt, greedy(options), *shown)
        if requests and len(requests[0].args) > 2:
            return self._tell([Seen(*request.args) for request in requests])
        for prompt, options in (request.args for request in requests):
            self._take(prompt, self.tok_encode(prompt), options["max_gen_toks"])
        found: list[str] = super().generate_until(requests, **kwargs)  # type: ignore[misc]
        return found

    def _tell(self, seen: Sequence[Seen]) -> list[str]:
        """Answer questions about pictures."""
        answers = []
        for one, (tokens, text) in zip(seen, self._look(seen), strict=True):
            # Each picture becomes some of the tokens, which are counted: an endpoint does not show them.
            self._take(one.prompt, [tokens], tokens - 1 + one.tokens)
            answers.append(postprocess_generated_text(text, one.stops, None))
        return answers

    def _look(self, seen: Sequence[Seen]) -> Iterable[tuple[int, str]]:
        """Return of each question how many tokens it has, and what is answered."""
        raise NotImplementedError

    def _take(self, prompt: str, tokens: list[int], more: int) -> None:
        if len(tokens) + more >= self.limit:
            raise Problem(
                f"{prompt[:40]!r} and its answer take {len(tokens) + more} tokens, and {self.limit} are too many"
            )
        self.asked.update(json.dumps(tokens).encode())


class Served(Alike, LocalCompletionsAPI):  # type: ignore[misc]  # lm-eval has types for some of it
    """A server, asked on its OpenAI endpoint in tokens."""

    def __init__(self, address: str, at_once: int) -> None:
        self.limit = context()
        super().__init__(
            model=JOB["checkpoint"],
            base_url=f"{address}/v1/completions",
            tokenizer_backend="none",  # lm-eval would read it with its configuration, which `read_tokenizer` avoids
            header={"Content-Type": "application/json"},
            num_concurrent=at_once,
            max_length=self.limit,
            max_gen_toks=GENERATED,
            max_retries=1,  # a server on this machine that fails does so again
            timeout=PATIENCE,
        )
        self.tokenizer, self.tokenizer_backend, self.tokenized_requests = tokenizer(), "huggingface", True

    def _create_payload(self, *args: object, **kwargs: object) -> dict[str, Any]:
        # The server would take a penalty from generation_config.json, and this is to be greedy.
        return {**super()._create_payload(*args, **kwargs), "repetition_penalty": 1.0}

    @staticmethod
    def parse_logprobs(
        outputs: Any,  # noqa: ANN401
        tokens: Sequence[Sequence[int]] | None = None,
        ctxlens: Sequence[int] | None = None,
        **kwargs: object,
    ) -> list[tuple[float, bool]]:
        """Read the logprobs of prompts, which have one of each token, and one of the token after it."""
        for sent, choice in zip(tokens or [], outputs["choices"], strict=True):
            if len(found := choice["logprobs"]["token_logprobs"]) != len(sent) + 1:
                raise Problem(f"the server gives {len(found)} logprobs for {len(sent)} tokens and one more")
        found = LocalCompletionsAPI.parse_logprobs(outputs, tokens=tokens, ctxlens=ctxlens, **kwargs)
        return [*found]

    def _look(self, seen: Sequence[Seen]) -> Iterable[tuple[int, str]]:
        with ThreadPoolExecutor(self._concurrent) as pool:
            return list(pool.map(self._ask, seen))

    def _ask(self, one: Seen) -> tuple[int, str]:
        def shown(picture: Any) -> dict[str, Any]:  # noqa: ANN401  # PIL's
            data = base64.b64encode(png(picture)).decode()
            return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

        body = {
            "model": self.model,
            "messages": message(one.prompt, one.pictures, shown),
            "max_tokens": one.tokens,
            "temperature": 0,
            "separate_reasoning": False,  # the whole answer is judged, as that of Transformers is
        }
        with requests.Session() as session:
            session.trust_env = False  # a proxy has no say in what is asked of this machine
            answer = session.post(
                self.base_url.replace("/completions", "/chat/completions"),
                json={**body, "stop": one.stops, "repetition_penalty": 1.0},
                timeout=PATIENCE,
            )
        if not answer.ok:
            raise Problem(f"the server refuses {one.prompt[:40]!r}: {answer.text[:500]}")
        found = answer.json()
        return found["usage"]["prompt_tokens"], found["choices"][0]["message"]["content"] or ""


class InTransformers(Alike, HFLM):  # type: ignore[misc]
    """The reference model. It generates one answer after another, so that nothing comes before a prompt."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401  # of Transformers
        known = tokenizer()
        # Greedy, as the server is asked, and no longer than there.
        model.generation_config = transformers.GenerationConfig(eos_token_id=ends(known) or None)
        self.limit = context()
        super().__init__(
            pretrained=model,
            tokenizer=known,
            batch_size=1,
            max_length=self.limit,
            softmax_dtype=torch.float32,  # as the engine does: added up in bfloat16, most choices are as likely
        )

    def _loglikelihood_tokens(self, requests: Any, **kwargs: object) -> list[tuple[float, bool]]:  # noqa: ANN401
        longest = max(len(before) + len(tokens) for _, before, tokens in requests)
        at_once = max(1, min(MOST, LOGITS // (longest * self.vocab_size)))
        return super()._loglikelihood_tokens(requests, override_bs=at_once, **kwargs)

    def tok_batch_encode(self, strings: Sequence[str], **_: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn one text into a batch."""
        ids = torch.tensor(self.tok_encode(strings))
        return ids, torch.ones_like(ids)

    def _look(self, seen: Sequence[Seen]) -> Iterable[tuple[int, str]]:
        for one in seen:
            _, asked = inputs_of(Path(JOB["checkpoint"]), JOB["trusted"], self.tokenizer, one.prompt, one.pictures)
            asked = asked.to(self.device, self.model.dtype)
            length = asked["input_ids"].shape[1]
            given = self.model.generate(
                **asked, max_new_tokens=one.tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
            )
            yield length, self.tokenizer.decode(given[0, length:], skip_special_tokens=True)


class Steps(TemplateLM):  # type: ignore[misc]
    """A reference model that gives logits, and no more: it is given all tokens for each one that is added.

    Parameters: `model`; `logits`, what gives its logits of tokens.
    """

    def __init__(self, model: Any, logits: Compute) -> None:  # noqa: ANN401
        super().__init__()
        self.tokenizer, self.limit = tokenizer(), context()
        self.model, self.logits = model, logits
        self._ends = ends(self.tokenizer)

    @property
    def eot_token_id(self) -> int:
        """Return the token at the end of a text."""
        return int(self.tokenizer.eos_token_id)

    def loglikelihood_rolling(self, requests: object, disable_tqdm: bool = False) -> list[float]:
        """Refuse: no task that is right or wrong asks for it."""
        raise Problem("a whole text has no answer that is right or wrong")

    def _loglikelihood_tokens(self, requests: Any, **_: object) -> list[tuple[float, bool]]:  # noqa: ANN401
        found = []
        for _, before, tokens in requests:
            ids = torch.tensor([[*before, *tokens]], device=JOB["device"])
            logprobs = self.logits(ids)[0, len(before) - 1 : -1].float().log_softmax(dim=-1)
            given = torch.tensor(tokens, device=logprobs.device)
            best = bool((logprobs.argmax(dim=-1) == given).all())
            found.append((float(logprobs.gather(-1, given[:, None]).sum()), best))
        return found

    def generate_until(self, requests: Any, **_: object) -> list[str]:  # noqa: ANN401
        """Go on with prompts."""
        answers = []
        for prompt, options in (request.args for request in requests):
            one = Seen(prompt.replace("<image>", ""), options, {})
            text = self.go_on(self.tok_encode(prompt), self.logits, one)
            answers.append(postprocess_generated_text(text, one.stops, None))
        return answers

    def go_on(self, tokens: Sequence[int], logits: Compute, one: Seen) -> str:
        """Add tokens until the answer ends."""
        given: list[int] = []
        text = ""
        while len(given) < one.tokens and not any(stop in text for stop in one.stops):
            best = int(logits(torch.tensor([[*tokens, *given]], device=JOB["device"]))[0, -1].argmax())
            if best in self._ends:
                break
            given.append(best)
            text = self.tokenizer.decode(given, skip_special_tokens=True)
        return text


class StepByStep(Alike, Steps):
    """A model of tests/models/, or one that a person has named, without `generate`."""

    def _look(self, seen: Sequence[Seen]) -> Iterable[tuple[int, str]]:
        [architecture, *_] = configuration().get("architectures") or [""]
        found = None if JOB["reference"] else find_case(architecture)
        if found is None or not found[1].pictures:
            raise Problem(f"{type(self.model).__name__} takes no pictures here")
        for one in seen:
            files = [png(picture) for picture in one.pictures]
            shown = show_to_case(found[1], self.model, self.tokenizer, one.prompt, files)
            yield len(shown.tokens), self.go_on(shown.tokens, shown.logits, one)


def check_reference() -> None:
    """Raise ReferenceProblem if there is no reference model, or it generates no text."""
    if vectors := find_vectors(JOB):
        raise ReferenceProblem(f"{vectors[0]} gives a vector for each text, and generates none")
    find(JOB)


def reference_model() -> Any:  # noqa: ANN401
    """Load the reference model, as lm-eval takes it."""
    torch.set_grad_enabled(False)
    model, logits = load(JOB)
    return InTransformers(model) if hasattr(model, "generate") else StepByStep(model, logits)


def tokenizer() -> Any:  # noqa: ANN401
    """Read the checkpoint's tokenizer."""
    try:
        return read_tokenizer(Path(JOB["checkpoint"]), JOB["trusted"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Problem(f"{JOB['checkpoint']} has no tokenizer to read: {first_line(error)}") from None


def configuration(name: str = "config.json") -> dict[str, Any]:
    """Read a JSON file of the checkpoint."""
    found: dict[str, Any] = json.loads((Path(JOB["checkpoint"]) / name).read_text(encoding="utf-8"))
    return found


def ends(known: Any) -> list[int]:  # noqa: ANN401
    """Return the tokens that end an answer, as a server takes them: from both files, and from the tokenizer."""
    found = [known.eos_token_id]
    for name in ("config.json", "generation_config.json"):
        if (Path(JOB["checkpoint"]) / name).exists():
            said = configuration(name).get("eos_token_id")
            found += said if isinstance(said, list) else [said]
    return sorted({token for token in found if token is not None})


def context() -> int:
    """Return how many tokens the checkpoint takes."""
    config = configuration()
    config = {**config, **(config.get("text_config") or {})}
    return int(config.get("max_position_embeddings") or sys.maxsize)


def greedy(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a task's options what ends an answer. Lm-eval's kinds of models each read the options in another way."""
    found = normalize_gen_kwargs(options, GENERATED)
    stops = [stop for stop in found["until"] if stop]
    return {"until": stops, "max_gen_toks": found["max_gen_toks"], "do_sample": False, "temperature": 0.0}
