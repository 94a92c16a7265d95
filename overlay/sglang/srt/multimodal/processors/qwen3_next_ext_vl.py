"""What a request's pictures go through before Qwen3-Next-Ext-VL: read, checked, resized, cut, given their tokens.

Upstream's loader says of a picture that cannot be used now that the request, now that the server is at fault. Here it
is always the request: every error is a ValueError, which each release answers with status 400 and its message.
"""

import asyncio
import base64
import hashlib
import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy
import torch
from PIL import Image, ImageOps
from sglang.srt.configs.qwen3_next_ext_vl import Qwen3NextExtVisionConfig
from sglang.srt.managers import schedule_batch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem
from sglang.srt.models.qwen3_next_ext_vl import Qwen3NextExtVLForConditionalGeneration
from sglang.srt.multimodal.processors.base_processor import BaseMultimodalProcessor
from sglang.srt.utils import ImageData, get_image_bytes

MAX_SIDE = 16_384
MAX_PIXELS = 64 * 2**20  # 192 MiB when decoded
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")

# Early releases take a dictionary of the same keys.
Output = getattr(schedule_batch, "MultimodalProcessorOutput", dict)


def read_picture(source: object, name: str) -> Image.Image:
    """Decode a picture: bytes, a path, a file:, data: or http(s): address, or base64. `name` stands for it in errors.

    Transparent parts become white, and it is turned as its metadata say. Raises ValueError, always short, whatever is
    wrong: it cannot be had, is not a picture, is empty or too large, or cannot be decoded.
    """
    try:
        picture = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(_bytes(source)), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} is too large: at most {MAX_PIXELS:,} pixels are taken") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture in one of the formats {', '.join(FORMATS)}") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or type(error).__name__}") from None
    except Exception as error:  # libraries that fetch and decode raise anything
        raise ValueError(f"{name} cannot be read: {str(error)[:200] or type(error).__name__}") from None
    width, height = picture.size
    if not width or not height:
        raise ValueError(f"{name} has no pixels: it is {width} x {height}")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} is too large: it is {width} x {height}; at most {MAX_SIDE:,} pixels a side and {MAX_PIXELS:,} "
            "in all are taken"
        )
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I;16"):  # Pillow would cut off at 255
            picture = Image.fromarray((numpy.asarray(picture) // 257).astype(numpy.uint8))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")
    except Exception as error:  # a broken picture fails anywhere in its decoder
        raise ValueError(f"{name} is broken: {str(error)[:200] or type(error).__name__}") from None


def _bytes(source: object) -> bytes:
    if isinstance(source, ImageData):
        source = source.url
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str) or not source:
        raise ValueError(f"it must be a path, an address or base64, not {source and type(source).__name__!r}")
    if source.startswith(("http://", "https://")):
        return get_image_bytes(source)  # upstream's rules for addresses
    if source.startswith("data:"):
        return base64.b64decode(source.partition(",")[2], validate=True)
    if source.startswith("file://"):
        return Path(unquote(urlparse(source).path)).read_bytes()
    # Base64 of a JPEG begins with a slash too.
    if source.lower().endswith(SUFFIXES) or os.path.isfile(source):  # noqa: PTH113  # Path raises at long ones
        return Path(source).read_bytes()
    return base64.b64decode(source, validate=True)


def patches_of(picture: Image.Image, config: Qwen3NextExtVisionConfig) -> tuple[torch.Tensor, tuple[int, int]]:
    """Resize a picture and cut it into patches: [patches, values] from -1 to 1, and their rows and columns.

    Patches that become one token stand together, in rows from the top left; tokens likewise.
    """
    patch, merge = config.patch_size, config.merge_size
    rows, columns = config.fitted(*picture.size)
    resized = picture.resize((columns * merge * patch, rows * merge * patch), Image.Resampling.BICUBIC)
    values = torch.from_numpy(numpy.array(resized)).float() / 127.5 - 1
    cut = values.view(rows, merge, patch, columns, merge, patch, 3).permute(0, 3, 1, 4, 6, 2, 5)
    return cut.reshape(-1, 3 * patch**2).contiguous(), (rows * merge, columns * merge)


def content_hash(patches: torch.Tensor, grid: tuple[int, int]) -> int:
    """Hash a picture for the prefix cache. Two of other proportions may have the same patches: the grid counts too."""
    digest = hashlib.sha256(struct.pack("<2q", *grid) + patches.numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Qwen3NextExtVLProcessor(BaseMultimodalProcessor):
    """Makes items of a request's pictures and expands their tokens in its prompt."""

    models = (Qwen3NextExtVLForConditionalGeneration,)

    def __init__(self, hf_config, server_args, _processor, *args, **kwargs) -> None:
        hf_config.check_pictures()
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.tokenizer = getattr(_processor, "tokenizer", _processor)
        self.image_token_id = hf_config.image_token_id

    async def process_mm_data_async(self, image_data, audio_data, input_text, request_obj, *args, **kwargs):
        """Process a request: `input_text` is its prompt, as text or tokens, with one token a picture.

        Raises ValueError when a picture cannot be used, there are more or fewer than tokens for them, or there is
        sound or video.
        """
        if audio_data or getattr(request_obj, "video_data", None):
            raise ValueError("this model takes pictures, and neither sound nor video")
        tokens = self.tokenizer.encode(input_text) if isinstance(input_text, str) else list(input_text)
        sources = list(image_data or [])
        places = tokens.count(self.image_token_id)
        if places != len(sources):
            raise ValueError(f"the prompt has places for {places} pictures, and {len(sources)} were given")
        loop = asyncio.get_running_loop()
        work = [loop.run_in_executor(self.io_executor, self._item, i, source) for i, source in enumerate(sources, 1)]
        items = await asyncio.gather(*work)
        tokens = self._expand(tokens, items)
        return Output(input_ids=tokens, mm_items=items, im_token_id=self.image_token_id)

    def _item(self, number: int, source: object) -> MultimodalDataItem:
        config = self.hf_config.vision_config
        patches, grid = patches_of(read_picture(source, f"picture {number}"), config)
        return MultimodalDataItem(
            modality=Modality.IMAGE,
            feature=patches,
            hash=content_hash(patches, grid),
            model_specific_data={"grid": list(grid)},
        )

    def _expand(self, tokens: Sequence[int], items: Sequence[MultimodalDataItem]) -> list[int]:
        """Repeat each picture's token as often as the picture has tokens, and note in its item where they are."""
        expanded: list[int] = []
        left = iter(items)
        for token in tokens:
            times = 1
            if token == self.image_token_id:
                item = next(left)
                times = len(item.feature) // self.hf_config.vision_config.merge_size**2
                item.offsets = [(len(expanded), len(expanded) + times - 1)]
            expanded += [token] * times
        return expanded
