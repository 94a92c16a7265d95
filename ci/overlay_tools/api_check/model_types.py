"""The model type that goes with the name of a configuration class of Transformers'.

Transformers is not read for it: the tests of the decisions, where it is installed, compare this with the classes.
"""

from __future__ import annotations

import re


def model_type_of(config: str) -> str:
    """Return the model type of the configuration class of some name, as `qwen3_moe` for `Qwen3MoeConfig`."""
    words = re.findall(r"[A-Z]+(?![a-z])[0-9]*|[A-Z][a-z]*[0-9]*", config.removesuffix("Config"))
    return "_".join(words).lower()
