"""GGUF files as checkpoints: Transformers reads one, and it is written anew in float32, once."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from filelock import FileLock

from overlay_tools import console
from overlay_tools.errors import CheckpointError, ToolError
from overlay_tools.subprocesses import run
from overlay_tools.user_files import naming

_MAGIC = b"GGUF"
_SCRIPT = Path(__file__).with_name("gguf_script.py")


def is_gguf(path: Path) -> bool:
    """Tell whether a path names a GGUF file, by its suffix."""
    return path.suffix.lower() == ".gguf"


def check(file: Path) -> None:
    """Raise CheckpointError if there is no such file, or it begins as no GGUF file does."""
    if not file.is_file():
        raise CheckpointError(f"There is no file {file}.", hint="Name a GGUF file, or a checkpoint's folder.")
    with naming(file), file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise CheckpointError(f"{file} is not a GGUF file, whatever its name says.", hint="Download it again.")


def converted(file: Path, cache: Path) -> Path:
    """Return the folder of the checkpoint that a GGUF file becomes, which may not be there yet.

    Raises CheckpointError if it is no GGUF file.
    """
    check(file)
    digest = hashlib.sha256(_SCRIPT.read_bytes())  # another script may make another checkpoint
    with naming(file), file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return cache / "gguf" / digest.hexdigest()[:32]


def convert(file: Path, python: Path, cache: Path) -> Path:
    """Make a checkpoint of a GGUF file, once, and return its folder.

    Parameters: `python`, an interpreter that has transformers, accelerate and gguf.
    Raises CheckpointError if it is no GGUF file, or Transformers does not read all of it.
    """
    folder = converted(file, cache)
    part = folder.with_name(f"{folder.name}.part")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # another command may make it now, or was killed at it
        if not (folder / "config.json").is_file():
            for left in (folder, part):
                shutil.rmtree(left, ignore_errors=True)
            with console.step(f"Convert {file.name} to float32"):
                _convert(file, python, part)
            part.replace(folder)
    return folder


def _convert(file: Path, python: Path, out: Path) -> None:
    try:
        run([python, "-IW", "ignore", _SCRIPT, file, out])
    except ToolError as error:
        shutil.rmtree(out, ignore_errors=True)
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(
            f"{file} cannot be converted: {said[-1]}",
            hint="Transformers must read all of it, and its float32 values need four bytes each, in memory and on the"
            " disk of the cache. Otherwise take the checkpoint that it was made from.",
        ) from None
