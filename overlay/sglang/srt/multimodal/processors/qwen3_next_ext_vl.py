"""What a request's pictures go through before Qwen3-Next-Ext-VL: read, resized, cut, given their tokens."""

import asyncio
import hashlib
import struct
from collections.abc import Sequence

import numpy
import torch
from PIL import Image
from sglang.srt.managers import schedule_batch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem
from sglang.srt.models.qwen3_next_ext_vl import Qwen3NextExtVLForConditionalGeneration
from sglang.srt.multimodal.pictures import PictureReader, allowed_folders
from sglang.srt.multimodal.processors.base_processor import BaseMultimodalProcessor

# Early releases take a dictionary of the same keys.
Output = getattr(schedule_batch, "MultimodalProcessorOutput", dict)


def content_hash(patches: torch.Tensor, grid: tuple[int, int]) -> int:
    """Hash a picture for the prefix cache. Two of other proportions may have the same patches: the grid counts too."""
    digest = hashlib.sha256(struct.pack("<2q", *grid) + patches.numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Qwen3NextExtVLProcessor(BaseMultimodalProcessor):
    """Makes items of a request's pictures and expands their tokens in its prompt."""

    models = (Qwen3NextExtVLForConditionalGeneration,)

    def __init__(self, hf_config, server_args, _processor, *args, **kwargs) -> None:
        hf_config.check_pictures()
        hf_config.limit_pictures(server_args.mm_process_config or {})
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.tokenizer = getattr(_processor, "tokenizer", _processor)
        self.image_token_id = hf_config.image_token_id
        self.folders = allowed_folders()

    async def process_mm_data_async(self, image_data, audio_data, input_text, request_obj, *args, **kwargs):
        """Process a request: `input_text` is its prompt, as text or tokens, with one token a picture.

        Raises ValueError when a picture cannot be used, there are more or fewer than tokens for them, there is sound or
        video, or the request has settings of its own.
        """
        if getattr(request_obj, "mm_processor_kwargs", None):  # from 0.5.23 on
            raise ValueError("this model takes no mm_processor_kwargs: the server's settings hold for all pictures")
        if audio_data or getattr(request_obj, "video_data", None):
            raise ValueError("this model takes pictures, and neither sound nor video")
        tokens = self.tokenizer.encode(input_text) if isinstance(input_text, str) else list(input_text)
        sources = list(image_data or [])
        places = tokens.count(self.image_token_id)
        if places != len(sources):
            raise ValueError(f"the prompt has places for {places} pictures, and {len(sources)} were given")
        loop, reader = asyncio.get_running_loop(), PictureReader(self.folders)
        work = [
            loop.run_in_executor(self.io_executor, self._item, reader, source, f"picture {number}")
            for number, source in enumerate(sources, 1)
        ]
        items = await asyncio.gather(*work)
        tokens = self._expand(tokens, items)
        return Output(input_ids=tokens, mm_items=items, im_token_id=self.image_token_id)

    def _item(self, reader: PictureReader, source: object, name: str) -> MultimodalDataItem:
        with reader.decoded(source, name) as picture:
            patches, grid = self.patches_of(picture)
        return MultimodalDataItem(
            modality=Modality.IMAGE,
            feature=patches,
            hash=content_hash(patches, grid),
            model_specific_data={"grid": list(grid)},
        )

    def patches_of(self, picture: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
        """Resize a picture and cut it into patches: [patches, values] from -1 to 1, and their rows and columns.

        Patches that become one token stand together, in rows from the top left; tokens likewise.
        """
        config = self.hf_config.vision_config
        patch, merge = config.patch_size, config.merge_size
        rows, columns = config.fitted(*picture.size)
        resized = picture.resize((columns * merge * patch, rows * merge * patch), Image.Resampling.BICUBIC)
        values = torch.from_numpy(numpy.array(resized)).float() / 127.5 - 1
        cut = values.view(rows, merge, patch, columns, merge, patch, 3).permute(0, 3, 1, 4, 6, 2, 5)
        return cut.reshape(-1, 3 * patch**2).contiguous(), (rows * merge, columns * merge)

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
