"""No code of the models names CUDA where it means a GPU: what AMD's and others have as well is asked of tensors."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]

# What may name it, with the reason why it is right on every device.
RIGHT = {
    "sglang/srt/layers/head_adapter.py: hidden_states.is_cuda": "PyTorch says so of AMD's GPUs too, which have Triton",
    "sglang/srt/layers/head_adapter.py: torch.cuda.get_device_properties": "asked of a device that is_cuda is true of",
    "sglang/srt/layers/logit_shaping.py: logits.is_cuda": "PyTorch says so of AMD's GPUs too, which have Triton",
    "sglang/srt/managers/embeddings_apart.py: 'enable_piecewise_cuda_graph'": "an argument of upstream's on any device",
}


def named(path: Path) -> set[str]:
    """Find the expressions of a file that name CUDA: attributes and names as they stand, and texts."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner:
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            found.add(repr(node.value))
        elif isinstance(node, ast.alias):
            found.add(node.name)
    return {what for what in found if "cuda" in what.lower() or "nvidia" in what.lower()}


def test_what_names_cuda_is_right_on_every_device() -> None:
    overlay = ROOT / "overlay"
    files = [path for name in ("sglang", "sglang_overlay_plugin") for path in (overlay / name).rglob("*.py")]
    assert len(files) > 30
    assert {f"{path.relative_to(overlay)}: {what}" for path in files for what in named(path)} == set(RIGHT)
