"""What a person names as a checkpoint: a folder, a GGUF file, or a name on the hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overlay_tools.checkpoints import gguf, hub
from overlay_tools.errors import CheckpointError
from overlay_tools.settings import cache_dir
from overlay_tools.user_files import parse_json, read_text

HELP = "a checkpoint: its folder, a GGUF file, or its name on the Hugging Face hub"


def check_name(name: str) -> None:
    """Raise CheckpointError, before anything is built, if nothing can be served under a name."""
    path = Path(name)
    if gguf.is_gguf(path):
        gguf.check(path)
    elif not (path / "config.json").is_file() and (path.exists() or not hub.is_hub_name(name)):
        raise CheckpointError(f"{name} is not a checkpoint: it has no config.json.", hint=f"Name {HELP}.")


def planned(name: str) -> Path:
    """Return what a server can be given for a name: a folder, which may not be there yet, or the name on the hub."""
    path = Path(name)
    return gguf.converted(path, cache_dir()) if gguf.is_gguf(path) else path


def open_checkpoint(name: str, python: Path, flags: Sequence[str]) -> Path:
    """Return the folder of a checkpoint, made or downloaded first if that is needed.

    Parameters: `python`, the interpreter of an engine's environment; `flags`, a server's, which may name a revision.
    Raises CheckpointError if it cannot be had.
    """
    path = Path(name)
    if gguf.is_gguf(path):
        return gguf.convert(path, python, cache_dir())
    if path.exists() or not hub.is_hub_name(name):
        return path
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--revision")
    return hub.download(name, python, options.parse_known_args(flags)[0].revision)


def takes_pictures(name: str) -> bool | None:
    """Tell whether a checkpoint's configuration has a vision tower, None where it is not in a folder here.

    Raises CheckpointError if it cannot be read.
    """
    path = Path(name) / "config.json"
    return "vision_config" in read_config(path) if path.exists() else None


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json. Raises CheckpointError if it cannot be read, or is no JSON object."""
    again = "Mend it, or download it again."
    try:
        config = parse_json(read_text(path, CheckpointError, again))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.", hint=again) from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold a JSON object.", hint=again)
    return config
