"""What config.json may say to LlamaLogitShaping."""

from typing import Any

from sglang.srt.configs.config_keys import (
    LOGITS,
    ROPE,
    SIZES,
    Config,
    Keys,
    key_problems,
    logit_problems,
    refuse,
    rope_of,
    rope_problems,
    settle_rope,
)

KEYS = Keys(
    read=(*ROPE, *LOGITS, "attention_bias", "bias", "rms_norm_eps", "rope_is_neox_style"),
    sizes=SIZES,
    nullable=("bias", "final_logit_softcapping", "head_dim", "logit_softcap"),
    fixed={
        "hidden_act": ("silu",),
        "is_llama_config": (True,),
        "mlp_bias": (False,),
        "rope_interleaved": (False,),
    },
)


def check(config: Config) -> list[str]:
    """Check a config.json for LlamaLogitShaping."""
    problems = key_problems(config, KEYS)
    return problems or logit_problems(config) + rope_problems(config, whole=True)


def settle(config: Any, said: Config) -> None:
    """Let the configuration object say what config.json says, in all of its forms.

    Raises ValueError, naming the keys, unless `check` finds it good.
    """
    refuse(check(said))
    settle_rope(config, rope_of(said))
