"""The configuration of Qwen3-Next-Ext-Reward: Qwen3-Next-Ext-Embedding's, and how many scores a text has.

"architectures": ["Qwen3NextExtForSequenceClassification"],
"model_type": "qwen3_next_ext_reward"
"""

from dataclasses import replace

from sglang.srt.configs.qwen3_next_ext_embedding import Qwen3NextExtEmbeddingConfig


class Qwen3NextExtRewardConfig(Qwen3NextExtEmbeddingConfig):
    """Qwen3-Next-Ext-Embedding's configuration, and `num_labels`."""

    model_type = "qwen3_next_ext_reward"
    num_labels: int  # a property of all configurations
    known_keys = replace(
        Qwen3NextExtEmbeddingConfig.known_keys, sizes=(*Qwen3NextExtEmbeddingConfig.known_keys.sizes, "num_labels")
    )
