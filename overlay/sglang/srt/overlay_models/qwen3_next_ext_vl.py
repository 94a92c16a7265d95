"""Qwen3-Next-Ext behind a vision tower."""

from sglang.srt.overlay_models import OverlayModel

ROW = OverlayModel(
    model="sglang.srt.models.qwen3_next_ext_vl:Qwen3NextExtVLForConditionalGeneration",
    base="Qwen3NextForCausalLM",
    config="sglang.srt.configs.qwen3_next_ext_vl:Qwen3NextExtVLConfig",
    settle="sglang.srt.configs.qwen3_next_ext_vl_keys:settle",
    multimodal=True,
    chat_template="sglang.srt.configs.qwen3_next_ext_vl:chat_template",
)
