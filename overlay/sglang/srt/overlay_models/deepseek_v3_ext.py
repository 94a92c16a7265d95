"""DeepSeek-V3 with biased routers and a transform of its logits, and its draft."""

from sglang.srt.overlay_models import OverlayModel

ROW = OverlayModel(
    model="sglang.srt.models.deepseek_v3_ext:DeepseekV3ExtForCausalLM",
    base="DeepseekV3ForCausalLM",
    draft="sglang.srt.models.deepseek_v3_ext:DeepseekV3ExtForCausalLMNextN",
    config="sglang.srt.configs.deepseek_v3_ext:DeepseekV3ExtConfig",
    settle="sglang.srt.configs.deepseek_v3_ext:settle",
    extensions=("logit_softcap", "logit_transform", "router_logit_bias"),
)
