"""The tensors of a checkpoint as Transformers' model of the same configuration has them."""

import torch
import transformers
from sglang.srt.model_loader.strict_loading import Shapes
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig


def transformers_shapes(config: PretrainedConfig) -> Shapes:
    """List the tensors of an unquantised checkpoint: name to shape, before any sharding.

    They are read from Transformers' language model for the class of `config`, or for the first of its bases that has
    one; it is built without memory for its weights. Tied embeddings stand for the head as well.
    Raises ValueError if Transformers has no model for it.
    """
    cls = next((base for base in type(config).__mro__ if base in MODEL_FOR_CAUSAL_LM_MAPPING), None)
    if cls is None:
        raise ValueError(f"transformers {transformers.__version__} has no language model for {type(config).__name__}")
    # Rotary positions have no tensors, and some models of upstream's rename their scaling in the configuration.
    left_out = ("architectures", "model_type", "rope_parameters", "rope_scaling")
    said = {key: value for key, value in config.to_dict().items() if key not in left_out}
    plain = cls(**said | sizes_of_checkpoint(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plain, attn_implementation="eager")
    state = model.state_dict()
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        pass  # before version 5 a model has the names of its checkpoints
    else:
        state = revert_weight_conversion(model, state)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if plain.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def sizes_of_checkpoint(config: PretrainedConfig) -> dict[str, int]:
    """Give the sizes of a checkpoint where upstream has rounded up those of the model: key of config.json to size.

    It does so where ranks of a CPU cannot share heads, or an inner size, evenly; the weights are then filled up with 0.
    """
    ends = ("_heads", "intermediate_size")
    kept = {
        key.removeprefix("original_").replace("total_num_kv_heads", "num_key_value_heads"): value
        for key, value in vars(config).items()
        if key.startswith("original_") and key.endswith(ends)
    }
    return {key: value for key, value in kept.items() if hasattr(config, key)}
