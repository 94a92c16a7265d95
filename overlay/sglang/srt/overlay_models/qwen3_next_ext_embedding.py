"""Embeddings of texts by Qwen3-Next with extensions."""

from sglang.srt.overlay_models import OverlayModel

ROW = OverlayModel(
    model="sglang.srt.models.qwen3_next_ext_embedding:Qwen3NextExtEmbeddingModel",
    base="Qwen3NextForCausalLM",
    generates=False,
    arguments={"is_embedding": True},
    config="sglang.srt.configs.qwen3_next_ext_embedding:Qwen3NextExtEmbeddingConfig",
    settle="sglang.srt.configs.qwen3_next_ext_keys:settle",
)
