"""Keep what each module of an engine gives, while a file says so. It runs by itself, as `sitecustomize` of an engine.

The variable SGLANG_OVERLAY_CAPTURE names a folder. While it holds a file `on`, each pass of the model is written there
as pass-NNNNN.pt: the name of each module, and the tensors that it gave, copied at once, for norms write where others
have. Nothing else of the engine changes.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "sglang.srt.model_executor.model_runner"


class Capture:
    """The hooks of one model."""

    def __init__(self, model: Any, folder: Path) -> None:  # noqa: ANN401  # torch is not imported yet
        self.folder, self.passes = folder, 0
        self.kept: dict[str, list[Any]] = {}
        for name, module in model.named_modules():
            if name:
                module.register_forward_hook(self.hook(name))
        model.forward = self.finishing(model.forward)  # which upstream calls by itself: no hook of the model sees it

    def hook(self, name: str) -> Any:  # noqa: ANN401
        """Make what keeps the first two tensors that a module gives."""

        def keep(_: object, __: object, output: Any) -> None:  # noqa: ANN401
            if (self.folder / "on").exists():
                given = output if isinstance(output, (tuple, list)) else [output]
                tensors = [_copy(tensor) for tensor in given[:2] if hasattr(tensor, "detach")]
                if tensors:
                    self.kept[name] = tensors

        return keep

    def finishing(self, forward: Any) -> Any:  # noqa: ANN401
        """Make what writes what a pass has given, once its logits are there, or the vectors of its texts."""

        @functools.wraps(forward)
        def and_finish(*args: object, **kwargs: object) -> object:
            output = forward(*args, **kwargs)
            for name, given in (("logits", "next_token_logits"), ("vector", "embeddings")):
                if self.kept and (found := getattr(output, given, None)) is not None:
                    self.write(name, found)
            return output

        return and_finish

    def write(self, name: str, given: Any) -> None:  # noqa: ANN401
        """Write what a pass has given in the end, and its modules before."""
        import torch

        self.kept[name] = [_copy(given if hasattr(given, "detach") else torch.stack(given))]
        path = self.folder / f"pass-{self.passes:05}.pt"
        torch.save(self.kept, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
        self.passes += 1
        self.kept = {}


def _copy(tensor: Any) -> Any:  # noqa: ANN401
    return tensor.detach().to("cpu", copy=True)


def change(module: ModuleType, folder: Path) -> None:
    """Register the hooks on each model that is loaded, but for drafts."""
    load = module.ModelRunner.load_model

    def and_capture(runner: Any, *args: object, **kwargs: object) -> object:  # noqa: ANN401
        result = load(runner, *args, **kwargs)
        import torch

        if not runner.is_draft_worker and torch.distributed.get_rank() == 0:
            Capture(runner.model, folder)
        return result

    module.ModelRunner.load_model = and_capture


class _Finder(importlib.abc.MetaPathFinder):
    """Changes one module once it is imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def and_change(module: ModuleType) -> None:
            execute(module)
            change(module, self.folder)

        spec.loader.exec_module = and_change  # type: ignore[method-assign]
        return spec


if "SGLANG_OVERLAY_CAPTURE" in os.environ:
    sys.meta_path.insert(0, _Finder(Path(os.environ["SGLANG_OVERLAY_CAPTURE"])))
