"""Faults that a model can have, each with the module that it is in, and what compares an engine with a faulty model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from overlay_tools.engines.server import Server
from overlay_tools.proving import reference_script
from overlay_tools.proving.compare import comparison
from overlay_tools.proving.compare.engine import Answer, Vectors, ask_for_vectors, ask_one_by_one, ask_plainly, embed
from overlay_tools.proving.compare.modules import Difference, first_difference
from overlay_tools.proving.compare.statistics import Row, compare, compare_vectors, runs_of
from overlay_tools.proving.reference import Prompt, Verdict
from reference.cases import make_checkpoint
from reference.checkpoints import change_tensors

from engine.harness import CHUNK, HELD_OUT, server

Tensors = dict[str, torch.Tensor]
# Captures modules as the tool does, of an engine whose modules may be imported already.
CAPTURES = """
import pathlib, runpy

script = runpy.run_path({script!r})
CHANGES[script["MODULE"]] = lambda module: script["change"](module, pathlib.Path({folder!r}))
"""
PROMPTS = [Prompt(tokens=HELD_OUT[311 * n : 311 * n + length]) for n, length in enumerate((1, 2, 17, 65, 130, 200))]
TOKENS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """A fault: changes to config.json, or to the tensors whose names begin with a prefix; and the module it is in."""

    module: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    tensors: str = ""
    change: Callable[[torch.Tensor], torch.Tensor] = torch.zeros_like

    def apply(self, name: str, folder: Path) -> Path:
        """Write the faulty checkpoint of a case into a folder."""
        make_checkpoint(name, folder, self.changes)
        if self.tensors:
            touched: list[str] = []

            def fault(tensors: Tensors) -> Tensors:
                of = {key: self.change(value) for key, value in tensors.items() if key.startswith(self.tensors)}
                touched.extend(of)
                return tensors | {key: value.contiguous() for key, value in of.items()}

            change_tensors(folder, fault)
            assert touched, f"no tensor begins with {self.tensors}"
        return folder


def turned(tensor: torch.Tensor) -> torch.Tensor:
    """Put a half of the rows before the other: of a projection, heads are swapped."""
    return tensor.roll(tensor.shape[0] // 2, dims=0)


# Faults of the trained Qwen3-Next-Ext. The engine calls its adapter as a part of what makes the logits.
MUTATIONS = {
    "a norm's epsilon": Mutation(module="layers.0.input_layernorm", changes={"rms_norm_eps": 1e-2}),
    "the rotary base": Mutation(module="layers.2.self_attn", changes={"rope_theta": 1e6}),
    "rotary in a layer without": Mutation(module="layers.5.self_attn", changes={"nope_layers": []}),
    "heads swapped": Mutation(module="layers.2.self_attn", tensors="model.layers.2.self_attn.q_proj", change=turned),
    "a key norm": Mutation(module="layers.5.self_attn", tensors="model.layers.5.self_attn.k_norm"),
    "a router's bias": Mutation(module="layers.3.mlp", tensors="model.layers.3.mlp.gate.e_score", change=turned),
    "groups of experts": Mutation(module="layers.0.mlp", changes={"topk_group": 1}),
    "one expert": Mutation(module="layers.4.mlp", tensors="model.layers.4.mlp.experts.3.down_proj"),
    "the shared expert's gate": Mutation(module="layers.2.mlp", tensors="model.layers.2.mlp.shared_expert_gate"),
    "a convolution": Mutation(
        module="layers.0.linear_attn", tensors="model.layers.0.linear_attn.conv1d", change=turned
    ),
    "a decay": Mutation(module="layers.1.linear_attn", tensors="model.layers.1.linear_attn.dt_bias"),
    "a layer's norm": Mutation(
        module="layers.3.post_attention_layernorm", tensors="model.layers.3.post_attention_layernorm", change=torch.neg
    ),
    "the last norm": Mutation(module="norm", tensors="model.norm"),
    "the embeddings": Mutation(module="embed_tokens", tensors="model.embed_tokens", change=turned),
    "the adapter's sign": Mutation(module="logits", tensors="head_adapter.up", change=torch.neg),
    "the soft cap": Mutation(module="logits", changes={"logit_softcap": 30.0}),
    "the head": Mutation(module="logits", tensors="lm_head", change=turned),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A server whose modules can be captured, in `folder`, and what it gave by the way in which it computed that.

    It was asked `prompts`, and has given `answers`, or `vectors`.
    """

    server: Server
    folder: Path
    prompts: Sequence[Prompt]
    answers: Mapping[str, Sequence[Answer]] = field(default_factory=dict)
    vectors: Mapping[str, Vectors] = field(default_factory=dict)

    def capture(self, way: str) -> Prompt:
        """Compute the last prompt in a way, note what each module gives, and return what was read."""
        for path in self.folder.glob("*.pt"):
            path.unlink()
        prompt = self.prompts[-1]
        if way == "from the cache":
            ask_one_by_one(self.server, [prompt], TOKENS)
        (self.folder / "on").touch()
        if self.vectors:
            embed(self.server, [prompt])
            (self.folder / "on").unlink()
            return prompt
        [answer] = ask_one_by_one(self.server, [prompt], TOKENS if way == "decode" else 1)
        (self.folder / "on").unlink()
        return prompt.then(answer.tokens[answer.chosen : -1])


@contextmanager
def serving(
    checkpoint: Path,
    folder: Path,
    *,
    vectors: bool = False,
    prompts: Sequence[Prompt] = PROMPTS,
) -> Iterator[Served]:
    """Serve a checkpoint and ask for answers, or vectors, in all ways that one server has."""
    captures = CAPTURES.format(script=str(comparison.CAPTURE), folder=str(folder))
    with server(checkpoint, folder / "log", {"chunked_prefill_size": CHUNK}, changes=captures) as running:
        if vectors:
            given: dict[str, Any] = {"vectors": dict(ask_for_vectors(running, prompts))}
        else:
            given = {"answers": dict(ask_plainly(running, prompts, TOKENS))}
        yield Served(server=running, folder=folder, prompts=prompts, **given)


class Models:
    """Reference models, in a process of their own."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool = pool

    def rows(self, served: Served, checkpoint: Path) -> dict[str, Row]:
        """Compare all that was given with what the reference model of a checkpoint says of it."""
        if served.vectors:
            job = {**_job(checkpoint), "prompts": [prompt.tokens for prompt in served.prompts]}
            wanted = self.pool.submit(reference_script.embed, job).result()["vectors"]
            return {way: compare_vectors(way, of, wanted, None) for way, of in served.vectors.items()}
        runs = [run for answers in served.answers.values() for run in runs_of(answers)]
        found = iter(self.pool.submit(reference_script.judge, {**_job(checkpoint), "runs": runs}).result()["runs"])
        return {
            way: compare(way, answers, [Verdict(**next(found)) for _ in answers], None)
            for way, answers in served.answers.items()
        }

    def describe(self, checkpoint: Path, folder: Path, *, embedding: bool = False) -> list[Prompt]:
        """Return what is asked of a checkpoint where no prompts are named; pictures are drawn into the folder."""
        job = {**_job(checkpoint), "questions": [], "text": "", "lengths": [], "folder": str(folder)}
        job["embedding"] = embedding
        found = self.pool.submit(reference_script.describe, job).result()
        return [Prompt(**prompt) for prompt in found["prompts"]]

    def locate(self, served: Served, checkpoint: Path, read: Prompt) -> Difference:
        """Compare what was captured with the reference model's modules."""
        job = {**_job(checkpoint), **asdict(read), "captured": str(served.folder)}
        return first_difference(self.pool.submit(reference_script.locate, job).result()["rows"])


def _job(checkpoint: Path) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint),
        "reference": None,
        "device": "cpu",
        "dtype": "float32",
        "embedding": False,
        "trusted": False,
    }
