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

_MOST = 8  # problems that are named


def convert(file: Path, out: Path) -> None:
    """Read a GGUF file, and write its values in float32. Exits with the reason if some of it would be lost."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    named = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**named)
    model, places, found = _load(named)
    if problems := [*_missing(model, places, found), *_left_out(file, places, found)]:
        more = f", and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
        sys.exit(f"{'; '.join(problems[:_MOST])}{more}")
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


def _load(named: dict[str, str]) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """Load a model; give it, the names that its tensors have by those in the file, and what was found in loading."""
    import torch
    from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils

    places: dict[str, str] = {}
    find = modeling_gguf_pytorch_utils.get_gguf_hf_weights_map

    def find_and_note(*args: Any, **kwargs: Any) -> dict[str, str]:  # noqa: ANN401
        made: dict[str, str] = find(*args, **kwargs)
        places.update(made)
        return made

    # Tensors that are not in this map are left out, and nothing else says so.
    modeling_gguf_pytorch_utils.get_gguf_hf_weights_map = find_and_note
    model, found = AutoModelForCausalLM.from_pretrained(**named, dtype=torch.float32, output_loading_info=True)
    return model, places, found


def _missing(model: Any, places: dict[str, str], found: dict[str, Any]) -> list[str]:  # noqa: ANN401
    """Say which tensors of a model the file does not have: they are random."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    in_file = {theirs: name for name, theirs in places.items()}
    return [f"{in_file.get(name, name)} is missing" for name in sorted({*found["missing_keys"]} - tied)]


def _left_out(file: Path, places: dict[str, str], found: dict[str, Any]) -> list[str]:
    """Say what in a file that changes the answers Transformers does not read."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    names = [tensor.name for tensor in reader.tensors]
    # Without a map, Transformers takes all and says which it did not expect. In a map, stacked experts have no suffix.
    lost = [name for name in names if not {name, name.removesuffix(".weight")} & {*places}] if places else []
    lost += [name for name in found["unexpected_keys"] if name in names and name not in lost]
    key = f"{reader.fields['general.architecture'].contents()}.rope.scaling."
    scaling = {name: field.contents() for name, field in reader.fields.items() if name.startswith(key)}
    if scaling.get(f"{key}type") != "none" and scaling.get(f"{key}factor") not in (None, 0, 1):
        lost.append(f"{key}factor")
    return [f"{name} is not read by Transformers" for name in lost]


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
