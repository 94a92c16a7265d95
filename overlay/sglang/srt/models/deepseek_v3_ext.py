"""DeepSeek-V3-Ext: upstream's DeepSeek-V3 and its draft with biased routers and a transform of the logits.

`configs/deepseek_v3_ext.py` has the keys of config.json that switch them on. Both change a model that upstream has
built, so that latent attention, experts and caches are upstream's own.
"""

import copy
from collections.abc import Iterable, Iterator

import torch
from sglang.srt.configs.deepseek_v3_ext import DeepseekV3ExtConfig
from sglang.srt.layers.logit_shaping import LogitShapingProcessor
from sglang.srt.layers.moved_experts import follow_moved_experts
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_loader.checked_updates import load_checked, serve_checked
from sglang.srt.model_loader.quantised_tensors import make_check
from sglang.srt.model_loader.strict_loading import Shapes, Weights
from sglang.srt.model_loader.transformers_shapes import transformers_shapes
from sglang.srt.models.deepseek_nextn import DeepseekV3ForCausalLMNextN
from sglang.srt.models.deepseek_v2 import DeepseekV3ForCausalLM
from torch import nn


class DeepseekV3Extensions:
    """What the served model and its draft change in what upstream has built; it stands before upstream's class."""

    def extend_checked(
        self,
        config: DeepseekV3ExtConfig,
        layers: Iterable[nn.Module],
        shapes: Shapes,
        ignored: tuple[str, ...],
        draft: str = "",
    ) -> None:
        """Bias the routers of `layers`, transform the logits, and check from then on what is loaded.

        `shapes` are the tensors of upstream's model; `ignored` and `draft` are those of `Check`.
        """
        own: Shapes = {}
        if config.router_logit_bias:
            for layer in layers:
                if (gate := getattr(getattr(layer, "mlp", None), "gate", None)) is not None:
                    add_bias(gate)
            own = router_bias_shapes(shapes)
            shapes = shapes | own
        self.logits_processor = LogitShapingProcessor(config)
        serve_checked(self, make_check(self, shapes, ignored, draft, own))

    def load_weights(self, weights: Weights) -> None:
        """Load a checkpoint, or an update of some weights. Raises WeightsError naming each tensor that does not fit."""
        upstreams = super().load_weights
        load_checked(self, weights, lambda fitting: upstreams(self.with_halves(fitting)))

    def with_halves(self, weights: Weights) -> Weights:
        """Pass on tensors, and at last the other half of each that is half of one of the model's, as the model has it.

        Upstream puts two projections into one, and leaves out, without a word, the one that an update has alone.
        """
        names = []
        for name, tensor in weights:
            yield name, tensor
            names.append(name)
        for other, which, whole in self.lone_halves(names):
            yield other, whole.detach().split(self.half_rows())[which].clone()

    def faults_of_part(self, names: Iterable[str]) -> list[str]:
        """List what an update of these tensors alone lacks: where both halves share what quantises them, the other."""
        return [
            f"{other}: missing, and what is quantised is updated with it"
            for other, _, whole in self.lone_halves(names)
            if not whole.dtype.is_floating_point or whole.shape[0] != sum(self.half_rows())
        ]

    def lone_halves(self, names: Iterable[str]) -> Iterator[tuple[str, int, nn.Parameter]]:
        """Find the other half of each of these tensors that is one: its name, which it is, and what has both here."""
        parts, fused = ("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj_with_mqa"
        found: dict[str, set[str]] = {}
        for name in names:
            for part in parts if self.config.q_lora_rank is not None else ():  # else the queries have one projection
                if f".{part}." in name:
                    found.setdefault(name.replace(part, fused), set()).add(part)
        parameters = dict(self.named_parameters())
        for name, there in found.items():
            own = name.replace(draft_prefix(self.config), "model.decoder.")
            whole = parameters.get(name, parameters.get(own))
            if len(there) < len(parts) and whole is not None:
                [lacking] = {*parts} - there
                yield name.replace(fused, lacking), parts.index(lacking), whole

    def half_rows(self) -> tuple[int, int]:
        """Give the rows of both projections in the one that upstream makes of them."""
        return self.config.q_lora_rank, self.config.kv_lora_rank + self.config.qk_rope_head_dim


def add_bias(gate: nn.Module) -> None:
    """Let a router add a bias, one number an expert, to its logits: before the sigmoid, so that it weighs too."""
    gate.bias = nn.Parameter(torch.zeros(gate.weight.shape[0], dtype=torch.float32))
    gate.register_forward_hook(lambda gate, _, logits: logits + gate.bias)


def router_bias_shapes(shapes: Shapes) -> Shapes:
    """List the biases of all routers that a checkpoint has: name to shape."""
    end = ".mlp.gate.weight"
    return {f"{name.removesuffix('weight')}bias": shape[:1] for name, shape in shapes.items() if name.endswith(end)}


def check_quantisation(config: DeepseekV3ExtConfig, quant_config: QuantizationConfig | None) -> None:
    """Raise ValueError where Quark is to quantise the model while it is loaded: what it leaves goes by model_type."""
    online = getattr(config, "quantization_config", None) is None
    if online and quant_config is not None and quant_config.get_name() == "quark":
        raise ValueError("Quark would quantise attention as well; quantise the checkpoint, not while it is loaded")


def draft_prefix(config: DeepseekV3ExtConfig) -> str:
    """Give the beginning of the names of the draft's tensors: it is the layer after the last one."""
    return f"model.layers.{config.num_hidden_layers}."


class DeepseekV3ExtForCausalLM(DeepseekV3Extensions, DeepseekV3ForCausalLM):
    """Upstream's DeepSeek-V3 with the extensions of its configuration and strict weight loading."""

    def __init__(
        self, config: DeepseekV3ExtConfig, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        check_quantisation(config, quant_config)
        super().__init__(config, quant_config, prefix)
        self.extend_checked(config, self.model.layers, transformers_shapes(config), (draft_prefix(config),))
        follow_moved_experts(self.model.layers)


class DeepseekV3ExtForCausalLMNextN(DeepseekV3Extensions, DeepseekV3ForCausalLMNextN):
    """Upstream's draft with the extensions of the model's configuration and strict weight loading."""

    def __init__(
        self, config: DeepseekV3ExtConfig, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        check_quantisation(config, quant_config)
        super().__init__(config, quant_config, prefix)
        own = draft_prefix(config)
        # The model has the others, and these two of the draft's layer are the model's too.
        ignored = ("model.embed_tokens.", "model.norm.", "lm_head.", f"{own}embed_tokens.", f"{own}shared_head.head.")
        ignored += tuple(f"model.layers.{i}." for i in range(config.num_hidden_layers))
        self.extend_checked(config, [self.model.decoder], draft_shapes(config), ignored, own)


def draft_shapes(config: DeepseekV3ExtConfig) -> Shapes:
    """List what the draft takes from an unquantised checkpoint: name to shape, before any sharding."""
    one = copy.copy(config)
    one.num_hidden_layers, one.first_k_dense_replace = 1, 0  # a draft has experts always
    layer, own, hidden = "model.layers.0.", draft_prefix(config), config.hidden_size
    shapes = {
        own + name.removeprefix(layer): shape
        for name, shape in transformers_shapes(one).items()
        if name.startswith(layer)
    }
    return shapes | {
        f"{own}enorm.weight": (hidden,),
        f"{own}hnorm.weight": (hidden,),
        f"{own}eh_proj.weight": (hidden, 2 * hidden),
        f"{own}shared_head.norm.weight": (hidden,),
    }


EntryClass = [DeepseekV3ExtForCausalLM, DeepseekV3ExtForCausalLMNextN]
