"""Checkpoints of the Hugging Face hub, by their names there."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from overlay_tools import console
from overlay_tools.errors import CheckpointError
from overlay_tools.subprocesses import run_attached

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_name(name: str) -> bool:
    """Tell whether a checkpoint is named as on the hub: OWNER/NAME."""
    return _NAME.fullmatch(name) is not None


def download(name: str, python: Path, revision: str | None = None) -> Path:
    """Download a checkpoint of the hub into Hugging Face's own cache, as far as it is not there, and return its folder.

    Parameters: `python`, an interpreter that has huggingface_hub; `revision`, a branch, tag or commit of it.
    Raises CheckpointError if the hub cannot be reached, has no such checkpoint, or does not let this user have it.
    """
    console.line(f"Look for {name} on the hub")
    quiet = {} if sys.stderr.isatty() else {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        script = Path(__file__).with_name("hub_script.py")
        status = run_attached([python, "-IW", "ignore", script, name, out, *filter(None, [revision])], env=quiet)
        said = out.read_text(encoding="utf-8") if out.exists() else f"it ended with status {status}"
    if status:
        raise CheckpointError(
            f"There is no folder {name} here, and it cannot be had from the hub: {said}",
            hint="Name a folder, or OWNER/NAME as the hub does; HF_TOKEN opens what is not for all.",
        )
    return Path(said)
