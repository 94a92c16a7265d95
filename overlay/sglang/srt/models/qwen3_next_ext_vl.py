"""Qwen3-Next-Ext-VL: a vision tower before Qwen3-Next-Ext. It takes pictures, of any size, and no videos.

A picture is cut into patches, which see each other and only each other, at rotary positions in two dimensions. Each
`merge_size` x `merge_size` of them become one token of the text, which counts positions in one dimension as always.
"""

import sglang
import torch
from packaging.version import Version
from sglang.srt.configs.qwen3_next_ext_vl import Qwen3NextExtVisionConfig, Qwen3NextExtVLConfig
from sglang.srt.eplb.expert_location import ModelConfigForExpertLocation
from sglang.srt.layers.attention.vision import VisionAttention
from sglang.srt.layers.dp_attention import is_dp_attention_enabled
from sglang.srt.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.managers.mm_utils import general_mm_embed_routine
from sglang.srt.managers.schedule_batch import MultimodalDataItem, MultimodalInputs
from sglang.srt.model_loader.checked_updates import load_checked, serve_checked
from sglang.srt.model_loader.quantised_tensors import make_check
from sglang.srt.model_loader.strict_loading import Shapes, Weights
from sglang.srt.models.qwen3_next import Qwen3NextForCausalLM
from sglang.srt.models.qwen3_next_ext import Qwen3NextExtForCausalLM
from sglang.srt.multimodal.mm_utils import run_dp_sharded_mrope_vision_model
from sglang.srt.utils import add_prefix
from torch import nn

try:
    from sglang.srt.runtime_context import get_mm as multimodal_settings
except ImportError:  # releases that have the server's arguments in one piece
    from sglang.srt.server_args import get_global_server_args as multimodal_settings


class VisionMlp(nn.Module):
    """Two linear layers with GELU between, `whole` on each rank or their weights shared among the ranks."""

    def __init__(self, size: int, inner: int, out: int, whole: bool, prefix: str = "") -> None:
        super().__init__()
        first, second = (ReplicatedLinear, ReplicatedLinear) if whole else (ColumnParallelLinear, RowParallelLinear)
        self.fc1 = first(size, inner, prefix=add_prefix("fc1", prefix))
        self.act = nn.GELU()
        self.fc2 = second(inner, out, prefix=add_prefix("fc2", prefix))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., size] to [..., out]."""
        return self.fc2(self.act(self.fc1(x)[0]))[0]


class VisionBlock(nn.Module):
    """Attention and an MLP, each behind a norm."""

    def __init__(self, config: Qwen3NextExtVisionConfig, whole: bool, prefix: str = "") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = VisionAttention(
            embed_dim=config.hidden_size,
            num_heads=config.num_attention_heads,
            projection_size=config.hidden_size,
            use_qkv_parallel=True,
            flatten_batch=True,
            prefix=add_prefix("attn", prefix),
            use_data_parallel=whole,
        )
        inner = config.intermediate_size
        self.mlp = VisionMlp(config.hidden_size, inner, config.hidden_size, whole, add_prefix("mlp", prefix))

    def forward(self, x: torch.Tensor, ends: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Map the patches of some pictures, [1, patches, hidden], where each picture's end in `ends`."""
        x = x + self.attn(self.norm1(x), cu_seqlens=ends, position_embeddings=rotary)
        return x + self.mlp(self.norm2(x))


class VisionMerger(nn.Module):
    """Makes tokens of the text of neighbouring patches."""

    def __init__(self, config: Qwen3NextExtVisionConfig, out: int, whole: bool, prefix: str = "") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.merged = config.hidden_size * config.merge_size**2
        self.mlp = VisionMlp(self.merged, 2 * out, out, whole, add_prefix("mlp", prefix))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [patches, hidden], those of a token one after another, to [tokens, out]."""
        return self.mlp(self.norm(x).view(-1, self.merged))


class VisionTower(nn.Module):
    """Turns the patches of pictures into tokens of the text. Never quantised.

    With `whole`, each rank has all of it and takes other pictures; otherwise the ranks share its weights and pictures.
    """

    def __init__(self, config: Qwen3NextExtVisionConfig, out_size: int, whole: bool, prefix: str = "") -> None:
        super().__init__()
        self.rotary_size = config.hidden_size // config.num_attention_heads // 2
        self.theta = config.rope_theta
        self.spatial_merge_size, self.out_hidden_size = config.merge_size, out_size  # upstream's names for them
        self.patch_embed = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.blocks = nn.ModuleList(
            VisionBlock(config, whole, add_prefix(f"blocks.{i}", prefix)) for i in range(config.num_hidden_layers)
        )
        self.merger = VisionMerger(config, out_size, whole, add_prefix("merger", prefix))

    @property
    def device(self) -> torch.device:
        """Tell where it is: from 0.5.17 on, a rank without a picture puts its empty share there."""
        return self.patch_embed.weight.device

    def forward(self, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """Turn pictures, one after another, into tokens, [tokens, out_size].

        - `patches`: [patches, values], those of a token one after another, tokens in rows from the top left.
        - `grid_thw`: [pictures, 3], 1 and the rows and columns of patches of each picture.
        """
        grids = [(rows, columns) for _, rows, columns in grid_thw.tolist()]
        ends = [0]
        for rows, columns in grids:
            ends.append(ends[-1] + rows * columns)
        x = self.patch_embed(patches.to(self.patch_embed.weight))[None]
        angles = torch.cat([self.angles(rows, columns) for rows, columns in grids]).to(x.device)
        angles = torch.cat((angles, angles), dim=-1)
        rotary = angles.cos(), angles.sin()
        ends = torch.tensor(ends, dtype=torch.int32, device=x.device)
        for block in self.blocks:
            x = block(x, ends, rotary)
        return self.merger(x[0])

    def angles(self, rows: int, columns: int) -> torch.Tensor:
        """Give the angles by which a head turns at each patch of a picture, [patches, half a head], float32."""
        steps = torch.arange(0, self.rotary_size, 2, dtype=torch.float32, device="cpu") / self.rotary_size
        merge = self.spatial_merge_size
        axes = torch.meshgrid(*(torch.arange(n, device="cpu") for n in (rows, columns)), indexing="ij")
        order = [axis.view(rows // merge, merge, columns // merge, merge).transpose(1, 2).flatten() for axis in axes]
        return torch.cat([axis[:, None] / self.theta**steps for axis in order], dim=-1)

    @classmethod
    def checkpoint_shapes(cls, config: Qwen3NextExtVisionConfig, out_size: int) -> Shapes:
        """List its tensors in a checkpoint: name to shape, before any sharding."""
        hidden, inner, merged = config.hidden_size, config.intermediate_size, config.hidden_size * config.merge_size**2

        def linear(name: str, out: int, size: int) -> Shapes:
            return {f"{name}.weight": (out, size), f"{name}.bias": (out,)}

        def norm(name: str) -> Shapes:
            return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}

        block = {
            **norm("norm1"),
            **norm("norm2"),
            **linear("attn.qkv_proj", 3 * hidden, hidden),
            **linear("attn.proj", hidden, hidden),
            **linear("mlp.fc1", inner, hidden),
            **linear("mlp.fc2", hidden, inner),
        }
        return {
            **linear("patch_embed", hidden, 3 * config.patch_size**2),
            **{f"blocks.{i}.{name}": shape for i in range(config.num_hidden_layers) for name, shape in block.items()},
            **norm("merger.norm"),
            **linear("merger.mlp.fc1", 2 * out_size, merged),
            **linear("merger.mlp.fc2", out_size, 2 * out_size),
        }


class Qwen3NextExtVLForConditionalGeneration(nn.Module):
    """A vision tower (`visual.*`) before the text model (`language_model.*`), each of a class that can be another."""

    tower_class = VisionTower
    text_class = Qwen3NextExtForCausalLM

    def __init__(
        self, config: Qwen3NextExtVLConfig, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        config.check_pictures()
        text = config.text_config
        for name in ("linear_num_key_heads", "linear_num_value_heads"):
            if not hasattr(text, f"{name}_cpu"):  # 0.5.9 and 0.5.10 note it in the outer configuration at most
                setattr(text, f"{name}_cpu", getattr(config, f"{name}_cpu", getattr(text, name)))
        self.config, self.quant_config = config, quant_config
        self.sharded_by_picture = multimodal_settings().mm_enable_dp_encoder
        if self.sharded_by_picture and is_dp_attention_enabled() and Version(sglang.__version__) < Version("0.5.9"):
            raise ValueError(
                f"--mm-enable-dp-encoder: with --enable-dp-attention, sglang {sglang.__version__} waits for ranks that "
                "have other requests; leave one of the two out"
            )
        # Where ranks have requests of their own, what they share of the weights would be summed of different pictures.
        whole = self.sharded_by_picture or is_dp_attention_enabled()
        self.visual = self.tower_class(
            config.vision_config, text.hidden_size, whole, prefix=add_prefix("visual", prefix)
        )
        self.language_model = self.text_class(text, quant_config, prefix=add_prefix("language_model", prefix))
        shapes = self.checkpoint_shapes(config)
        own = {f"language_model.{name}" for name in self.language_model.own_names}
        own |= {name for name in shapes if name.startswith("visual.")}
        serve_checked(self, make_check(self, shapes, ("language_model.mtp.",), own=own))

    def checkpoint_shapes(self, config: Qwen3NextExtVLConfig) -> Shapes:
        """List an unquantised checkpoint's tensors: name to shape, before any sharding."""
        text = config.text_config
        of_parts = {
            "visual": self.visual.checkpoint_shapes(config.vision_config, text.hidden_size),
            "language_model": {**self.language_model.checkpoint_shapes(text), **self.language_model.own_shapes},
        }
        return {f"{part}.{name}": shape for part, shapes in of_parts.items() for name, shape in shapes.items()}

    def get_hidden_dim(self, module_name: str, layer_idx: int) -> tuple[int, int]:
        """Give how many inputs and outputs a module of the text model has, for the buffers of adapters (LoRA)."""
        return self.language_model.get_hidden_dim(module_name, layer_idx)

    def should_apply_lora(self, module_name: str) -> bool:
        """Tell whether adapters may change a module: those of the text model's layers, none of the vision tower."""
        return module_name.startswith("language_model.model.layers.")

    def pad_input_ids(self, input_ids, mm_inputs: MultimodalInputs):
        """Replace each picture's tokens by numbers that stand for its content, by which prefixes are compared."""
        padded = input_ids[:]
        for item in mm_inputs.mm_items:
            values = getattr(item, "pad_values", None) or (item.pad_value,)
            for start, last in item.offsets:
                for place in range(start, last + 1):
                    padded[place] = values[(place - start) % len(values)]
        return padded

    def get_image_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:
        """Give the tokens of pictures, one after another, [tokens, hidden]."""
        patches = torch.cat([item.feature for item in items]).to(self.visual.patch_embed.weight)
        grids = [[1, *item.model_specific_data["grid"]] for item in items]
        if self.sharded_by_picture:
            return run_dp_sharded_mrope_vision_model(self.visual, patches, grids, rope_type="rope_3d")
        return self.visual(patches, torch.tensor(grids))

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of tokens."""
        return self.language_model.get_input_embeddings()

    @torch.no_grad()
    def forward(self, input_ids, positions, forward_batch, input_embeds=None, **kwargs):
        """Run a batch: pictures become embeddings in the place of their tokens, or requests bring all embeddings."""
        if input_embeds is not None:
            return self.language_model(input_ids, positions, forward_batch, input_embeds=input_embeds)
        left = forward_batch.input_embeds  # of a prefill, which old releases keep, for upstream's routine to write into
        if left is not None and len(left) != len(input_ids):
            forward_batch.input_embeds = None
        return general_mm_embed_routine(
            input_ids=input_ids,
            forward_batch=forward_batch,
            language_model=self.language_model,
            multimodal_model=self,
            positions=positions,
        )

    def load_weights(self, weights: Weights) -> set[str]:
        """Load a checkpoint, or an update of some weights. Raises WeightsError naming each tensor that does not fit."""

        def load_text(fitting: Weights) -> set[str]:
            named = ((name.removeprefix("language_model."), tensor) for name, tensor in fitting)
            return Qwen3NextForCausalLM.load_weights(self.language_model, named)

        return load_checked(self, weights, load_text)

    @property
    def routed_experts_weights_of_layer(self):
        """Give the experts' weights by layer, for expert-parallel load balancing."""
        return self.language_model.routed_experts_weights_of_layer

    @classmethod
    def get_model_config_for_expert_location(cls, config: Qwen3NextExtVLConfig) -> ModelConfigForExpertLocation:
        """Describe the experts for expert-parallel load balancing."""
        return Qwen3NextExtForCausalLM.get_model_config_for_expert_location(config.text_config)


EntryClass = Qwen3NextExtVLForConditionalGeneration
