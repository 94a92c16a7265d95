"""DeepSeek-V3 with extensions: random weights, whose draft is often right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from reference.cases import Case, Decisions, Fault, usual_faults
from reference.checkpoints import COMMON, LATENT, Draw, changed, configuration

from models.deepseek_v3_ext.reference import (
    DeepseekV3Ext,
    DeepseekV3ExtDraft,
    load,
    load_draft,
    names_of_draft,
    prefix_of,
)

SIZES = LATENT | {
    "num_hidden_layers": 3,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "num_nextn_predict_layers": 1,
    "head_dim": None,
}
NAMES = {"architectures": ["DeepseekV3ExtForCausalLM"], "model_type": "deepseek_v3_ext"}
OWN = {"router_logit_bias": True, "logit_transform": "softcap", "logit_softcap": 60.0}
YARN = {
    "type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
CONFIG = changed(COMMON | {"rope_scaling": YARN}, SIZES | NAMES | OWN)
OFF = dict.fromkeys(OWN)


def weights(config: Mapping[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Draw the weights of a model with its draft, named as in the released checkpoints."""
    draw, settings = Draw(seed), configuration(DeepseekV3Ext, config)
    state = DeepseekV3Ext(settings).state_dict() | names_of_draft(settings, DeepseekV3ExtDraft(settings))
    drawn = draw.fill({name: tuple(tensor.shape) for name, tensor in state.items()})
    for name, tensor in drawn.items():
        if ".gate." in name and tensor.ndim == 1:
            tensor -= 1  # a router's biases are near 0, unlike the scales of norms
    # Let what is said next depend on the last token most of all, and the draft go by that one.
    for name, tensor in drawn.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor /= 3
    drawn[f"{prefix_of(settings)}eh_proj.weight"] /= 8
    drawn[f"{prefix_of(settings)}eh_proj.weight"][:, : settings.hidden_size] += torch.eye(settings.hidden_size)
    drawn["lm_head.weight"] *= 5  # so that few steps are nearly ties
    return drawn


# DeepSeek-V3's dimensions.
BASE = CONFIG | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 163840,
    "rope_scaling": YARN | {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale_all_dim": 1.0},
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
}
BASE = {key: value for key, value in BASE.items() if key not in OWN}
MAY_DIFFER = {
    "__class__": "the derived model has a class of its own",
    "model_type": "by which transformers finds that class",
    "overlay_architecture": "the derived model's own name, which only the overlay reads",
    "router_logit_bias": "an extension's key",
    "logit_transform": "an extension's key",
    "logit_softcap": "an extension's key",
}


def without_draft(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the draft."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("model.layers.3.")}


FAULTS = usual_faults("models.deepseek_v3_ext", {"router_logit_bias": "all"}) | {
    "no draft": Fault(
        tensors=without_draft,
        draft=True,
        said=[r"the checkpoint has no draft \(model\.layers\.3\.\* tensors\); serve it without"],
    ),
    "draft": Fault(
        tensors=lambda tensors: tensors | {"model.layers.3.eh_proj.weight": torch.zeros(128, 128)},
        draft=True,
        said=[r"model\.layers\.3\.eh_proj\.weight \(model\.safetensors\): its shape is \(128, 128\), not \(128, 256\)"],
    ),
    "scaling": Fault(
        changes={"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        said=[r"config\.json: rope_type must be 'default' or 'yarn', not 'linear'"],
    ),
    "logits": Fault(
        changes={"logit_softcap": -1.0},
        said=[r"config\.json: logit_softcap must be a finite number above 0, not -1\.0"],
    ),
}

CASE = Case(
    config=CONFIG,
    weights=weights,
    seed=0,
    load=load,
    draft=load_draft,
    sets={
        "none": OFF,
        "router_logit_bias": OFF | {"router_logit_bias": True},
        "no scaling": OFF | {"rope_scaling": None},
        "all": {},
    },
    served="all",
    servers=("sets", "small pool", "drafts", "two ranks"),
    accepted=1.05,
    updates=("model.norm.weight", "model.layers.1.self_attn.q_a_proj.weight"),
    faults=FAULTS,
    decisions=Decisions(
        base=BASE,
        configuration="DeepseekV3Config",
        derived={"as it is": BASE | NAMES, "extensions on": BASE | NAMES | OWN},
        differences={
            "as it is": {key: why for key, why in MAY_DIFFER.items() if key not in OWN},
            "extensions on": MAY_DIFFER,
        },
    ),
)
