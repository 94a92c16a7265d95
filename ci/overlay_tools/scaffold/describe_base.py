"""Print what Transformers has of an architecture, as JSON. It runs by itself, in an environment with Transformers."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType

_READ = re.compile(r"""\bconfig\.([a-z]\w*)|getattr\(\s*(?:self\.)?config,\s*"(\w+)\"""")


def reads(text: str) -> set[str]:
    """List the keys of a configuration that Python source reads."""
    return {name or other for name, other in _READ.findall(text)}


def describe(architecture: str, model_type: str, config_keys: ModuleType) -> dict[str, object]:
    """Describe an architecture of a language model: its configuration class, and the keys that are its own.

    `taken`: whether `model_type`, which a new model is to have, is that of another.
    """
    import transformers
    from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    about = {"transformers": transformers.__version__, "taken": model_type in CONFIG_MAPPING}
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    if not any(architecture in ([value] if isinstance(value, str) else value) for value in names):
        return about
    model = getattr(transformers, architecture)
    config = model.config_class
    made = config()
    defaults, found = made.to_dict(), reads(Path(inspect.getsourcefile(model) or "").read_text(encoding="utf-8"))
    return {
        **about,
        "config": config.__name__,
        "defaults": {key: value for key, value in defaults.items() if not config_keys.is_of_every_model(key)},
        "backbone": MODEL_MAPPING[config].__name__,
        "classifier": getattr(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(config, None), "__name__", None),
        "tied": bool(made.tie_word_embeddings),
        "aliases": config.attribute_map,
        "reads": sorted(found),
        "more": sorted(key for key in found if not hasattr(made, key) and not config_keys.is_of_every_model(key)),
    }


def _module(file: Path) -> ModuleType:
    """Import a file that is in no package here."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    json.dump(describe(sys.argv[1], sys.argv[2], _module(Path(sys.argv[3]))), sys.stdout, default=str)
