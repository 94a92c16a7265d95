"""Configurations of Transformers' under a name of the overlay's, whose keys are checked all the same."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from sglang.srt.configs.config_keys import (
    ROPE,
    SIZES,
    Config,
    Keys,
    key_problems,
    refuse,
    rope_of,
    rope_problems,
    settle_rope,
    written,
)
from sglang.srt.overlay_registry import alias
from transformers import PretrainedConfig


class OwnConstructor:
    """Lets a configuration class keep its constructor in classes that derive from it.

    Transformers 5 gives each of these that has none another one, which calls no constructor at all.
    """

    def __init_subclass__(cls, **kwargs) -> None:
        own = "__init__" in vars(cls)
        super().__init_subclass__(**kwargs)
        if not own and "__init__" in vars(cls):
            del cls.__init__


_LOCAL = "rope_local_base_freq"  # in transformers 4, the base of layers with a window, where a model has two


class DerivedConfig(PretrainedConfig):
    """Stands before a configuration class of Transformers' in a class that has a `model_type` of its own.

    A key of config.json is one that Transformers' class has, or one of `own`, and becomes an attribute.

    - `own`: the keys that the class adds, and in `fixed` those of Transformers' that upstream's model does not read,
      with the only values that it has.
    - `layer_kinds`: what `layer_types` may hold, if upstream's model does not read it.
    """

    own: ClassVar[Keys] = Keys()
    layer_kinds: ClassVar[Collection[str]] = ()

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)  # transformers 5 gives each class a constructor of its own here
        upstreams = cls.__init__

        @functools.wraps(upstreams)
        def construct(self, **said) -> None:
            upstreams(self, **said)
            alias(self)

        cls.__init__ = construct

    @classmethod
    def defaults(cls) -> PretrainedConfig:
        """Make Transformers' own configuration, as it is where config.json says nothing."""
        return next(base for base in cls.__mro__ if not issubclass(base, DerivedConfig) and base.model_type)()

    @classmethod
    def known_keys(cls) -> Keys:
        """List the keys of config.json: Transformers' and the class's own."""
        defaults = cls.defaults()
        names = defaults.to_dict()
        names |= {alias: names.get(name) for alias, name in defaults.attribute_map.items()}
        names |= {name: names.get(alias) for alias, name in defaults.attribute_map.items() if name not in names}
        sizes = {name for name, value in names.items() if name in SIZES or (is_size(name) and value != 0)}
        rope = (*ROPE, _LOCAL) if rope_bases(defaults) else ()
        optional = [name for name, value in names.items() if value is None or name not in sizes]
        return Keys(
            read=(*names, *rope, *cls.own.read),
            sizes=(*sizes, *cls.own.sizes),
            numbers=cls.own.numbers,
            nullable=(*optional, _LOCAL, *cls.own.nullable),
            fixed=cls.own.fixed,
            parts=cls.own.parts,
        )

    def to_dict(self) -> dict[str, Any]:
        """Give what `save_pretrained` writes: the model under its own name."""
        keys = self.known_keys()
        if set(rope_bases(self)) != {""}:  # it has one form alone, which is written as it is
            keys = replace(keys, read=[key for key in keys.read if key != "rope_scaling"])
        return written(super().to_dict(), keys)


def is_size(name: str) -> bool:
    """Tell whether the name of a key is that of a size, a whole number from 1 on."""
    return name.startswith("num_") or name.endswith(("_size", "_dim"))


def rope_bases(config: Any) -> dict[str, float]:
    """Give the bases of a configuration's rotary positions: under "", or by the kind of layer; empty without any."""
    parameters = getattr(config, "rope_parameters", None)
    if isinstance(parameters, Mapping):
        layered = {kind: value for kind, value in parameters.items() if isinstance(value, Mapping)}
        return {kind: value["rope_theta"] for kind, value in layered.items()} or {"": parameters["rope_theta"]}
    theta = getattr(config, "rope_theta", None)
    if theta is None:
        return {}
    local = getattr(config, _LOCAL, None)
    return {"": theta} if local is None else {"full_attention": theta, "sliding_attention": local}


def problems(cls: type[DerivedConfig], said: Config) -> list[str]:
    """Check a config.json for a configuration class."""
    if found := key_problems(said, cls.known_keys()):
        return found
    kinds = said.get("layer_types") or []
    if cls.layer_kinds and not set(kinds) <= set(cls.layer_kinds):
        return [f"layer_types may have {' and '.join(cls.layer_kinds)} alone, not {sorted(set(kinds))}"]
    defaults = cls.defaults()
    if set(rope_bases(defaults)) == {""}:
        found = rope_problems(said, whole=_partial(defaults) is None)
        return found or (_latent_problems(rope_of(said).scaling or {}) if _is_latent(defaults) else [])
    return _layered_problems(said) if rope_bases(defaults) else []


def settle(config: DerivedConfig, said: Config) -> None:
    """Let the configuration object say what config.json says, in both forms of rotary positions.

    Raises ValueError, naming the keys, at what the model does not have.
    """
    refuse(problems(type(config), said))
    defaults = config.defaults()
    bases = rope_bases(defaults)
    if set(bases) == {""}:
        theta = bases[""] if said.get("rope_theta") is None else said["rope_theta"]
        rope = rope_of({**said, "rope_theta": theta}, _partial(defaults) or 1.0)
        settle_rope(config, rope, latent=_is_latent(defaults))
    elif bases:
        _settle_layered(config, bases | _layered_bases(said))


def _is_latent(defaults: Any) -> bool:
    """Tell whether a model caches one latent vector a token in place of keys and values (arXiv:2405.04434, 2.1)."""
    return getattr(defaults, "kv_lora_rank", None) is not None


def _latent_problems(scaling: Mapping[str, Any]) -> list[str]:
    """Check the scaling of rotary positions, which upstream takes for YaRN as DeepSeek has it, whatever it is."""
    kind = scaling.get("rope_type", "yarn")
    if kind != "yarn":
        return [f"rope_type must be 'default' or 'yarn', not {kind!r}: the engine computes no other for this model"]
    return [] if scaling.get("truncate", True) else ["truncate must be true: the engine rounds the range of 'yarn'"]


def _partial(defaults: Any) -> float | None:
    """Give the part of each head that is rotated by default, None if a model rotates all of it always."""
    parameters = getattr(defaults, "rope_parameters", None) or {}
    return getattr(defaults, "partial_rotary_factor", None) or parameters.get("partial_rotary_factor")


def _layered_bases(said: Config) -> dict[str, float]:
    """Read the bases that config.json gives to each kind of layer, as transformers 4 or 5 writes them."""
    bases = {"full_attention": said.get("rope_theta"), "sliding_attention": said.get(_LOCAL)}
    for kind, parameters in (said.get("rope_parameters") or {}).items():
        if isinstance(parameters, Mapping):
            bases[kind] = parameters.get("rope_theta", bases.get(kind))
    return {kind: base for kind, base in bases.items() if base is not None}


def _layered_problems(said: Config) -> list[str]:
    """Check rotary positions with a base for each kind of layer; the engine computes no others for these models."""
    parameters = said.get("rope_parameters") or {}
    scalings = {f"rope_parameters.{kind}": value for kind, value in parameters.items() if isinstance(value, Mapping)}
    scalings["rope_scaling"] = said.get("rope_scaling") or {}
    found = []
    for place, scaling in scalings.items():
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default":
            found.append(
                f"{place}.rope_type must be 'default', not {kind!r}: the engine computes no other for this model"
            )
    for key, kind in (("rope_theta", "full_attention"), (_LOCAL, "sliding_attention")):
        base, other = said.get(key), (parameters.get(kind) or {}).get("rope_theta")
        if base is not None and other is not None and base != other:
            found.append(f"rope_parameters.{kind}.rope_theta is {other!r}, and {key} is {base!r}; drop one")
    return found


def _settle_layered(config: Any, bases: Mapping[str, float]) -> None:
    if hasattr(type(config), "rope_scaling") or isinstance(getattr(config, "rope_parameters", None), Mapping):
        config.rope_parameters = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()}
        # Upstream's Gemma3 of 0.5.12 and 0.5.13 asks for the factor of a linear scaling, whatever the type is.
        config.rope_parameters["full_attention"]["factor"] = 1.0
    config.rope_theta, config.rope_local_base_freq = bases["full_attention"], bases["sliding_attention"]
