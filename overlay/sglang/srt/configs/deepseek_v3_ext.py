"""The configuration of DeepSeek-V3-Ext: Transformers' DeepseekV3Config under a name of its own, with these keys more.

    "architectures": ["DeepseekV3ExtForCausalLM"],
    "model_type": "deepseek_v3_ext",
    "router_logit_bias": true,
    "logit_transform": "softcap",
    "logit_softcap": 30.0

`router_logit_bias` (false by default) adds `mlp.gate.bias`, a number an expert, to the logits of each router, also the
draft's. `logit_transform` is "none" (the default), "softcap" or "sqrt_positive".
"""

from sglang.srt.configs.config_keys import LOGITS, Config, Keys, logit_problems, refuse
from sglang.srt.configs.derived_config import DerivedConfig
from sglang.srt.configs.derived_config import settle as settle_derived
from transformers import DeepseekV3Config


class DeepseekV3ExtConfig(DerivedConfig, DeepseekV3Config):
    """Transformers' configuration; each key that config.json has beside its own is an error."""

    model_type = "deepseek_v3_ext"
    router_logit_bias = False
    # What upstream reads and Transformers' class does not have.
    moe_layer_freq, scoring_func, topk_method = 1, "sigmoid", "noaux_tc"
    own = Keys(
        read=(*LOGITS, "aux_loss_alpha", "ep_size", "seq_aux"),  # the last three say how it was trained
        nullable=("final_logit_softcapping", "logit_softcap"),
        fixed={
            "attention_bias": (False,),
            "hidden_act": ("silu",),
            "moe_layer_freq": (1,),
            "norm_topk_prob": (True,),  # upstream's fused routers on a GPU have no other way
            "num_mtp_layers": (0, 1),
            "num_nextn_predict_layers": (0, 1),
            "rope_interleave": (True,),
            "router_logit_bias": (False, True),
            "scoring_func": ("sigmoid",),
            "topk_method": ("noaux_tc",),
        },
    )


def settle(config: DeepseekV3ExtConfig, said: Config) -> None:
    """Let the configuration object say what config.json says. Raises ValueError naming what it may not say."""
    settle_derived(config, said)
    refuse(logit_problems(said))
