"""Qwen3-Next with extensions, and its draft."""

from sglang.srt.overlay_models import OverlayModel

ROW = OverlayModel(
    model="sglang.srt.models.qwen3_next_ext:Qwen3NextExtForCausalLM",
    base="Qwen3NextForCausalLM",
    draft="sglang.srt.models.qwen3_next_ext_mtp:Qwen3NextExtForCausalLMMTP",
    config="sglang.srt.configs.qwen3_next_ext:Qwen3NextExtConfig",
    settle="sglang.srt.configs.qwen3_next_ext_keys:settle",
    extensions=("head_adapter_rank", "logit_softcap", "logit_transform", "nope_layers"),
)
