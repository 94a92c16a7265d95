"""The files of a new model: rendered from templates, written all or none."""

from __future__ import annotations

import keyword
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from overlay_tools import console
from overlay_tools.downstream.settings_file import with_ranges
from overlay_tools.errors import UsageError
from overlay_tools.scaffold.base import Base
from overlay_tools.settings import Project
from overlay_tools.subprocesses import run
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.user_files import decode, read_text, write_whole
from overlay_tools.wheels.overlay_files import names_of

_TEMPLATES = Path(__file__).with_name("templates")
_SRT = "overlay/sglang/srt"
_FILES = {  # of each template: the file that it becomes, and what is in it
    "model.py": (f"{_SRT}/models/{{}}.py", "the served model"),
    "draft.py": (f"{_SRT}/models/{{}}_mtp.py", "its draft"),
    "processor.py": (f"{_SRT}/multimodal/processors/{{}}.py", "what its pictures go through before it"),
    "config.py": (f"{_SRT}/configs/{{}}.py", "its configuration, and the keys of `config.json`"),
    "row.py": (f"{_SRT}/overlay_models/{{}}.py", "what upstream must know of it"),
    "init.py": ("tests/models/{}/__init__.py", ""),
    "case.py": ("tests/models/{}/case.py", "its tiny checkpoint, and what it is tested on"),
    "reference.py": ("tests/models/{}/reference.py", "the reference model, in plain Transformers"),
    "notes.md": ("tests/models/{}/README.md", "this page"),
}
_SEED = "seed=0,"  # what a case with random weights says until a seed is found, and one of the matrices
_MATRIX = '"model.layers.1.mlp.up_proj.weight"'
_QWEN3_NEXT = "Qwen3NextForCausalLM"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of model.

    `about`: what it is; `folders`: those in which its templates are looked for, in this order; `suffix`: how the name
    of its class ends; `settle`: what checks its config.json; `by_way_of`: the model of the overlay from which it
    derives, and through it from Qwen3-Next alone.
    """

    about: str
    folders: tuple[str, ...]
    suffix: str = "ForCausalLM"
    settle: str = "sglang.srt.configs.derived_config:settle"
    by_way_of: str = ""


KINDS = {
    "text": Kind(about="one of upstream's decoders under a name of its own", folders=("text", ".")),
    "embedding": Kind(
        about="one that gives an embedding for each text",
        folders=("embedding", "vectors", "text", "."),
        suffix="EmbeddingModel",
    ),
    "reward": Kind(
        about="one that gives scores for each text",
        folders=("reward", "vectors", "text", "."),
        suffix="ForSequenceClassification",
    ),
    "derived": Kind(
        about="Qwen3-Next with own layers, router, head and draft, by way of Qwen3-Next-Ext",
        folders=("derived", "."),
        settle="sglang.srt.configs.qwen3_next_ext_keys:settle",
        by_way_of="Qwen3-Next-Ext",
    ),
    "multimodal": Kind(
        about="Qwen3-Next behind a vision tower, by way of Qwen3-Next-Ext-VL",
        folders=("multimodal", "."),
        suffix="ForConditionalGeneration",
        settle="sglang.srt.configs.qwen3_next_ext_vl_keys:settle",
        by_way_of="Qwen3-Next-Ext-VL",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NewModel:
    """A model that is to be made: its `name` in files, as my_model, its kind, and what it derives from."""

    name: str
    kind: str
    base: Base

    @property
    def title(self) -> str:
        """Name it as classes do."""
        return _title(self.name)

    @property
    def architecture(self) -> str:
        """Name the class that is served, as config.json does."""
        return architecture_of(self.name, self.kind)


def architecture_of(name: str, kind: str) -> str:
    """Name the class of a model of some kind, as config.json does."""
    return f"{_title(name)}{KINDS[kind].suffix}"


def _title(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def check_name(name: str) -> None:
    """Raise UsageError unless a name can be that of a module."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot be the name of a module.", hint="Name the model as my_model, for example.")


def choose_kind(kind: str | None, base: str | None) -> tuple[str, str]:
    """Return the kind of a model and its base, where a person names both, one or none.

    Raises UsageError if they do not go together.
    """
    kind = kind or ("derived" if base == _QWEN3_NEXT else "text")
    of_qwen3_next = [name for name, one in KINDS.items() if one.by_way_of]
    base = base or (_QWEN3_NEXT if kind in of_qwen3_next else "LlamaForCausalLM")
    if (kind in of_qwen3_next) != (base == _QWEN3_NEXT):
        raise UsageError(
            f"A model of kind {kind!r} cannot derive from {base}.",
            hint=f"{' and '.join(of_qwen3_next)} are for {_QWEN3_NEXT}, the others are not.",
        )
    return kind, base


def make_model(project: Project, new: NewModel, python: Path) -> dict[Path, str]:
    """Write the files of a model, with a seed for its random weights, all or none; return them by path.

    Parameters: `python`, the interpreter of an engine environment, whose Transformers has the base.
    Raises UsageError if one of them is there already; ToolError if its tiny checkpoint cannot be made.
    """
    files = render(project, new)
    ranges = _ranges(project, new, files)
    if there := [path for path in files if (project.root / path).exists()]:
        raise UsageError(
            *(f"{path} is there already." for path in there), hint="Take another name, or remove the model."
        )
    made: list[Path] = []
    try:
        with console.step(f"Write {new.architecture}"):
            for path, text in files.items():
                _write(project.root / path, text, made)
            format_files(project, [project.root / path for path in files if path.suffix == ".py"])
        case = project.root / next(path for path in files if path.name == "case.py")
        find_seed(case, project.root / "tests" / "reference" / "seeds.py", new, python)
        if ranges:
            _write_ranges(project, ranges)
    except BaseException:
        for path in reversed(made):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
    return {path: read_text(project.root / path) for path in files}


def render(project: Project, new: NewModel) -> dict[Path, str]:
    """Render the files of a model, by their paths in the checkout."""
    folders = KINDS[new.kind].folders
    environment = environment_of(folders)
    there = {name for name in _FILES if any((_TEMPLATES / folder / f"{name}.j2").exists() for folder in folders)}
    paths = {name: Path(path.format(new.name)) for name, (path, _) in _FILES.items() if name in there}
    values: Mapping[str, Any] = {
        "name": new.name,
        "kind": new.kind,
        "title": new.title,
        "model": new.architecture,
        "config": f"{new.title}Config",
        "base": new.base,
        "of": KINDS[new.kind].by_way_of or f"upstream's {new.base.architecture}",
        "draft": "draft.py" in there,
        "settle": KINDS[new.kind].settle,
        "default": project.default,
        "parts": {str(path): _FILES[part][1] for part, path in paths.items() if _FILES[part][1]},
    }
    return {path: environment.get_template(f"{part}.j2").render(values) for part, path in paths.items()}


def environment_of(folders: Iterable[str]) -> jinja2.Environment:
    """Return what renders the templates in some folders; the first that has one counts."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([_TEMPLATES / folder for folder in folders]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def find_seed(case: Path, seeds: Path, new: NewModel, python: Path) -> None:
    """Write into a case the seed and the matrix that `seeds` finds; nothing if its weights are trained."""
    if _SEED not in read_text(case):
        return
    with console.step("Look for a seed with which no greedy step is nearly a tie"):
        seed, matrix = run([python, "-BW", "ignore", seeds, new.name.replace("_", "-")]).stdout.split()
        text = read_text(case).replace(_SEED, f"seed={seed},").replace(_MATRIX, f'"{matrix}"')
        write_whole(case, text.encode())


def format_files(project: Project, paths: Iterable[Path]) -> None:
    """Format Python files as `nox -s lint` wants them, wherever they are."""
    for words in (("check", "--fix-only", "--select", "I"), ("format",)):
        settings = ("--config", project.settings, "--quiet", "--no-cache")
        run([sys.executable, "-m", "ruff", *words, *settings, *paths], cwd=project.root)


def _ranges(project: Project, new: NewModel, files: Iterable[Path]) -> dict[str, str]:
    """Return the range of releases that each file in overlay/ is for, nothing if all locked ones have the base."""
    if not new.base.absent:
        return {}
    every = [*load_lock(project.lock)]
    there = [version for version in every if version not in new.base.absent]
    first, last = there[0], there[-1]
    if every.index(last) - every.index(first) + 1 != len(there):
        raise UsageError(
            f"{new.base.architecture} is missing from {', '.join(new.base.absent)}, between releases that have it.",
            hint="Take another base, or write the model by hand with ranges in [tool.sglang-overlay.files].",
        )
    releases = f">={first}" if last == every[-1] else f">={first},<={last}"
    return {str(path.relative_to("overlay")): releases for path in files if path.parts[0] == "overlay"}


def _write_ranges(project: Project, ranges: Mapping[str, str]) -> None:
    """Write ranges of new files into pyproject.toml as it is now, which someone may have changed meanwhile."""
    text = decode(project.settings.read_bytes(), project.settings)
    write_whole(project.settings, with_ranges(text, ranges, {*names_of(project.overlay), *ranges}).encode())


def _write(path: Path, text: str, made: list[Path]) -> None:
    """Write a file and the folders that it is in, and add to `made` what was not there."""
    for folder in reversed(path.parents):
        if not folder.exists():
            folder.mkdir()
            made.append(folder)
    made.append(path)
    path.write_text(text, encoding="utf-8")
