"""The overlay's models, one row each, and the two functions that upstream's patched lines call.

To add a model, put its file under `srt/models/` and add one row to `MODELS`. Every server process imports this module
while upstream's configuration is still being set up, so it imports neither torch nor transformers itself.
"""

import importlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)


class OverlayError(RuntimeError):
    """Say why a model of the overlay cannot be registered or served."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlayModel:
    """Declare one model of the overlay.

    All but `base` and `multimodal` are written `package.module:name` and imported when first needed.

    - `model`: the class that serves the architecture of the same name.
    - `base`: the upstream architecture as which upstream's own lists (attention backends, caches, quantisation, draft
      models) are to treat this one. Its configuration class then calls `alias`. Leave it out when the implementation
      differs where such a list takes the base's implementation for granted.
    - `draft`: the class to load when the checkpoint is loaded as its own draft model.
    - `config`: the configuration class, when `model_type` is not one that transformers or upstream knows. It belongs to
      this model alone.
    - `settle`: a function that is given the model's configuration object, and config.json with the server's overrides.
      It raises ValueError at what config.json may not say, and lets the object say the rest as the model reads it.
    - `multimodal`: whether the architecture takes other inputs than text.
    - `on_install`: a function without arguments for anything else to be registered in every process.
    """

    model: str
    base: str | None = None
    draft: str | None = None
    config: str | None = None
    settle: str | None = None
    multimodal: bool = False
    on_install: str | None = None

    @property
    def architecture(self) -> str:
        """Give the name by which a checkpoint's config.json asks for this model."""
        return self.model.rpartition(":")[2]


MODELS: tuple[OverlayModel, ...] = (
    OverlayModel(
        model="sglang.srt.models.llama_logit_shaping:LlamaLogitShapingForCausalLM",
        settle="sglang.srt.configs.config_keys:settle_llama",
    ),
    OverlayModel(
        model="sglang.srt.models.qwen3_next_ext:Qwen3NextExtForCausalLM",
        base="Qwen3NextForCausalLM",
        draft="sglang.srt.models.qwen3_next_ext_mtp:Qwen3NextExtForCausalLMMTP",
        config="sglang.srt.configs.qwen3_next_ext:Qwen3NextExtConfig",
        settle="sglang.srt.configs.config_keys:settle_qwen3_next_ext",
    ),
    OverlayModel(
        model="sglang.srt.models.qwen3_next_ext_vl:Qwen3NextExtVLForConditionalGeneration",
        base="Qwen3NextForCausalLM",
        config="sglang.srt.configs.qwen3_next_ext_vl:Qwen3NextExtVLConfig",
        settle="sglang.srt.configs.config_keys:settle_qwen3_next_ext_vl",
        multimodal=True,
        on_install="sglang.srt.configs.qwen3_next_ext_vl:register_chat_template",
    ),
)


def alias(config: Any) -> None:
    """Show `config` to upstream as its base architecture and keep its own in `overlay_architecture`.

    Of a multimodal model both are shown, the base first: upstream's lists go by the first, but by any of them when it
    asks whether a model is multimodal and which processor is its own. So the base may be the text model's.

    The `__init__` of a configuration class whose row names a `base` ends with this call. The class says which model it
    is, whether `architectures` has the model's own name, its base's, or none. It changes nothing on a configuration
    that is aliased already (saved and read back, or copied), nor on one that is not ours.
    Raises OverlayError if `architectures` has the name of another model.
    """
    row = _row_of(config)
    if row is None or row.base is None:
        return
    named = getattr(config, "architectures", None) or []
    if not set(named) <= {row.architecture, row.base}:
        raise OverlayError(
            f"config.json: architectures is {named}, and model_type {config.model_type!r} is that of"
            f" {row.architecture}; name the one that it is"
        )
    config.overlay_architecture = row.architecture
    config.architectures = _shown(row)


def _shown(row: OverlayModel) -> list[str]:
    """List the architectures that upstream sees of a model with a base."""
    return [str(row.base), row.architecture] if row.multimodal else [str(row.base)]


def install(multimodal_model_archs: list[str]) -> None:
    """Make upstream know the configurations and multimodal architectures of all rows, and run their `on_install`.

    Called at the end of `srt/configs/model_config.py`, which hands over its own list to be extended.
    Raises OverlayError when a row takes a model type or an architecture that is already taken, or names what cannot
    be imported.
    """
    for row in _BY_ARCHITECTURE.values():
        if row.config is not None:
            _register_config(row.architecture, _load(row.architecture, row.config))
        if row.multimodal:
            if row.architecture in multimodal_model_archs:
                raise OverlayError(f"{row.architecture}: upstream has a multimodal architecture of this name")
            multimodal_model_archs.append(row.architecture)
        if row.on_install is not None:
            _load(row.architecture, row.on_install)()


def resolve_model(model_config: Any) -> tuple[type, str] | None:
    """Find the class and the architecture that serve `model_config`, or None when the model is upstream's.

    Called at the head of `get_model_architecture` in `srt/model_loader/utils.py`, before weights are read. For an
    architecture that its registry lacks, upstream logs a line and goes on with the Transformers backend, which knows
    nothing of the overlay: the answers would be those of another model.

    Raises OverlayError when the class cannot be imported (with that error as the cause), is not the one that
    upstream's registry holds, is not what the server's arguments ask for, or config.json has a key that would be lost.
    """
    row = _row_of(model_config.hf_config)
    if row is None:
        _check_upstreams(model_config)
        return None
    _check_arguments(row, model_config)
    if row.settle is not None:
        _settle(row, row.settle, model_config)
    reference = row.draft if row.draft is not None and model_config.is_draft_model else row.model
    architecture = reference.rpartition(":")[2]
    # The row's module comes before the registry, which imports every module and keeps no errors: the second import of
    # a broken module may fail for another reason than the first.
    found: type = _load(row.architecture, reference)
    registered = _registered_classes().get(architecture)
    module = reference.partition(":")[0]
    if registered is not found or found.__module__ != module:
        holder = "nothing" if registered is None else f"the class of {registered.__module__}"
        raise OverlayError(
            f"{architecture}: upstream's model registry holds {holder} under this name, not a class of {module}."
            " Either that module does not define it and list it in EntryClass, or SGLANG_DISABLED_MODEL_ARCHS"
            " or SGLANG_EXTERNAL_MODEL_PACKAGE leaves it out or replaces it"
        )
    return found, architecture


def _check_arguments(row: OverlayModel, model_config: Any) -> None:
    """Raise OverlayError when the server's arguments ask for what a model is not."""
    name, config = row.architecture, model_config.hf_config
    implementation = getattr(model_config.model_impl, "value", model_config.model_impl)
    if implementation not in ("auto", "sglang"):
        raise OverlayError(f"{name} has no {implementation} implementation; leave --model-impl out")
    if model_config.is_draft_model and row.draft is None:
        raise OverlayError(f"{name} has no draft model; leave --speculative-algorithm out")
    if not model_config.is_generation:
        raise OverlayError(f"{name} generates text and has no embeddings; leave --is-embedding out")
    if row.config is not None and _reference_to(type(config)) != row.config:
        wanted = _load(name, row.config).model_type
        raise OverlayError(
            f"{name} needs model_type {wanted!r}, and config.json has {config.model_type!r}; adopt the checkpoint, or"
            " take the architecture out of config.json and --json-model-override-args"
        )
    # Upstream renames the base of a draft.
    if row.base is not None and not model_config.is_draft_model and config.architectures != _shown(row):
        raise OverlayError(
            f"config.json is that of {name}, and --json-model-override-args changes its architectures to"
            f" {config.architectures}; leave them out"
        )


def _settle(row: OverlayModel, reference: str, model_config: Any) -> None:
    said = _said(model_config)
    if said is None:
        _log.warning("%s: there is no config.json whose keys could be checked", row.architecture)
        return
    try:
        _load(row.architecture, reference)(model_config.hf_config, said)
    except ValueError as error:
        raise OverlayError(str(error)) from error


def _check_upstreams(model_config: Any) -> None:
    """Say what a model of upstream's would lose of its config.json.

    Raises OverlayError where that is certain: upstream's model is the base of ours, or config.json has keys of ours.
    """
    from sglang.srt.configs.config_keys import extensions_of, lost_rope

    config = model_config.hf_config
    names = getattr(config, "architectures", None) or []
    if keys := extensions_of(config):
        ours = ", ".join(sorted(_BY_ARCHITECTURE))
        raise OverlayError(
            f"config.json has {', '.join(keys)}, and architectures {names}, which is upstream's and ignores it;"
            f" name the model of the overlay ({ours})"
        )
    if lost := lost_rope(config, _said(model_config) or {}):
        if any(name.startswith(str(row.base)) for name in names for row in _BY_ARCHITECTURE.values()):
            raise OverlayError(
                f"{lost}; write rope_theta, partial_rotary_factor and rope_scaling beside rope_parameters"
            )
        _log.warning("%s; if that is wrong, write rope_theta and rope_scaling beside rope_parameters", lost)


def _said(model_config: Any) -> dict[str, Any] | None:
    """Read config.json anew, with the server's overrides, or give None where the configuration is from elsewhere."""
    from transformers import PretrainedConfig

    try:
        said, _ = PretrainedConfig.get_config_dict(model_config.model_path, revision=model_config.revision)
    except (OSError, ValueError):
        return None
    for key, value in model_config.model_override_args.items():
        nested = isinstance(value, dict) and isinstance(said.get(key), dict)
        said[key] = {**said[key], **value} if nested else value
    return dict(said)


def _row_of(config: Any) -> OverlayModel | None:
    """Find the row of a Hugging Face configuration: by its class, or else by the architecture that it names."""
    for row in _BY_ARCHITECTURE.values():
        if row.config is not None and row.config == _reference_to(type(config)):
            return row
    own = getattr(config, "overlay_architecture", None)
    for name in [own] if own is not None else getattr(config, "architectures", None) or []:
        if name in _BY_ARCHITECTURE:
            return _BY_ARCHITECTURE[name]
    if own is not None:
        raise OverlayError(f"{own}: no row of the overlay has this architecture; it has {sorted(_BY_ARCHITECTURE)}")
    return None


def _reference_to(cls: type) -> str:
    return f"{cls.__module__}:{cls.__name__}"


def _load(architecture: str, reference: str) -> Any:
    """Import what `reference` (`package.module:name`) points at, for `architecture`."""
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may fail in any way while it is imported
        raise OverlayError(f"{architecture}: cannot import {reference}: {type(error).__name__}: {error}") from error


def _register_config(architecture: str, config: Any) -> None:
    """Register a configuration class with AutoConfig, unless another class has its model type."""
    from transformers import CONFIG_MAPPING, AutoConfig

    name = config.model_type
    if name in CONFIG_MAPPING and (taken := CONFIG_MAPPING[name]) is not config:
        raise OverlayError(
            f"{architecture}: model_type {name!r} is that of {taken.__module__}.{taken.__name__} already"
        )
    AutoConfig.register(name, config, exist_ok=True)


def _registered_classes() -> Mapping[str, Any]:
    """Give the classes of upstream's model registry by architecture."""
    try:
        from sglang.srt.models.registry import ModelRegistry
    except AssertionError as error:  # so upstream reports two classes of one name
        raise OverlayError(f"an overlay model has the name of one of upstream's: {error}") from error
    ModelRegistry.get_supported_archs()  # some releases import their own models only when they are asked for
    return ModelRegistry.models  # type: ignore[no-any-return]


def _by_architecture(rows: Iterable[OverlayModel]) -> Mapping[str, OverlayModel]:
    """Index the rows by architecture. Raises OverlayError on two rows for one, or one that is its own base."""
    table = {}
    for row in rows:
        if row.architecture in table:
            raise OverlayError(f"{row.architecture}: two rows of the overlay declare this architecture")
        if row.architecture == row.base:
            raise OverlayError(f"{row.architecture}: a model of the overlay cannot be its own base")
        table[row.architecture] = row
    return table


_BY_ARCHITECTURE = _by_architecture(MODELS)
