"""Qwen3 with windows of attention."""

from sglang.srt.overlay_models import OverlayModel

ROW = OverlayModel(
    model="sglang.srt.models.qwen3_windows:Qwen3WindowsForCausalLM",
    base="Qwen3ForCausalLM",  # its configuration itself says to upstream which layers have windows
    config="sglang.srt.configs.qwen3_windows:Qwen3WindowsConfig",
    settle="sglang.srt.configs.qwen3_windows:settle",
)
