"""Call the reference model in an engine's environment: reference_script.py does the work there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from overlay_tools.errors import CompareError
from overlay_tools.proving.script import open_script

_TRUST = "--trust-remote-code"  # a server's argument, which looking.py names where it is needed
_SCRIPT = Path(__file__).with_name("reference_script.py")
_ANOTHER = "Name a model that computes the same in plain PyTorch with --reference module:Class."
_CODE = f"Read that code, and add `-- {_TRUST}` if you trust it."
_OTHERS = "Name prompts with other pictures, or without any."
_LENGTHS = (1, 2, 5, 17, 33, 63, 64, 65, 100, 130, 200, 300)  # of prompts, around where engines cut


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt as a person has written it, with <image> for each of its pictures, whose paths are `images`."""

    prompt: str
    images: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt as models read it.

    - `tokens`: those of the text, and as many of each picture as it becomes, which are at `places`.
    - `sent`: as an engine is asked where there are pictures: with one token for each of them.
    - `text` and `images`: the question, where there are pictures.
    """

    tokens: list[int]
    sent: list[int] = field(default_factory=list)
    text: str = ""
    images: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    @property
    def asked(self) -> list[int]:
        """Return the tokens that an engine is sent."""
        return self.sent if self.images else self.tokens

    def then(self, more: Sequence[int]) -> Prompt:
        """Return the prompt that this one and what follows it make."""
        return replace(self, tokens=[*self.tokens, *more], sent=[*self.sent, *more])


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """A reference model: its name, what it runs in, the prompts; `vectors`, whether it gives one of each.

    `unseen`: why no prompt has a picture, where the checkpoint takes some.
    """

    reference: str
    runs_in: str
    prompts: list[Prompt]
    vectors: bool = False
    unseen: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a reference model says of tokens, at each place but the first.

    - `logprobs`: of the token there. `best`: its own choice; `gaps`: how many nats likelier that is.
    - `top`: logprobs of the tokens that were likeliest to the engine.
    - `undecided`: the place from which on rounding has chosen an expert, None if nowhere.
    """

    logprobs: list[float]
    best: list[int]
    gaps: list[float]
    top: list[list[float]]
    undecided: int | None


class Reference:
    """The reference model of a checkpoint.

    Parameters: `python`, of an engine's environment; `root`, of the checkout, where `tests/` has the reference models
    of its own models; `folder`, where jobs are written; `named`, a class as `module:Class`, found in `tests/` and in
    the working folder, None for Transformers' own; `device`, as torch names it; `flags`, the server's arguments, which
    may ask for the hidden states of a model that could generate, and let code of the checkpoint's own run.
    Raises CompareError if there is none, or it does not load the checkpoint.
    """

    def __init__(
        self,
        python: Path,
        root: Path,
        folder: Path,
        checkpoint: Path,
        named: str | None,
        device: str,
        *,
        flags: Sequence[str] = (),
    ) -> None:
        self.python, self.folder = python, folder
        paths = [str(root / "tests"), str(root / "ci"), str(Path.cwd())]  # those of tests/ import this package
        self.job = {
            "checkpoint": str(checkpoint.resolve()),
            "reference": named,
            "device": device,
            "paths": paths,
            "embedding": "--is-embedding" in flags,
            "trusted": _TRUST in flags,
            "folder": str(folder),
        }
        self.env = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}

    def describe(self, questions: Sequence[Question], text: str) -> Described:
        """Name the model, and turn `questions` into prompts; where there are none, cut some from the long `text`."""
        asked = [asdict(question) for question in questions]
        found = self._ask("describe", questions=asked, text="" if asked else text, lengths=_LENGTHS)
        prompts = [Prompt(**prompt) for prompt in found["prompts"]]
        if not prompts:
            raise CompareError(
                "There is no prompt: the tokenizer makes no tokens of them.", hint="Name others with --prompts."
            )
        runs_in = f"transformers {found['transformers']}, torch {found['torch']}"
        return Described(
            reference=found["reference"],
            runs_in=runs_in,
            prompts=prompts,
            vectors=found["vectors"],
            unseen=found["unseen"],
        )

    def judge(self, runs: Sequence[Mapping[str, Any]], dtype: str) -> list[Verdict]:
        """Judge runs in a dtype: each has `tokens`, and `top`, tokens to be looked up at each place but the first."""
        return [Verdict(**verdict) for verdict in self._ask("judge", runs=list(runs), dtype=dtype)["runs"]]

    def embed(self, prompts: Sequence[Prompt], dtype: str) -> list[list[float] | None]:
        """Give the vectors of prompts in a dtype; None of one for which rounding chooses an expert."""
        tokens = [prompt.tokens for prompt in prompts]
        vectors: list[list[float] | None] = self._ask("embed", prompts=tokens, dtype=dtype)["vectors"]
        return vectors

    def locate(self, read: Prompt, captured: Path, dtype: str) -> list[dict[str, Any]]:
        """Compare what an engine's modules gave for the tokens of a prompt; see `modules.first_difference`."""
        rows: list[dict[str, Any]] = self._ask("locate", captured=str(captured), dtype=dtype, **asdict(read))["rows"]
        return rows

    def _ask(self, what: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # what goes into JSON
        job = {**self.job, "what": what, **more}
        with open_script(self.python, _SCRIPT, job, env=self.env, folder=self.folder, failed=CompareError) as script:
            found = script.said
        if "problem" in found:
            pictures = any(question["images"] for question in more.get("questions", ()))
            hint = _CODE if _TRUST in found["problem"] else _OTHERS if pictures else _ANOTHER
            raise CompareError(f"{found['problem']}.", hint=hint)
        return found
