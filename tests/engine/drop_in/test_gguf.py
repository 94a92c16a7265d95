"""A GGUF file becomes a checkpoint, whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import pytest
import torch
from overlay_tools.checkpoints.gguf import convert
from overlay_tools.errors import CheckpointError
from reference.checkpoints import byte_characters
from safetensors.torch import load_file

SHAPES = {
    "token_embd": (258, 32),
    "blk.0.attn_norm": (32,),
    "blk.0.attn_q": (32, 32),
    "blk.0.attn_k": (16, 32),
    "blk.0.attn_v": (16, 32),
    "blk.0.attn_output": (32, 32),
    "blk.0.ffn_norm": (32,),
    "blk.0.ffn_gate": (64, 32),
    "blk.0.ffn_up": (64, 32),
    "blk.0.ffn_down": (32, 64),
    "output_norm": (32,),
}


def write_llama(path: Path, shapes: dict[str, tuple[int, ...]], scaling: float | None = None) -> Path:
    """Write a Llama of one layer, whose head is its embeddings."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling)
    writer.add_tokenizer_model("gpt2")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_token_list([*byte_characters(), "ab", "abc"])
    writer.add_token_merges(["a b", "ab c"])
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_whole_file_is_converted(tmp_path: Path) -> None:
    folder = convert(write_llama(tmp_path / "a.gguf", SHAPES, scaling=1.0), Path(sys.executable), tmp_path)
    assert len(load_file(folder / "model.safetensors")) == len(SHAPES)


@pytest.mark.parametrize(
    ("shapes", "scaling", "said"),
    [
        ({**SHAPES, "rope_freqs": (4,)}, None, "rope_freqs.weight is not read by Transformers"),
        (SHAPES, 4.0, "llama.rope.scaling.factor is not read by Transformers"),
        ({k: v for k, v in SHAPES.items() if k != "blk.0.attn_q"}, None, "blk.0.attn_q.weight is missing"),
    ],
)
def test_a_file_of_which_something_would_be_lost_is_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], scaling: float | None, said: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        convert(write_llama(tmp_path / "a.gguf", shapes, scaling), Path(sys.executable), tmp_path)
    assert str(caught.value) == f"{tmp_path / 'a.gguf'} cannot be converted: {said}"
