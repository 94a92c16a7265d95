"""Qwen3-Next-Ext: upstream's Qwen3-Next, changed by what its config.json switches on.

See `configs/qwen3_next_ext.py` for the switches. With all of them off, this is upstream's model, bit for bit, but for
what `end_with_last_layer` mends. Each extension changes a model that upstream has built: no constructor of upstream's
is repeated here, and of the changes its decoder layers have been through between releases little else is felt.
"""

from collections.abc import Callable, Collection
from types import MappingProxyType

import sglang
import torch
from packaging.version import Version
from sglang.srt.configs.qwen3_next_ext import Qwen3NextExtConfig
from sglang.srt.environ import envs
from sglang.srt.eplb.expert_location import ModelConfigForExpertLocation
from sglang.srt.layers.head_adapter import HeadAdapter
from sglang.srt.layers.logit_shaping import LogitShapingProcessor
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.moe.utils import RoutingMethodType, get_moe_runner_backend
from sglang.srt.layers.moved_experts import follow_moved_experts
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.lora.utils import get_hidden_dim
from sglang.srt.model_loader.checked_updates import load_checked, serve_checked
from sglang.srt.model_loader.quantised_tensors import make_check
from sglang.srt.model_loader.strict_loading import Shapes, Weights, name_in_checkpoint
from sglang.srt.models.qwen2_moe import Qwen2MoeSparseMoeBlock
from sglang.srt.models.qwen3_next import (
    ALL_DECODER_LAYER_TYPES,
    Qwen3HybridAttentionDecoderLayer,
    Qwen3NextForCausalLM,
)
from torch import nn


class Qwen3NextNopeAttentionDecoderLayer(Qwen3HybridAttentionDecoderLayer):
    """A layer of full attention without positions: queries and keys are normed, not rotated."""

    def __init__(self, config, layer_id, quant_config=None, prefix="", *args, **kwargs) -> None:
        # Upstream's model takes a type that it does not know for linear attention. Quantisation goes by the prefix.
        prefix = prefix.replace("linear_attn", "self_attn")
        super().__init__(config, layer_id, quant_config, prefix, *args, **kwargs)
        self.rotary_emb = NoRotary()

    def forward_prepare_fused(self, positions, hidden_states):
        """Have no fused prologue: upstream's, on AMD, rotates."""


class NoRotary(nn.Module):
    """Stands where upstream's layers have their rotary embedding and leaves queries and keys as they are."""

    def forward(self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor):
        """Return the arguments but for the positions."""
        return query, key


ALL_DECODER_LAYER_TYPES["nope_attention"] = Qwen3NextNopeAttentionDecoderLayer


def use_sigmoid_router(block: Qwen2MoeSparseMoeBlock, config: Qwen3NextExtConfig) -> None:
    """Give a MoE block the router of DeepSeek-V3 (arXiv:2412.19437, section 2.1.2) in place of softmax.

    An expert's score is the sigmoid of its logit. The best `num_experts_per_tok` by score plus correction bias are
    chosen, from the `topk_group` of `n_group` groups whose two best sum highest; the scores alone weigh them.
    Raises ValueError if the kernels of the experts route by themselves, and by softmax.
    """
    if get_moe_runner_backend().is_triton_kernels():
        raise ValueError(
            'config.json: scoring_func is "sigmoid", and --moe-runner-backend triton_kernel routes by softmax, without '
            "bias and groups; take another"
        )
    block._smallm_router_ok = False  # from 0.5.22 on, AMD's gfx950 has a kernel that routes by softmax otherwise
    block.gate.e_score_correction_bias = nn.Parameter(torch.zeros(config.num_experts, dtype=torch.float32))
    block.topk = TopK(
        top_k=config.num_experts_per_tok,
        layer_id=block.layer_id,
        use_grouped_topk=True,
        num_expert_group=config.n_group,
        topk_group=config.topk_group,
        renormalize=True,
        scoring_func="sigmoid",
        correction_bias=block.gate.e_score_correction_bias,
    )
    # Kernels that route by themselves are told how, some by the layer and some by its runner's configuration.
    experts = block.experts
    for holder in (experts, getattr(experts, "moe_runner_config", None)):
        if holder is not None:
            holder.routing_method_type = RoutingMethodType.DeepSeekV3
    if hasattr(block.topk, "bind_runner_backend"):
        block.topk.bind_runner_backend(experts.runner_backend, routing_method_type=RoutingMethodType.DeepSeekV3)


def end_with_last_layer(layers: nn.ModuleList) -> None:
    """Let the last layer of a model sum its experts' output over ranks, as there is no next layer to do it.

    Upstream's layers leave the sum to the next one's norm where a kernel does both, on a Hopper GPU. From 0.5.11 to
    0.5.20, upstream's Qwen3-Next does not say which layer is its last: there each rank would go on with its own part.
    """
    if hasattr(layers[-1], "layer_communicator"):  # 0.5.21 has none, and sums what is left after the layers
        layers[-1].layer_communicator.is_last_layer = True


def check_server() -> None:
    """Raise ValueError if the server's arguments ask a release for what it does not do for linear attention."""
    if Version(sglang.__version__) >= Version("0.5.20"):
        return
    from sglang.srt.server_args import get_global_server_args

    arguments, release = get_global_server_args(), f"sglang {sglang.__version__}"
    drafts = arguments.speculative_algorithm is not None
    if drafts and Version(sglang.__version__) < Version("0.5.10") and envs.SGLANG_ENABLE_SPEC_V2.get():
        raise ValueError(
            f"SGLANG_ENABLE_SPEC_V2 is set: in {release} that never commits the state of linear attention after drafts,"
            " and tokens would be wrong; unset it"
        )
    for name in ("enable_mis", "multi_item_scoring_delimiter"):  # the second before 0.5.11
        if getattr(arguments, name, None) not in (None, False):
            raise ValueError(
                f"--{name.replace('_', '-')}: in {release} linear attention reads each item after those before it, and "
                "scores would depend on their order; leave it out"
            )


class Qwen3NextExtensions:
    """What the served model and its draft change in what upstream has built; it stands before upstream's class.

    A model that is derived from Qwen3-Next-Ext overrides here what it changes, once for both. The parameters that
    `extend` adds to the model itself are expected in a checkpoint under their names, by themselves; tensors of its
    layers, where a pipeline may have them on another rank, are listed by the methods named `..._shapes`.
    """

    own_shapes: Shapes = MappingProxyType({})
    """The parameters of the model itself that `extend` has added: name to shape."""
    own_names: Collection[str] = ()
    """All that it has added, by their names in a checkpoint."""

    def extend_checked(self, config: Qwen3NextExtConfig, ignored: tuple[str, ...], draft: str = "") -> None:
        """Do `extend`, and check from then on what is loaded; `ignored` and `draft` are those of `Check`."""
        before = {name for name, _ in self.named_parameters()}
        self.extend(config)
        added = {name: parameter for name, parameter in self.named_parameters() if name not in before}
        self.own_shapes = {name: tuple(value.shape) for name, value in added.items() if not name.startswith("model.")}
        self.own_names = {name_in_checkpoint(name, draft) for name in added}
        shapes = {**self.checkpoint_shapes(config), **self.own_shapes}
        serve_checked(self, make_check(self, shapes, ignored, draft, self.own_names))

    def extend(self, config: Qwen3NextExtConfig) -> None:
        """Change the model as `config` says."""
        end_with_last_layer(self.model.layers)
        if config.scoring_func == "sigmoid":
            for layer in self.model.layers:
                use_sigmoid_router(layer.mlp, config)
        self.logits_processor = LogitShapingProcessor(config, self.make_adapter(config))

    def make_adapter(self, config: Qwen3NextExtConfig) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Add what adapts the hidden states [rows, hidden_size] that go to the head, and return it, or None."""
        if not config.head_adapter_rank:
            return None
        self.head_adapter = HeadAdapter(config.hidden_size, config.head_adapter_rank)
        return self.head_adapter.forward  # the module itself would become a second one, under the processor

    def get_hidden_dim(self, module_name: str, layer_idx: int) -> tuple[int, int]:
        """Give how many inputs and outputs a module of a layer has over all ranks, for the buffers of adapters (LoRA).

        Upstream, which asks for this, would forget the gate that its attention has beside the queries.
        """
        if module_name != "qkv_proj":
            return get_hidden_dim(module_name, self.config, None, layer_idx)
        shapes = self.attention_shapes(self.config)
        outputs, inputs = zip(*(shapes[f"self_attn.{part}_proj.weight"] for part in "qkv"), strict=True)
        return inputs[0], sum(outputs)

    @classmethod
    def attention_shapes(cls, config: Qwen3NextExtConfig) -> Shapes:
        """List the tensors of full attention in a checkpoint: name within the layer to shape."""
        hidden, sizes = config.hidden_size, config.checkpoint_sizes
        dim = config.head_dim or hidden // sizes["num_attention_heads"]
        q, kv = sizes["num_attention_heads"] * dim, sizes["num_key_value_heads"] * dim
        gated = 1 + getattr(config, "attn_output_gate", True)
        return {
            "self_attn.q_proj.weight": (gated * q, hidden),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.o_proj.weight": (hidden, q),
            "self_attn.q_norm.weight": (dim,),
            "self_attn.k_norm.weight": (dim,),
        }

    @classmethod
    def linear_attention_shapes(cls, config: Qwen3NextExtConfig) -> Shapes:
        """List the tensors of a gated delta net in a checkpoint: name within the layer to shape."""
        hidden, heads = config.hidden_size, config.checkpoint_sizes["linear_num_value_heads"]
        k = config.checkpoint_sizes["linear_num_key_heads"] * config.linear_key_head_dim
        v = heads * config.linear_value_head_dim
        return {
            "linear_attn.in_proj_qkvz.weight": (2 * k + 2 * v, hidden),
            "linear_attn.in_proj_ba.weight": (2 * heads, hidden),
            "linear_attn.conv1d.weight": (2 * k + v, 1, config.linear_conv_kernel_dim),
            "linear_attn.dt_bias": (heads,),
            "linear_attn.A_log": (heads,),
            "linear_attn.norm.weight": (config.linear_value_head_dim,),
            "linear_attn.out_proj.weight": (hidden, v),
        }

    @classmethod
    def layer_shapes(cls, config: Qwen3NextExtConfig, kind: str) -> Shapes:
        """List the tensors of a decoder layer of a kind, as in `layers_block_type`: name within the layer to shape."""
        hidden = config.hidden_size

        def mlp(prefix: str, inner: int) -> Shapes:
            return {
                f"{prefix}gate_proj.weight": (inner, hidden),
                f"{prefix}up_proj.weight": (inner, hidden),
                f"{prefix}down_proj.weight": (hidden, inner),
            }

        attention = cls.linear_attention_shapes if kind == "linear_attention" else cls.attention_shapes
        shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
        shapes |= {**attention(config), "mlp.gate.weight": (config.num_experts, hidden)}
        if config.scoring_func == "sigmoid":
            shapes["mlp.gate.e_score_correction_bias"] = (config.num_experts,)
        for expert in range(config.num_experts):
            shapes |= mlp(f"mlp.experts.{expert}.", config.checkpoint_sizes["moe_intermediate_size"])
        if shared := config.checkpoint_sizes["shared_expert_intermediate_size"]:
            shapes |= mlp("mlp.shared_expert.", shared)
        shapes["mlp.shared_expert_gate.weight"] = (1, hidden)
        return shapes

    @classmethod
    def head_adapter_shapes(cls, config: Qwen3NextExtConfig) -> Shapes:
        """List the tensors of the head's adapter, none if it is off: name to shape."""
        hidden, rank = config.hidden_size, config.head_adapter_rank
        return {"head_adapter.down.weight": (rank, hidden), "head_adapter.up.weight": (hidden, rank)} if rank else {}


class Qwen3NextExtForCausalLM(Qwen3NextExtensions, Qwen3NextForCausalLM):
    """Upstream's Qwen3-Next with the extensions of its configuration and strict weight loading."""

    ignored: tuple[str, ...] = ("mtp.",)
    """Beginnings of the names of tensors that a checkpoint may have and this model has not."""

    def __init__(
        self, config: Qwen3NextExtConfig, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        config.check_extensions()  # again: --json-model-override-args may have changed it since it was made
        check_server()
        super().__init__(config, quant_config, prefix)
        self.extend_checked(config, self.ignored)
        follow_moved_experts(self.model.layers)

    @classmethod
    def checkpoint_shapes(cls, config: Qwen3NextExtConfig) -> Shapes:
        """List an unquantised checkpoint's tensors but for the draft's: name to shape, before any sharding."""
        hidden, vocab = config.hidden_size, config.vocab_size
        shapes = {
            "model.embed_tokens.weight": (vocab, hidden),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (vocab, hidden),
            **cls.head_adapter_shapes(config),
        }
        for i, kind in enumerate(config.layers_block_type):
            shapes |= {f"model.layers.{i}.{name}": shape for name, shape in cls.layer_shapes(config, kind).items()}
        return shapes

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of tokens."""
        return self.model.embed_tokens

    def forward(self, input_ids, positions, forward_batch, inputs_embeds=None, input_embeds=None, **kwargs):
        """Run on tokens, or on embeddings [tokens, hidden_size], which a request may bring."""
        embeddings = self.embeddings(inputs_embeds, input_embeds)
        return super().forward(input_ids, positions, forward_batch, embeddings, **kwargs)

    def embeddings(self, inputs_embeds: torch.Tensor | None, input_embeds: torch.Tensor | None) -> torch.Tensor | None:
        """Take embeddings by either name in the model's dtype: upstream's model has one, what calls it the other."""
        embeddings = inputs_embeds if input_embeds is None else input_embeds
        return embeddings if embeddings is None else embeddings.to(self.get_input_embeddings().weight.dtype)

    def load_weights(self, weights: Weights) -> set[str]:
        """Load a checkpoint, or an update of some weights. Raises WeightsError naming each tensor that does not fit."""
        return load_checked(self, weights, super().load_weights)

    @classmethod
    def get_model_config_for_expert_location(cls, config: Qwen3NextExtConfig) -> ModelConfigForExpertLocation:
        """Describe the experts for expert-parallel load balancing, which keeps a router's groups together."""
        return ModelConfigForExpertLocation(
            num_layers=config.num_hidden_layers,
            num_logical_experts=config.num_experts,
            num_groups=config.n_group if config.n_group > 1 else None,
        )


EntryClass = Qwen3NextExtForCausalLM
