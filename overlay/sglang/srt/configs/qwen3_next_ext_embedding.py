"""The configuration of Qwen3-Next-Ext-Embedding: Qwen3-Next-Ext's without what shapes logits.

"architectures": ["Qwen3NextExtEmbeddingModel"],
"model_type": "qwen3_next_ext_embedding"
"""

from dataclasses import replace

from sglang.srt.configs.config_keys import LOGITS
from sglang.srt.configs.qwen3_next_ext import Qwen3NextExtConfig
from sglang.srt.configs.qwen3_next_ext_keys import KEYS


class Qwen3NextExtEmbeddingConfig(Qwen3NextExtConfig):
    """Qwen3-Next-Ext's configuration; there are no logits that a key could transform."""

    model_type = "qwen3_next_ext_embedding"
    known_keys = replace(
        KEYS,
        read=tuple(key for key in KEYS.read if key not in LOGITS),
        fixed={
            **KEYS.fixed,
            "logit_transform": ("none",),
            "logit_softcap": (None,),
            "final_logit_softcapping": (None,),
        },
    )
