"""What upstream's patched lines call, for the models that `overlay_models/` declares.

Every server process imports this module while upstream's configuration is still being set up, so it imports neither
torch nor transformers itself.
"""

import copy
import importlib
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sglang.srt.overlay_claims import claim, is_anothers
from sglang.srt.overlay_defaults import add_names, set_defaults
from sglang.srt.overlay_models import OverlayError, OverlayModel, read_rows

_log = logging.getLogger(__name__)


MODELS = read_rows()


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


def claim_architectures() -> None:
    """Take the architectures of all rows for this overlay.

    Raises OverlayError, with both overlays, if another one of this process has one of them.
    """
    references = [reference for row in _BY_ARCHITECTURE.values() for reference in (row.model, row.draft) if reference]
    claim("architecture", *(reference.rpartition(":")[2] for reference in references))


def install(multimodal_model_archs: list[str]) -> None:
    """Make upstream know the configurations and multimodal architectures of all rows, and run their `on_install`.

    Called at the end of `srt/configs/model_config.py`, which hands over its own list to be extended.
    Raises OverlayError when a row takes a model type or an architecture that is already taken, by upstream or another
    overlay, or names what cannot be imported.
    """
    claim_architectures()
    for row in _BY_ARCHITECTURE.values():
        if row.config is not None:
            _register_config(row.architecture, _load(row.architecture, row.config))
        if row.multimodal:
            if row.architecture in multimodal_model_archs:
                raise OverlayError(f"{row.architecture}: upstream has a multimodal architecture of this name")
            multimodal_model_archs.append(row.architecture)
        add_names(row, partial(_load, row.architecture))
        if row.on_install is not None:
            _load(row.architecture, row.on_install)()


def default_arguments(server_args: Any) -> None:
    """Let the row of the model that is to be served say what the server's user does not.

    Called in `srt/server_args.py`, before upstream resolves any argument.
    Raises OverlayError when this release has no such argument or parser.
    """
    rows = [row for row in _BY_ARCHITECTURE.values() if row.has_defaults]
    overrides = json.loads(server_args.json_model_override_args or "{}")
    said = _read_config(server_args.model_path, server_args.revision, overrides) if rows else None
    for row in rows:
        if said is not None and _is_of(row, said):
            set_defaults(row, server_args, partial(_load, row.architecture))


def _is_of(row: OverlayModel, said: Mapping[str, Any]) -> bool:
    """Tell whether a config.json is that of a row: by its architecture, or by its model_type if the row has its own."""
    names = said.get("architectures") or [row.base]
    if row.architecture in names:
        return True
    own = row.config is not None and names == [row.base]
    return own and said.get("model_type") == _load(row.architecture, str(row.config)).model_type


def check_request(tokenizer_manager: Any, request: Any) -> None:
    """Raise ValueError, which upstream answers with status 400, if a request asks for what would be answered wrongly.

    Called in `TokenizerManager._validate_one_request`, where upstream refuses vectors of a model that generates text.
    With the opposite, and with embeddings that it does not expect, its scheduler would end, and with that the server.
    """
    from packaging.version import Version
    from sglang.srt.managers.embeddings_apart import fault_of_embeddings
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.version import __version__

    if not isinstance(request, GenerateReqInput):
        return
    if not tokenizer_manager.is_generation:
        raise ValueError(
            "This model gives a vector for each text and generates none; send the text to /v1/embeddings or /classify"
        )
    if request.input_embeds is not None and (fault := fault_of_embeddings(tokenizer_manager.server_args)):
        raise ValueError(fault)
    if Version(__version__) < Version("0.5.10") and request.session_params and request.image_data:
        row = _row_of(tokenizer_manager.model_config.hf_config)
        if row is not None and row.multimodal:
            raise ValueError(
                f"sglang {__version__} puts a session's later pictures in the place of earlier text; send the whole"
                " conversation without session_params"
            )


def resolve_model(model_config: Any) -> tuple[type, str] | None:
    """Find the class and the architecture that serve `model_config`, or None when the model is not of this overlay.

    Called at the head of `get_model_architecture` in `srt/model_loader/utils.py`, before weights are read. For an
    architecture that its registry lacks, upstream logs a line and goes on with the Transformers backend, which knows
    nothing of the overlay: the answers would be those of another model.

    Raises OverlayError when the class cannot be imported (with that error as the cause), is not the one that
    upstream's registry holds, is not what the server's arguments ask for, or config.json has a key that would be lost.
    """
    if "sglang.srt.lora.lora_manager" in sys.modules:  # a process that loads adapters too
        from sglang.srt.model_loader.checked_adapters import check_adapters

        check_adapters()
    if "sglang.srt.managers.schedule_policy" in sys.modules:  # a process that puts batches together
        from sglang.srt.managers.embeddings_apart import keep_apart

        keep_apart()
    row = _row_of(model_config.hf_config)
    if row is None:
        if not _is_anothers(model_config.hf_config):
            _check_upstreams(model_config)
        return None
    _check_arguments(row, model_config)
    said = _said(model_config)
    if row.settle is not None:
        _settle(row, row.settle, model_config, said)
    if not hasattr(model_config, "overlay_said"):  # updates from other folders change the path
        model_config.overlay_said = said
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
    if row.generates and not model_config.is_generation:
        raise OverlayError(f"{name} generates text and has no embeddings; leave --is-embedding out")
    if not row.generates and model_config.is_generation:
        raise OverlayError(f"{name} gives a vector for each text and generates none; serve it with --is-embedding")
    if row.config is not None and _reference_to(type(config)) != row.config:
        wanted = _load(name, row.config).model_type
        raise OverlayError(
            f"{name} needs model_type {wanted!r}, and config.json has {config.model_type!r}; adopt the checkpoint, or"
            " take the architecture out of config.json and --json-model-override-args"
        )
    # Not those of the configuration: upstream renames them for a draft, whose configuration may be the same object.
    changed = model_config.model_override_args.get("architectures")
    if row.base is not None and changed not in (None, _shown(row)):
        raise OverlayError(
            f"config.json is that of {name}, and --json-model-override-args changes its architectures to"
            f" {changed}; leave them out"
        )


def _settle(row: OverlayModel, reference: str, model_config: Any, said: dict[str, Any] | None) -> None:
    if said is None:
        _log.warning("%s: there is no config.json whose keys could be checked", row.architecture)
        return
    try:
        _load(row.architecture, reference)(model_config.hf_config, said)
    except ValueError as error:
        raise OverlayError(str(error)) from error


def config_faults(model_config: Any, path: str) -> list[str]:
    """List what is wrong with the config.json of other weights for a model that is served, a line for each key.

    That of the checkpoint that the server has started with stays in force. A folder without one is taken: a trainer may
    write weights alone.
    """
    from sglang.srt.configs.config_keys import differences

    row, served = _row_of(model_config.hf_config), getattr(model_config, "overlay_said", None)
    if row is None or served is None:
        return []
    try:
        said = _read_config(path, model_config.revision, model_config.model_override_args)
        if said is None:
            return [f"{path}/config.json: it cannot be read"] if (Path(path) / "config.json").is_file() else []
        before, now = (_configuration(row, model_config, config) for config in (served, said))
    except Exception as error:  # a class of transformers' may fail in any way
        return [f"{path}: {type(error).__name__}: {error}"]
    return [f"config.json: {difference}" for difference in differences(before, now)]


def _configuration(row: OverlayModel, model_config: Any, said: Mapping[str, Any]) -> Any:
    """Make the configuration object of a config.json as it is before upstream changes it."""
    config = type(model_config.hf_config).from_dict(copy.deepcopy(dict(said)))
    if row.settle is not None:
        _load(row.architecture, row.settle)(config, said)
    return config


def _check_upstreams(model_config: Any) -> None:
    """Say what a model of upstream's would lose of its config.json.

    Raises OverlayError where that is certain: upstream's model is the base of ours, or config.json has keys of ours.
    """
    from sglang.srt.configs.config_keys import lost_rope

    config = model_config.hf_config
    names = getattr(config, "architectures", None) or []
    extensions = sorted({key for row in _BY_ARCHITECTURE.values() for key in row.extensions})
    if keys := [key for key in extensions if getattr(config, key, None) not in (None, 0, [], "none")]:
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
    return _read_config(model_config.model_path, model_config.revision, model_config.model_override_args)


def _read_config(path: str, revision: str | None, overrides: Mapping[str, Any]) -> dict[str, Any] | None:
    from transformers import PretrainedConfig

    try:
        said, _ = PretrainedConfig.get_config_dict(path, revision=revision)
    except (OSError, ValueError):
        return None
    if not said:  # so transformers 5 says of a folder that there is none
        return None
    for key, value in overrides.items():
        nested = isinstance(value, dict) and isinstance(said.get(key), dict)
        said[key] = {**said[key], **value} if nested else value
    return dict(said)


def _row_of(config: Any) -> OverlayModel | None:
    """Find the row of a Hugging Face configuration: by its class, or else by the architecture that it names.

    Raises OverlayError if it names an architecture that was an overlay's and is no longer.
    """
    for row in _BY_ARCHITECTURE.values():
        if row.config is not None and row.config == _reference_to(type(config)):
            return row
    own = getattr(config, "overlay_architecture", None)
    for name in [own] if own is not None else getattr(config, "architectures", None) or []:
        if name in _BY_ARCHITECTURE:
            return _BY_ARCHITECTURE[name]
    if own is not None and not is_anothers("architecture", own):
        raise OverlayError(f"{own}: no row of the overlay has this architecture; it has {sorted(_BY_ARCHITECTURE)}")
    return None


def _is_anothers(config: Any) -> bool:
    """Tell whether a configuration is of a model of another overlay in this process, which checks it itself."""
    own = getattr(config, "overlay_architecture", None)
    names = [own] if own is not None else getattr(config, "architectures", None) or []
    return is_anothers("model_type", getattr(config, "model_type", "")) or any(
        is_anothers("architecture", name) for name in names
    )


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
    claim("model_type", name)
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
