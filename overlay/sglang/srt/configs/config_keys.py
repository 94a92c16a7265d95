"""What config.json may say to a model of the overlay: each key is read, changes nothing, or is an error.

What all models share is here. A model may have a file of its own beside this one, NAME_keys.py, with its `KEYS`, a
`check` and a `settle`.

A server asks before it reads a checkpoint's weights, and `adopt` before it writes a config.json. So this imports
neither torch nor transformers. A `check_*` function gives one problem for each key that it finds fault with.
"""

import difflib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]

# Keys that no model of the overlay reads, by what they are about. Those that begin with "_" are transformers' own.
WITHOUT_EFFECT: Mapping[str, Collection[str]] = {
    "training": (
        "attention_dropout", "initializer_range", "output_router_logits", "pretraining_tp", "router_aux_loss_coef",
        "use_cache",
    ),
    "what transformers returns, and how": (
        "attn_implementation", "chunk_size_feed_forward", "experts_implementation", "output_attentions",
        "output_hidden_states", "return_dict", "tf_legacy_loss", "tie_last_hidden_states", "torchscript",
        "use_bfloat16",
    ),
    "classification": ("finetuning_task", "id2label", "label2id", "num_labels", "problem_type"),
    "generation, which goes by generation_config.json and by requests": (
        "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample",
        "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size",
        "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "prefix", "remove_invalid_values",
        "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "task_specific_params", "temperature",
        "top_k", "top_p", "typical_p",
    ),
    "other programs": (
        "auto_map", "is_decoder", "name_or_path", "tokenizer_class", "transformers.js_config", "transformers_version",
        "unk_token_id", "unsloth_fixed", "unsloth_version",
    ),
    "the window of other Qwen models, which `use_sliding_window` would switch on": (
        "max_window_layers", "sliding_window",
    ),
}  # fmt: skip
_WITHOUT_EFFECT = frozenset(key for keys in WITHOUT_EFFECT.values() for key in keys)

# Keys that every model reads, or upstream reads for it.
_READ = (
    "architectures", "bos_token_id", "compression_config", "dtype", "eos_token_id", "model_type",
    "overlay_architecture", "pad_token_id", "quantization_config", "sep_token_id", "tie_word_embeddings", "torch_dtype",
)  # fmt: skip
# What several kinds of models read.
ROPE = ("partial_rotary_factor", "rope_parameters", "rope_scaling", "rope_theta")
SIZES = (
    "head_dim", "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "vocab_size",
)  # fmt: skip
LOGITS = ("final_logit_softcapping", "logit_softcap", "logit_transform")

# Keys that may be null, as if they were left out.
_NULLABLE = frozenset({*_READ, *ROPE}) - {"tie_word_embeddings"}

# Keys that may differ between two checkpoints of one model: how it is called, what its tensors say themselves, and
# tokens that the engine does not ask for.
_OF_CHECKPOINT = frozenset(
    ("architectures", "bos_token_id", "dtype", "model_type", "pad_token_id", "sep_token_id", "torch_dtype")
)

# Keys with one value that the models have. Another one would be another model.
_FIXED: Mapping[str, Collection[Any]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "per_layer_config": (None,),
    "pruned_heads": (None, {}),
    "tie_encoder_decoder": (False,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """The keys of one kind of configuration beside those of every kind.

    - `read`: of any value.
    - `sizes`: read too; whole numbers above 0.
    - `numbers`: read too; finite numbers.
    - `nullable`: those of the three that may be null, as if they were left out.
    - `fixed`: those that may have the listed values only.
    - `parts`: keys of objects that have keys of their own.
    """

    read: Collection[str] = ()
    sizes: Collection[str] = ()
    numbers: Collection[str] = ()
    nullable: Collection[str] = ()
    fixed: Mapping[str, Collection[Any]] = field(default_factory=dict)
    parts: Mapping[str, "Keys"] = field(default_factory=dict)


def key_problems(config: Config, keys: Keys) -> list[str]:
    """Name each key that is unknown, or whose value the model cannot have, whatever the other keys say."""
    fixed, known, nullable = {**_FIXED, **keys.fixed}, _known(keys), {*_NULLABLE, *keys.nullable}
    problems = []
    for key, value in config.items():
        if key in fixed:
            if value not in fixed[key]:
                problems.append(f"{key} must be {' or '.join(map(json.dumps, fixed[key]))}, not {json.dumps(value)}")
        elif key in keys.sizes:
            if not is_count(value, 1) and not (value is None and key in nullable):
                problems.append(f"{key} must be a whole number from 1 on, not {value!r}")
        elif key in keys.numbers:
            if not is_number(value) and not (value is None and key in nullable):
                problems.append(f"{key} must be a finite number, not {value!r}")
        elif key not in known:
            if value is not None and key not in _WITHOUT_EFFECT and not key.startswith("_"):
                home = next((part for part in keys.parts if key in _known(keys.parts[part])), None)
                hint = nearest(key, known) if home is None else f"; it belongs in {home}"
                problems.append(f"{key} is not a key of this model{hint}")
        elif value is None and key not in nullable:
            problems.append(f"{key} must not be null")
    return problems


def _known(keys: Keys) -> frozenset[str]:
    return frozenset((*_READ, *_FIXED, *keys.read, *keys.sizes, *keys.numbers, *keys.fixed, *keys.parts))


def differences(served: Any, other: Any) -> list[str]:
    """Name each key with an effect that has not the same value in two configuration objects of one class."""
    ours, others = _effects(served), _effects(other)
    return [
        f"{key} is {others.get(key)!r}, and the model is served with {ours.get(key)!r}"
        for key in sorted(ours.keys() | others.keys())
        if ours.get(key) != others.get(key)
    ]


def _effects(config: Any) -> dict[str, Any]:
    """Give the keys of a configuration object that have an effect, also those of its parts."""
    keys = getattr(type(config), "own", None) or getattr(type(config), "known_keys", Keys())
    inert = (_WITHOUT_EFFECT | _OF_CHECKPOINT) - {*keys.read, *keys.sizes, *keys.numbers, *keys.fixed}
    if getattr(config, "use_sliding_window", True):  # a model without this key may have windows always
        inert -= {"max_window_layers", "sliding_window"}
    effects = {}
    for key, value in config.to_dict().items():
        part = getattr(config, key, None)
        if hasattr(part, "to_dict"):
            effects |= {f"{key}.{name}": of_part for name, of_part in _effects(part).items()}
        elif key not in inert and not key.startswith("_"):
            effects[key] = value
    if hasattr(config, "layers_block_type"):  # a file may list the layers, or say how often one kind comes
        effects.pop("full_attention_interval", None)
        effects["layer_types"] = config.layers_block_type
    return effects


def is_of_every_model(key: str) -> bool:
    """Tell whether a key means the same to every model, or nothing to any."""
    return key in _known(Keys(read=ROPE)) | _WITHOUT_EFFECT or key.startswith("_")


def nearest(key: str, known: Iterable[str]) -> str:
    """Suggest the known key that looks most like another one, if one does."""
    found = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else "; take it out if it says nothing about the model"


def logit_problems(config: Config) -> list[str]:
    """Check the transform of the logits."""
    kind, cap = config.get("logit_transform", "none"), config.get("logit_softcap")
    if kind not in ("none", "softcap", "sqrt_positive"):
        return [f"logit_transform must be 'none', 'softcap' or 'sqrt_positive', not {kind!r}"]
    if kind != "none" and config.get("final_logit_softcapping") is not None:
        return ["final_logit_softcapping (upstream's own cap) excludes logit_transform; drop one"]
    if kind == "softcap":
        return [] if is_number(cap) and cap > 0 else [f"logit_softcap must be a finite number above 0, not {cap!r}"]
    return [f"logit_softcap has no effect with logit_transform {kind!r}; drop one"] if cap is not None else []


# The kinds of rotary positions that the engine computes as transformers does, with their keys: those that each must
# have, and those that it may have.
_ROPE_TYPES: Mapping[str, tuple[Collection[str], Collection[str]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "high_freq_factor", "low_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        (
            "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
            "original_max_position_embeddings", "truncate",
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """The rotary positions of a model.

    - `theta`: the base.
    - `partial`: the part of each head that is rotated.
    - `scaling`: `rope_type` and its keys, as transformers names them; None for positions as they are.
    """

    theta: float
    partial: float
    scaling: Mapping[str, Any] | None

    def engines_scaling(self, max_position_embeddings: int, latent: bool = False) -> dict[str, Any] | None:
        """Give `scaling` as upstream's get_rope reads it in every release, for a model of that many positions.

        For YaRN, get_rope knows `attn_factor`, by which it multiplies what it computes from `factor`, and not
        `attention_factor`, which stands for both. The result has the two. With `latent` attention, upstream computes it
        from `mscale` and `mscale_all_dim`, of which the second also scales the scores: both stay as they are.
        """
        if self.scaling is None:
            return None
        scaling = dict(self.scaling)
        if scaling["rope_type"] != "linear":
            scaling.setdefault("original_max_position_embeddings", max_position_embeddings)
        if scaling["rope_type"] == "yarn":
            magnitudes = [
                scaling.get(key) if latent else scaling.pop(key, None) for key in ("mscale", "mscale_all_dim")
            ]
            if all(magnitudes):
                first, second = (_yarn_magnitude(scaling["factor"], scale) for scale in magnitudes)
                scaling.setdefault("attention_factor", first / second)
            if latent:
                wanted = scaling.get("attention_factor", _yarn_magnitude(scaling["factor"]))
                first, second = (
                    _yarn_magnitude(scaling["factor"], default if scale is None else scale)
                    for scale, default in zip(magnitudes, (1.0, 0.0), strict=True)
                )
                scaling["attn_factor"] = wanted * second / first
            elif "attention_factor" in scaling:
                scaling["attn_factor"] = scaling["attention_factor"] / _yarn_magnitude(scaling["factor"])
        return scaling


def rope_of(config: Config, partial: float = 1.0) -> Rope:
    """Read the rotary positions of a config.json without problems; `partial` is that of a model without the key.

    Up to version 4, transformers writes `rope_theta`, `partial_rotary_factor` and `rope_scaling`; from 5 on,
    `rope_parameters` with all of them in it.
    """
    merged = {"rope_theta": config.get("rope_theta"), "partial_rotary_factor": config.get("partial_rotary_factor")}
    scaling: Mapping[str, Any] | None = None
    for form in ("rope_scaling", "rope_parameters"):
        found = _flat(config.get(form) or {})
        merged |= {key: found[key] for key in merged if found.get(key) is not None}
        rest = {k: v for k, v in found.items() if k not in (*merged, "attn_factor") and v is not None}
        if rest.get("rope_type", "default") != "default":
            scaling = rest
    theta, given = merged["rope_theta"], merged["partial_rotary_factor"]
    return Rope(theta=10000.0 if theta is None else theta, partial=partial if given is None else given, scaling=scaling)


def rope_problems(config: Config, whole: bool = False) -> list[str]:
    """Check the keys that `rope_of` reads, and that its two forms do not contradict each other.

    With `whole`, `partial_rotary_factor` must be 1.
    """
    problems = [
        f"{form} must be an object, not {config[form]!r}"
        for form in ("rope_scaling", "rope_parameters")
        if not isinstance(config.get(form) or {}, Mapping)
    ]
    if problems:
        return problems
    said: dict[str, tuple[str, Any]] = {}
    for prefix, keys in (
        ("", {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}),
        ("rope_scaling.", _flat(config.get("rope_scaling") or {})),
        ("rope_parameters.", _flat(config.get("rope_parameters") or {})),
    ):
        for key, value in keys.items():
            where, before = said.setdefault(key, (prefix + key, value))
            if before is None:
                said[key] = prefix + key, value
            elif value is not None and value != before:
                problems.append(f"{where} is {before!r}, and {prefix}{key} is {value!r}; drop one")
    if problems:
        return problems
    given = {key: value for key, (_, value) in said.items() if value is not None}
    return _rope_value_problems(given, {key: where for key, (where, _) in said.items()}, config, whole)


def _rope_value_problems(given: Config, where: Mapping[str, str], config: Config, whole: bool) -> list[str]:
    kind = given.get("rope_type", "default")
    if kind not in _ROPE_TYPES:
        return [
            f"{where['rope_type']} must be one of {', '.join(_ROPE_TYPES)}, not {kind!r}: others are not computed as"
            " transformers does"
        ]
    required, optional = _ROPE_TYPES[kind]
    known = {"rope_theta", "partial_rotary_factor", "rope_type", *required, *optional}
    problems = [f"rope_type {kind!r} needs {key}" for key in required if key not in given]
    for key in sorted(given.keys() & known - {"rope_type", "truncate"}):
        if not is_number(given[key]) or given[key] <= 0:
            problems.append(f"{where[key]} must be a number above 0, not {given[key]!r}")
    if problems:
        return problems
    if kind == "yarn" and "attn_factor" in given:  # what `engines_scaling` adds, or what transformers does not read
        others = {key: value for key, value in given.items() if key != "attn_factor"}
        computed = Rope(theta=1.0, partial=1.0, scaling=others).engines_scaling(0) or {}
        known |= {"attn_factor"} if given["attn_factor"] == computed.get("attn_factor") else set()
    problems = [
        f"{where[key]} has no meaning with rope_type {kind!r}{nearest(key, known)}" for key in given if key not in known
    ]
    partial, positions = given.get("partial_rotary_factor", 1.0), config.get("max_position_embeddings") or 0
    if partial > 1 or (whole and partial != 1):
        problems.append(f"{where['partial_rotary_factor']} must be {'1' if whole else 'at most 1'}, not {partial!r}")
    covered = given.get("original_max_position_embeddings", positions) * given.get("factor", 1)
    if kind == "yarn" and covered < positions:
        problems.append(
            f"max_position_embeddings ({positions}) is more than rope_type 'yarn' covers:"
            f" original_max_position_embeddings times factor, {covered:g}"
        )
    return problems


def lost_rope(config: object, said: Config) -> str | None:
    """Say what a configuration object of upstream's lacks of a config.json whose `rope_parameters` it does not read."""
    part, parameters = said.get("text_config"), said.get("rope_parameters")
    if isinstance(part, Mapping) and (lost := lost_rope(getattr(config, "text_config", None), part)):
        return lost
    if not isinstance(parameters, Mapping):
        return None
    for key in ("rope_theta", "partial_rotary_factor"):
        used = getattr(config, key, None)
        if used is not None and parameters.get(key, used) != used:
            return f"config.json has rope_parameters.{key} {parameters[key]!r}, and this model uses {key} {used!r}"
    kind = parameters.get("rope_type", "default")
    if kind != "default" and hasattr(config, "rope_theta") and not getattr(config, "rope_scaling", None):
        return f"config.json has rope_parameters.rope_type {kind!r}, and this model uses no rope_scaling"
    return None


def refuse(problems: Iterable[str]) -> None:
    """Raise ValueError if there are problems of a config.json."""
    if lines := [f"config.json: {problem}" for problem in problems]:
        raise ValueError("\n".join(lines))


def settle_rope(config: Any, rope: Rope, latent: bool = False) -> None:
    """Let a configuration object say which rotary positions a model has, in the form that upstream reads.

    `latent` is that of `Rope.engines_scaling`.
    """
    config.rope_theta, config.partial_rotary_factor = rope.theta, rope.partial
    scaling = rope.engines_scaling(config.max_position_embeddings, latent)
    if hasattr(type(config), "rope_scaling"):  # transformers 5, where it is another name for rope_parameters
        if scaling is not None or config.rope_parameters is not None:
            config.rope_parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": rope.theta}
    else:
        config.rope_scaling = scaling
        vars(config).pop("rope_parameters", None)  # what the file had; some releases would go by it


def written(held: Config, keys: Keys) -> dict[str, Any]:
    """Give what a configuration object writes to config.json, of all that it holds: what its model reads.

    The model has its own name there, and rotary positions have the form that all versions of transformers read.
    """
    known = _known(keys) | _WITHOUT_EFFECT
    result = {key: value for key, value in held.items() if key in known or key.startswith("_")}
    if own := result.pop("overlay_architecture", None):
        result["architectures"] = [own]
    if "rope_scaling" in keys.read:
        result.pop("rope_parameters", None)
        result["rope_scaling"] = rope_of(held).scaling
    return result


def _flat(parameters: Config) -> dict[str, Any]:
    """Give the keys of rope_scaling or rope_parameters, with "rope_type" by that name if it is by its old one."""
    flat = dict(parameters)
    if "type" in flat and flat.setdefault("rope_type", flat["type"]) == flat["type"]:
        del flat["type"]
    return flat


def _yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def is_count(value: object, least: int) -> bool:
    """Tell whether a value is a whole number from `least` on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
