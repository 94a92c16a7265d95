"""Updates of a running server's weights, as a trainer sends them."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Sequence

import torch
from packaging.version import Version

from engine.harness import RELEASE, post

SESSIONS = Version("0.5.21") <= RELEASE  # tensors are sent between the beginning and the end of an update

Named = Sequence[tuple[str, torch.Tensor]]


def send(address: str, path: str, **body: object) -> tuple[bool, str]:
    """Send an update; give whether it was taken and what the server says."""
    try:
        answer = post(address, path, **body)
    except urllib.error.HTTPError as error:
        if error.code != 400:
            raise
        answer = json.loads(error.read())
    return answer["success"], answer["message"]


def send_tensors(address: str, ranks: int, *of_ranks: Named, load_format: str | None = None) -> tuple[bool, str]:
    """Send tensors, which a server's processes read from this one's memory: the same to all ranks, or each its own."""
    from sglang.srt.utils import MultiprocessingSerializer

    torch.multiprocessing.set_sharing_strategy("file_system")  # the server is no child of this process
    payloads = [
        MultiprocessingSerializer.serialize(_payload(of_ranks[rank % len(of_ranks)], load_format), output_str=True)
        for rank in range(ranks)
    ]
    body: dict[str, object] = {"serialized_named_tensors": payloads}
    if load_format is not None:
        body["load_format"] = load_format
    if SESSIONS:
        assert send(address, "/begin_weight_update")[0]
    answer = send(address, "/update_weights_from_tensor", **body)
    if SESSIONS:
        assert send(address, "/end_weight_update")[0]
    return answer


def _payload(tensors: Named, load_format: str | None) -> object:
    if load_format != "flattened_bucket":
        return list(tensors)
    from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorBucket

    bucket = FlattenedTensorBucket(named_tensors=list(tensors))
    return {"flattened_tensor": bucket.get_flattened_tensor(), "metadata": bucket.get_metadata()}
