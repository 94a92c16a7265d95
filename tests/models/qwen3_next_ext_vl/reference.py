"""The reference model of Qwen3-Next-Ext-VL: a vision tower in plain torch before the reference model of Qwen3-Next-Ext.

A picture is resized so that its sides are multiples of `patch_size * merge_size`, cut into patches, and becomes one
token of the text for each `merge_size` x `merge_size` patches. Tensors are named as in the checkpoint.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from models.qwen3_next_ext.reference import Qwen3NextExt, Qwen3NextExtConfig


class VisionTower(nn.Module):  # type: ignore[misc]
    """Patches, blocks of full attention with rotary positions in two dimensions, and a merger of patches to tokens."""

    def __init__(self, config: Mapping[str, Any], out_size: int) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["layer_norm_eps"]
        self.patch, self.merge = config["patch_size"], config["merge_size"]
        self.rotary_size, self.theta = hidden // config["num_attention_heads"] // 2, config["rope_theta"]
        self.patch_embed = nn.Linear(3 * self.patch**2, hidden)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config["num_hidden_layers"]))
        self.merger = _Merger(hidden, self.merge**2, out_size, eps)

    def tokens(self, picture: torch.Tensor) -> int:
        """Say how many tokens a picture, [3, height, width], becomes."""
        return int(picture.shape[-2] * picture.shape[-1] // (self.patch * self.merge) ** 2)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Turn [pictures, 3, height, width] into [pictures, tokens, width of the text model]."""
        count, _, height, width = pictures.shape
        p, m = self.patch, self.merge
        rows, columns = height // p, width // p
        # Patches that become one token stand together, in rows from the top left; tokens likewise.
        x = pictures.view(count, 3, rows // m, m, p, columns // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
        x = self.patch_embed(x.reshape(count, rows * columns, 3 * p * p).to(self.patch_embed.weight))
        row = torch.arange(rows, device=x.device)[:, None].expand(rows, columns)
        column = torch.arange(columns, device=x.device).expand(rows, columns)
        of_patch = [
            axis.reshape(rows // m, m, columns // m, m).transpose(1, 2).flatten().float() for axis in (row, column)
        ]
        steps = torch.arange(0, self.rotary_size, 2, device=x.device).float() / self.rotary_size
        angles = torch.cat([axis[:, None] / self.theta**steps for axis in of_patch], dim=-1).repeat(1, 2)
        for block in self.blocks:
            x = block(x, angles.cos().to(x), angles.sin().to(x))
        return self.merger(x)


class _Block(nn.Module):  # type: ignore[misc]
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["layer_norm_eps"]
        self.norm1, self.norm2 = nn.LayerNorm(hidden, eps), nn.LayerNorm(hidden, eps)
        self.attn = _Attention(hidden, config["num_attention_heads"])
        self.mlp = _Mlp(hidden, config["intermediate_size"], hidden)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), cosine, sine)
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (part * cosine + _turned(part) * sine for part in (q, k))
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _turned(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class _Mlp(nn.Module):  # type: ignore[misc]
    def __init__(self, size: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Merger(nn.Module):  # type: ignore[misc]
    def __init__(self, hidden: int, patches: int, out: int, eps: float) -> None:
        super().__init__()
        self.patches = patches
        self.norm = nn.LayerNorm(hidden, eps)
        self.mlp = _Mlp(patches * hidden, 2 * out, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm(x).unflatten(1, (-1, self.patches)).flatten(2))


class Qwen3NextExtVL(nn.Module):  # type: ignore[misc]  # torch has no types
    """Vision tower and text model of a configuration, as config.json has it."""

    tower_class = VisionTower
    text_class = Qwen3NextExt

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config
        text = Qwen3NextExtConfig.from_dict(config["text_config"])
        text._attn_implementation = "eager"
        self.visual = self.tower_class(config["vision_config"], text.hidden_size)
        self.language_model = self.text_class(text)

    @classmethod
    def load(cls, folder: Path) -> Qwen3NextExtVL:
        """Load a checkpoint folder in float32. Raises RuntimeError unless its tensors are the model's."""
        model = cls(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        tensors: dict[str, torch.Tensor] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(shard)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        model.eval()
        return model

    def expand(self, tokens: Sequence[int], pictures: Sequence[torch.Tensor]) -> list[int]:
        """Repeat each picture's token as often as the picture has tokens. `pictures` are as in `forward`."""
        expanded: list[int] = []
        left = iter(pictures)
        for token in tokens:
            times = self.visual.tokens(next(left)) if token == self.config["image_token_id"] else 1
            expanded += [token] * times
        if next(left, None) is not None:
            raise ValueError("more pictures than tokens for them")
        return expanded

    def forward(self, tokens: torch.Tensor, pictures: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """Give the hidden states of every position, [batch, length, hidden], for `language_model.head`.

        - `tokens`: [batch, length], expanded.
        - `pictures`: of the whole batch in the order of their tokens, each [3, height, width] from -1 to 1, both
          sides multiples of patch and merge size. A tensor, [pictures, 3, height, width], when all are of one size.
        """
        embedded = self.language_model.model.embed_tokens(tokens)
        if len(pictures):
            if isinstance(pictures, torch.Tensor):
                features = self.visual(pictures).flatten(0, 1)
            else:
                features = torch.cat([self.visual(picture[None])[0] for picture in pictures])
            places = (tokens == self.config["image_token_id"])[..., None].expand_as(embedded)
            embedded = embedded.masked_scatter(places, features.to(embedded.dtype))
        return self.language_model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state

    def logits(self, tokens: torch.Tensor, pictures: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """Give the logits of every position, [batch, length, vocab]. The arguments are those of `forward`."""
        return self.language_model.head(self(tokens, pictures))


def fitted(width: int, height: int, config: Mapping[str, Any]) -> tuple[int, int]:
    """Give the width and height to which a picture is resized, by a checkpoint's `vision_config`.

    The area is brought between `min_pixels` and `max_pixels`, the sides to multiples of patch and merge size. A picture
    too long for that keeps its shorter side as small as that allows, and its longer side is squeezed.
    """
    unit = config["patch_size"] * config["merge_size"]
    most = config["max_pixels"] // unit**2
    area = width * height
    scale = math.sqrt(min(max(area, config["min_pixels"]), config["max_pixels"]) / area)
    columns = min(max(round(width * scale / unit), 1), most)
    rows = min(max(round(height * scale / unit), 1), most // columns)
    return columns * unit, rows * unit


def prepared(file: bytes, config: Mapping[str, Any]) -> torch.Tensor:
    """Read a picture's file as the model takes it: on white where it is transparent, resized, from -1 to 1."""
    from PIL import Image  # training does without

    picture = Image.open(io.BytesIO(file))
    if picture.mode == "I;16":
        values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.int16).int() % 2**16 // 257
        picture = Image.frombytes("L", picture.size, bytes(values.tolist()))
    picture = picture.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    picture = picture.resize(fitted(picture.width, picture.height, config), Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 127.5 - 1
