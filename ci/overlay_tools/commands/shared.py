"""What several commands have in common."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from overlay_tools import console
from overlay_tools.checkpoints import named
from overlay_tools.commands.options import check_places, count
from overlay_tools.engines.device import Device, choose_device
from overlay_tools.engines.environment import engine_environment
from overlay_tools.errors import OverlayError, UsageError
from overlay_tools.proving.memory import choose_reference_device, count_tensors
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import THIS_PYTHON, get_release, load_lock
from overlay_tools.wheels.builder import BuiltWheel
from overlay_tools.wheels.provenance import statement_of


def engine_folder(project: Project, version: str, python: str | None, *, gpu: bool, plugin: bool = False) -> Path:
    """Return the folder of the environment of a release that is kept for the next time, one for each device."""
    name = f"{version}-py{python or THIS_PYTHON}{'-plugin' if plugin else ''}{'-gpu' if gpu else ''}"
    return project.root / ".nox" / "engines" / name


def open_engine(
    project: Project, version: str, python: str | None, *, gpu: bool, plugin: bool = False
) -> AbstractContextManager[Path]:
    """Make or update the environment that `engine_folder` names.

    Parameters: as of `engine_environment`, whose result this returns.
    """
    folder = engine_folder(project, version, python, gpu=gpu, plugin=plugin)
    return engine_environment(project, version, python, folder, gpu=gpu, plugin=plugin)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a checkpoint is computed.

    `dtype`, in which the engine computes; `where` a reference model does, as torch names it; `drafts`, whether the
    checkpoint has a head for them; `state`, whether it keeps one beside its KV cache.
    """

    dtype: str
    where: str
    drafts: bool
    state: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """What the commands begin with that ask an engine, and mostly a reference model, about a checkpoint.

    `version`, the release; `device`, the engine's; `flags`, upstream's arguments that a person has given; `reference`,
    how the reference model computes: in float32 if "exact", in the engine's dtype if "alike" or "beside", at the same
    time as the engine if "beside"; None if there is none.
    """

    version: str
    device: Device
    flags: Sequence[str]
    reference: Literal["exact", "alike", "beside"] | None

    def plan(self, checkpoint: Path) -> Plan:
        """Plan how a checkpoint is computed.

        Raises an OverlayError if it is none, or memory does not take it.
        """
        config = named.read_config(checkpoint / "config.json")
        dtype = _engine_dtype(config, self.flags, self.device.gpu)
        # Upstream loads other formats too, and dummy weights: what is measured need not be safetensors.
        counted = self.reference in ("exact", "alike") or any(checkpoint.glob("*.safetensors"))
        tensors = count_tensors(checkpoint) if counted else {}
        of_reference = "float32" if self.reference == "exact" else self.reference and dtype
        gpus = _ranks(self.flags) if self.device.gpu else 0
        where = choose_reference_device(tensors, dtype, gpus, of_reference, together=self.reference == "beside")
        # Named as of Qwen3-Next, or as of DeepSeek-V3: a layer after the last.
        heads = ("mtp.", f"model.layers.{config.get('num_hidden_layers')}.")
        return Plan(
            dtype=dtype,
            where=where,
            drafts=any(name.startswith(heads) for name in tensors),
            state=any(".linear_attn." in name for name in tensors),
        )


def begin(
    project: Project,
    arguments: argparse.Namespace,
    reference: Literal["exact", "alike", "beside"] | None,
    writes: Mapping[str, Path | None],
    reads: Sequence[str | Path | None] = (),
    *,
    asked: str = "The engine",
) -> Begun:
    """Refuse what cannot be done before anything is built, and say where what is asked runs.

    Parameters: `arguments`, with `checkpoint`, `version`, `reference` and `passed_on`; `reference`, as of `Begun`;
    `writes`, the files that options name to be written; `reads`, what may be a file that is read; `asked`, what is
    named as running there.
    Raises an OverlayError.
    """
    version = arguments.version or project.default
    get_release(load_lock(project.lock), version, project.lock)
    named.check_name(arguments.checkpoint)
    check_flags(arguments.passed_on, "CHECKPOINT")
    check_class(arguments.reference)
    check_places(writes, reads)
    begun = Begun(version=version, device=choose_device(), flags=arguments.passed_on, reference=reference)
    here = Path(arguments.checkpoint)
    if (here / "config.json").is_file():  # another is made or fetched with the engine's environment, and planned then
        begun.plan(here)
    console.line(f"{asked} runs on {'a GPU' if begun.device.gpu else 'the CPU'}: {begun.device.why}.")
    return begun


def _engine_dtype(config: Mapping[str, Any], flags: Sequence[str], gpu: bool) -> str:
    """Return in what the engine computes: what upstream's argument says, or else as it does by default here."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dtype", default="auto" if gpu else "float32")
    named: str = parser.parse_known_args(flags)[0].dtype
    if named != "auto":
        return {"half": "float16", "float": "float32"}.get(named, named)
    text = config.get("text_config")
    text = text if isinstance(text, dict) else {}
    declared = (of.get("dtype") or of.get("torch_dtype") for of in (config, text))
    if (found := next((each for each in declared if isinstance(each, str)), "float32")) != "float32":
        return found
    # Upstream's `_get_and_verify_dtype`: what nobody has made smaller, it does.
    return "bfloat16" if str({**config, **text}.get("model_type")).startswith("gemma") else "float16"


def _ranks(flags: Sequence[str]) -> int:
    """Return over how many GPUs upstream's arguments spread a checkpoint."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tp-size", "--tensor-parallel-size", "--tp", dest="tensors", type=count, default=1)
    parser.add_argument("--pp-size", "--pipeline-parallel-size", dest="layers", type=count, default=1)
    found = parser.parse_known_args(flags)[0]
    return int(found.tensors * found.layers)


def check_flags(flags: Sequence[str], checkpoint: str) -> None:
    """Raise UsageError if arguments for a server would change what or where it serves: it would not be the one asked.

    Parameters: `checkpoint`, the command's own argument that names one.
    """
    given = f"Give {checkpoint} before the `--`."
    alone = "It listens on this machine alone, without a key; `serve --print` shows a line to start it in another way."
    hints = {
        "--model": given,
        "--model-path": given,
        "--port": "`serve` takes --port before the `--`; the other commands find a free port.",
        **dict.fromkeys(["--host", "--api-key", "--admin-api-key"], alone),
    }
    for flag in flags:
        if (name := flag.partition("=")[0]) in hints:
            raise UsageError(f"{name} cannot be passed on to the server.", hint=hints[name])


def check_class(name: str | None) -> None:
    """Raise UsageError if the name of a reference model is not that of a class in a module."""
    module, colon, kind = (name or "a:b").partition(":")
    if not (colon and kind.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise UsageError(
            f"--reference {name} is not MODULE:CLASS.", hint="As models.qwen3_next_ext.reference:Qwen3NextExt."
        )


def require_cuda() -> None:
    """Raise OverlayError if an engine would not run on a CUDA GPU here."""
    if not (device := choose_device()).gpu:
        raise OverlayError(f"There is no CUDA GPU to use: {device.why}.", hint="`nox -s test` does without one.")


def new_file(project: Project, folder: str, name: str) -> Path:
    """Return a new JSON file in a folder below .nox/, for what is not to be lost; a name begins that of the file."""
    parent = project.root / ".nox" / folder
    parent.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(".json", f"{name}-", parent)
    os.close(handle)
    return Path(path)


def show_wheel(project: Project, built: BuiltWheel) -> None:
    """Show what a wheel was made of."""
    rows = [("base", f"{built.base.name}, sha256 {built.base.sha256}")] if built.base else []
    rows += [
        (f"hook {patch.hook}", f"{patch.path.name}: +{patch.added}/-{patch.removed} lines") for patch in built.patches
    ]
    rows += [
        ("added", ", ".join(built.added)),
        *[
            ("requires", f"{after or 'nothing'}, where upstream has {before or 'nothing'}")
            for before, after in built.dependencies
        ],
        *[("left out", f"{', '.join(built.left_out)}: for other releases or other wheels")] * bool(built.left_out),
        ("size", f"{built.size:,} bytes"),
        ("sha256", built.sha256),
        ("made of", statement_of(built.path).name),
        ("took", f"{built.seconds:.2f} s"),
    ]
    console.table(str(built.path.relative_to(project.root)), rows)
