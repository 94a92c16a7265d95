"""One model's case: what the tests must know of a model to run on it.

A folder of `tests/models/` with a `case.py` that has a `CASE` is one; nothing lists them. Each generic test runs on the
cases that declare what it needs. A release has those of the models that it takes: the case of a model lies in a folder
of the name that its row's file has.
"""

from __future__ import annotations

import functools
import importlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from overlay_tools.settings import load_project
from packaging.version import Version
from transformers import PreTrainedModel

from reference.checkpoints import (
    change_tensors,
    changed,
    configuration,
    require_all,
    write_checkpoint,
    write_config,
)

ROOT = Path(__file__).parents[2]
FOLDER, DATA = (ROOT / "tests" / name for name in ("models", "data"))

Config = Mapping[str, Any]
Logits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decisions:
    """Configurations with the dimensions of a released model, for which upstream is to decide as for the base's.

    - `base`: that of the base, which upstream reads with its class `configuration`; `derived`: those of the model, by
      what they are.
    - `differences`: of each of these, what may differ: a member of a Hugging Face configuration, and why.
    """

    base: Config
    configuration: str
    derived: Mapping[str, Config]
    differences: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What a server that starts on a broken checkpoint must say.

    - `said`: texts, or patterns, in what it prints.
    - `changes`: to config.json; `tensors`: what becomes of the weights.
    - `broken_import`: a module of the overlay that cannot be imported, named as below `sglang.srt`.
    - `draft`: whether the server is to draft. `environment`: its variables. `before`: the first release without it.
    """

    said: Sequence[str]
    changes: Config = field(default_factory=dict)
    tensors: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None
    broken_import: str = ""
    draft: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    before: str = ""


def ask_for_text(model: Any, prompt: Sequence[int]) -> tuple[Sequence[int], Logits]:  # noqa: ANN401
    """Give a prompt as a model of text takes it, and what gives the logits of tokens."""
    return prompt, lambda tokens: model(tokens, use_cache=False).logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One model under test.

    Its checkpoint:

    - `config`: config.json of a tiny checkpoint.
    - `weights`: draws the weights of a configuration, the same from a seed on every run: name to float32 tensor.
    - `seed`: one with which no greedy step of the tests is nearly a tie: rounding must not turn it; see `seeds.py`.
    - `trained`: the folder of a trained checkpoint, in place of `weights`; `added`: what it lacks for a configuration.
    - `widen`: doubles the width of the heads of a checkpoint of `trained`'s, in its folder, without changing an answer;
      FlashInfer has no kernels for heads as narrow as those of a tiny model.
    - `sets`: changes to config.json that switch parts of the model on and off, by what they are, the whole model last;
      None removes a key.
    - `unused`: parts of the names of tensors that a configuration does not need.

    Its reference model, in plain Transformers:

    - `load`: loads a checkpoint in a dtype; `ask`: puts a prompt to it.
    - `draft`: loads its draft beside it from a checkpoint; that and the model are used as `steps_with_drafts` does.
    - `vector`: of one that generates no text: gives the vector of a prompt, its embedding or its scores.
    - `pictures`: whether its prompts may have pictures, whose files `ask` takes as well; `right`: the least share of
      questions about held-out pictures that it answers as they should be.

    What the generic tests need to know:

    - `ours`: whether it is a model of the overlay, not one of upstream's beside which these are tested.
    - `upstream`: the model of upstream's that reads the same checkpoints, but for the extensions: its case.
    - `state`: whether it has a state beside its KV cache, kept for some lengths of a prompt only.
    - `served`: the set with which it is asked over HTTP, empty for none.
    - `servers`: the kinds of servers that it is tested on, of test_servers.py; `two ranks, SET` for a set of `sets`.
    - `distinct`: the least number of different answers to 80 prompts; `accepted`: of tokens a step with drafts; `nats`:
      the range of the mean logprob of held-out text; `sums`: the sums over two ranks in a step.
    - `updates`: the weights that are updated while it serves, the draft's last.
    - `lora`: the modules of a layer that an adapter may change, by the ends of their names.
    - `written`: makes its config.json of what a version of transformers writes for each of its models.
    - `faults`: broken checkpoints.
    - `decisions`: see there.
    """

    config: Config
    load: Callable[[Path, torch.dtype], Any]
    weights: Callable[[Config, int], dict[str, torch.Tensor]] | None = None
    seed: int = 0
    trained: Path | None = None
    added: Callable[[Config], dict[str, torch.Tensor]] = lambda config: {}
    widen: Callable[[Path], None] | None = None
    sets: Mapping[str, Config] = field(default_factory=lambda: {"": {}})
    unused: Callable[[Config], list[str]] = lambda config: []
    ask: Callable[..., tuple[Sequence[int], Logits]] = ask_for_text
    draft: Callable[[Any, Path], Any] | None = None
    vector: Callable[[Any, Sequence[int]], torch.Tensor] | None = None
    pictures: bool = False
    right: float = 0.0
    ours: bool = True
    upstream: str = ""
    state: bool = False
    served: str = ""
    servers: Sequence[str] = ()
    distinct: int = 2
    accepted: float = 1.0
    nats: tuple[float, float] = (0.0, float("inf"))
    sums: int = 0
    updates: Sequence[str] = ()
    lora: Sequence[str] = ()
    written: Callable[[Mapping[str, Config]], dict[str, Any]] | None = None
    faults: Mapping[str, Fault] = field(default_factory=dict)
    decisions: Decisions | None = None

    @property
    def architecture(self) -> str:
        """Give the name by which config.json asks for the model."""
        return str(self.config["architectures"][0])


@functools.cache
def cases() -> dict[str, Case]:
    """Find all cases of this release, by the names of their folders with hyphens, in their order."""
    names = [name for name in _folders() if name not in left_out()]
    return {name.replace("_", "-"): importlib.import_module(f"models.{name}.case").CASE for name in names}


@functools.cache
def left_out() -> dict[str, str]:
    """Say of each model's folder that has no case in this release why: the release is built without the model."""
    project, release = load_project(ROOT), Version(version("sglang")).public
    rows = {name: f"sglang/srt/overlay_models/{name}.py" for name in _folders()}
    return {
        name: f"[tool.sglang-overlay.files] keeps {row} from sglang {release}"
        for name, row in rows.items()
        if not project.takes(release, row)
    }


def _folders() -> list[str]:
    return sorted(path.parent.name for path in FOLDER.glob("*/case.py"))


def with_transformers(model: type[PreTrainedModel]) -> Callable[[Path, torch.dtype], Any]:
    """Make a `load` of a class of transformers', or of one derived from it, whatever `model_type` config.json has.

    It raises ValueError unless the checkpoint's tensors are the model's.
    """

    def load(folder: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401
        config = configuration(model, read_config(folder))
        made, found = model.from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
        require_all(folder, found)
        return made

    return load


def usual_faults(module: str, keys: Config | None = None) -> dict[str, Fault]:
    """Give the faults that any model with a checkpoint of its own can have.

    - `module`: the model's, named as below `sglang.srt`; `keys`: of config.json, with values that are wrong.
    """
    unknown = {"hidden_sizes": 64}

    def break_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        first, *_, last = sorted(tensors)
        wrong = {first: torch.zeros(3, 5), "model.extra.weight": torch.zeros(2)}
        return {name: tensor for name, tensor in tensors.items() if name != last} | wrong

    return {
        "import": Fault(
            broken_import=module, said=["OverlayError: .*cannot import", "no such thing as a broken depend"]
        ),
        "tensors": Fault(
            tensors=break_tensors,
            said=[r": missing", r"model\.extra\.weight.*: (not a tensor|there twice)", r"its shape is \(3, 5\)"],
        ),
        "configuration": Fault(
            changes={**unknown, **(keys or {})},
            said=[rf"config\.json: {key} " for key in {**unknown, **(keys or {})}],
        ),
    }


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json."""
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def make_checkpoint(name: str, out: Path, changes: Config | None = None, seed: int | None = None) -> None:
    """Write a checkpoint of a case into the folder `out`; `changes` are applied to config.json, None removes a key.

    Random weights are drawn from `seed`, or else from the case's own.
    """
    case = cases()[name]
    config = changed(case.config, changes or {})
    if case.weights is not None:
        write_checkpoint(out, config, case.weights(config, case.seed if seed is None else seed))
        return
    assert case.trained is not None
    shutil.copytree(case.trained, out, dirs_exist_ok=True)
    write_config(out, config)
    unused, added = case.unused(config), case.added(config)

    def fitting(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {k: v for k, v in tensors.items() if not any(part in k for part in unused)}
        kept |= added  # to the first shard
        added.clear()
        return kept

    change_tensors(out, fitting)
