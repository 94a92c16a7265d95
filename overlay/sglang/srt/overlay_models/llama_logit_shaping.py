"""Llama with a transform of its logits."""

from sglang.srt.overlay_models import OverlayModel

ROW = OverlayModel(
    model="sglang.srt.models.llama_logit_shaping:LlamaLogitShapingForCausalLM",
    settle="sglang.srt.configs.llama_logit_shaping_keys:settle",
    extensions=("logit_softcap", "logit_transform"),
)
