"""Download a checkpoint of the hub, and write its folder, or why not, to a file. It runs by itself.

python hub_script.py OWNER/NAME FILE [REVISION]
"""

from __future__ import annotations

import sys
from pathlib import Path

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
_OWN = "consolidated*.safetensors"  # the same weights in Mistral's own form


def main(name: str, out: Path, revision: str | None = None) -> int:
    """Download what a server reads of a checkpoint; return the exit status."""
    import huggingface_hub

    try:
        said, status = (
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES, ignore_patterns=_OWN),
            0,
        )
        if not any(Path(said).glob("*.safetensors")):  # an old checkpoint, or one of Mistral's that has no other form
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=("*.bin", _OWN))
    except Exception as error:  # the libraries beneath have many kinds of them
        said, status = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", 1
    out.write_text(said, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
