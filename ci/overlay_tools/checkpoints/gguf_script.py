"""Write the checkpoint of a GGUF file into a folder. It runs by itself, in an environment with Transformers.

    python gguf_script.py FILE OUT_DIR

Each version of transformers writes configurations that older ones misread: rotary positions are written in both forms,
and the tokenizer's class under the name that all know.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def convert(file: Path, out: Path) -> None:
    """Read a GGUF file, and write its values in float32."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    named = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**named)
    model = AutoModelForCausalLM.from_pretrained(**named, dtype=torch.float32)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    out.mkdir()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    _change(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    said = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    said |= {"architectures": [type(model).__name__], **_rope(said.get("rope_parameters") or {})}
    (out / "config.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _rope(parameters: dict[str, Any]) -> dict[str, Any]:
    """Write rotary positions as transformers 4 does, from the form of transformers 5."""
    if "rope_theta" not in parameters:
        return {}
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    scaled = scaling.get("rope_type", "default") != "default"
    return {"rope_theta": parameters["rope_theta"], "rope_scaling": scaling if scaled else None}


def _change(path: Path, changes: dict[str, Any]) -> None:
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**said, **changes}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
