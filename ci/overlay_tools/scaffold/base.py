"""What a new model derives from: upstream's class, Transformers' configuration, and how the two differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlay_tools import console
from overlay_tools.api_check.registered_names import MODELS, REGISTERING, entry_classes, registered_names
from overlay_tools.errors import UsageError
from overlay_tools.scaffold.describe_base import reads
from overlay_tools.settings import Project, cache_dir
from overlay_tools.subprocesses import run
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.upstream.source_tree import SourceTree, module_name, open_source_tree, parse
from overlay_tools.user_files import read_data

# What a tiny model has of each key that its configuration has, beside COMMON of tests/reference/checkpoints.py.
_TINY: Mapping[str, Any] = {
    "decoder_sparse_step": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "query_pre_attn_scalar": 32,
    "routed_scaling_factor": 1.0,
    "shared_expert_intermediate_size": 64,
    "topk_group": 1,
    "v_head_dim": 32,
}
_RULES = "sglang/srt/configs/config_keys.py"
_OF_COMMON = ("attention_bias", "head_dim", "hidden_act", "intermediate_size", "num_key_value_heads", "rms_norm_eps")
# Sizes that follow from others where upstream does not read them.
_SIZES = ("head_dim", "num_key_value_heads", "num_nextn_predict_layers", "qk_head_dim")
_MIXED = 3  # layers, where all are alike


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A model of upstream's that Transformers has as well.

    - `architecture`, and the `module` of upstream's that has it; `absent`: the locked releases that do not.
    - `config`: Transformers' configuration class.
    - `backbone`, `classifier`: Transformers' classes without a head, and with one that scores; the last may be absent.
    - `more`: the keys that both read although Transformers' class does not list them.
    - `fixed`: the keys that upstream's model does not read although Transformers' does, with their only values.
    - `layer_kinds`: what `layer_types` may hold, if upstream's model does not read it.
    - `tiny`: the keys of a tiny configuration, None where the common one has a key too many.
    """

    architecture: str
    module: str
    absent: tuple[str, ...]
    config: str
    backbone: str
    classifier: str | None
    more: tuple[str, ...]
    fixed: Mapping[str, tuple[Any, ...]]
    layer_kinds: tuple[str, ...]
    tiny: Mapping[str, Any]


def find_base(project: Project, architecture: str, name: str, served: str, python: Path) -> Base:
    """Find the base of a model in every locked release, and in the Transformers of the default one.

    Parameters: `name`, of the new model's files and its model_type, and `served`, its architecture; `python`, the
    interpreter of the default release's engine environment.
    Raises UsageError if either has no model of the base's architecture, or has a name of the new model's.
    """
    lock = load_lock(project.lock)
    modules: dict[str, str] = {}
    upstream_reads: set[str] = set()
    taken: list[str] = []
    with console.step(f"Look for {architecture} in the locked releases"):
        for version, release in lock.items():
            with open_source_tree(release, cache_dir()) as sources:
                taken += _taken(sources, name, served)
                if (path := _file_of(sources, architecture)) is None:
                    continue
                modules[version] = module_name(path)
                if version == project.default:
                    upstream_reads = _reads_of(sources, path, set())
    for file in sorted((project.overlay / MODELS).glob("*.py")):
        if served in entry_classes(parse(read_data(file), str(file))):
            taken.append(f"{file} has the architecture {served}.")
    if taken:
        raise UsageError(*taken, hint="Take another name.")
    if project.default not in modules:
        raise UsageError(
            f"sglang {project.default} has no model {architecture} in {MODELS}.",
            hint="Name the architecture as upstream does in the EntryClass of one of its models.",
        )
    with console.step(f"Ask its Transformers about {architecture}"):
        script = Path(__file__).with_name("describe_base.py")
        rules = project.overlay / _RULES
        described = json.loads(run([python, "-IW", "ignore", script, architecture, name, rules]).stdout)
    if described["taken"]:
        raise UsageError(
            f"transformers {described['transformers']}, which sglang {project.default} has, has a model_type {name}.",
            hint="Take another name.",
        )
    if "config" not in described:
        raise UsageError(
            f"transformers {described['transformers']}, which sglang {project.default} has, has no language model"
            f" {architecture}: there is nothing to compare a model with.",
            hint="Take a base that Transformers has as well, or write the model by hand, as overlay/README.md says.",
        )
    return _base(
        architecture,
        modules[project.default],
        tuple(version for version in lock if version not in modules),
        described,
        upstream_reads,
    )


def _taken(sources: SourceTree, name: str, served: str) -> Iterator[str]:
    """Yield which names of a new model a release has."""
    for path in (f"sglang/srt/{folder}/{name}.py" for folder in ("models", "configs")):
        if sources.read(path) is not None:
            yield f"sglang {sources.version} has a {path}."
    for path in sources.holding(name, served):
        for line, kind, taken in registered_names(path, sources.tree(path)) if path.startswith(REGISTERING) else ():
            if (kind, taken) in (("architecture", served), ("model_type", name)):
                yield f"sglang {sources.version} has the {kind} {taken} ({path}:{line})."


def _file_of(sources: SourceTree, architecture: str) -> str | None:
    """Return the file of upstream's models that lists an architecture."""
    held = [name for name in sources.holding(architecture) if name.startswith(MODELS)]
    return next((name for name in held if architecture in entry_classes(sources.tree(name))), None)


def _reads_of(sources: SourceTree, path: str, seen: set[str]) -> set[str]:
    """Return the keys of its configuration that a model reads, those of models that it imports from included."""
    data = sources.read(path)
    if data is None or path in seen:
        return set()
    seen.add(path)
    text = data.decode("utf-8", "replace")
    found = reads(text)
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["from"] and words[1].startswith("sglang.srt.models."):
            found |= _reads_of(sources, f"{words[1].replace('.', '/')}.py", seen)
    return found


def _base(
    architecture: str, module: str, absent: tuple[str, ...], described: Mapping[str, Any], upstream_reads: set[str]
) -> Base:
    defaults = described["defaults"]
    spellings = {key: [key] for key in defaults}  # as upstream reads a key, and as Transformers writes it
    for alias, key in described["aliases"].items():
        spellings.get(key, []).append(alias)
    read = {key: [name for name in names if name in upstream_reads] for key, names in spellings.items()}
    spelled = {name for names in spellings.values() for name in names}
    more = sorted({*described["more"]} & upstream_reads - spelled)
    ignored = [key for key in defaults if not read[key] and key not in _SIZES]
    tiny: dict[str, Any] = {key: None for key in _OF_COMMON if key not in {*defaults, *more}}
    for key, names in read.items():
        values = [_TINY[name] for name in (*names, *spellings[key]) if name in _TINY]
        if values:
            tiny[names[0] if names else key] = values[0]
    fixed = {key: (defaults[key],) for key in ignored if key != "layer_types"}
    if described["tied"]:  # upstream's models that have no other head drop that of a checkpoint
        fixed["tie_word_embeddings"], tiny["tie_word_embeddings"] = (True,), True
    kinds = defaults.get("layer_types") or []
    return Base(
        architecture=architecture,
        module=module,
        absent=absent,
        config=described["config"],
        backbone=described["backbone"],
        classifier=described["classifier"],
        more=tuple(more),
        fixed=fixed,
        layer_kinds=("full_attention",) if "layer_types" in ignored else (),
        tiny={"num_hidden_layers": max([_MIXED, *(kinds.index(kind) + 1 for kind in set(kinds))]), **tiny},
    )
