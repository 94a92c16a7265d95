"""`new --project`: a plugin project that stands by itself, its wheel, what it refuses, and its update."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from email import message_from_bytes
from pathlib import Path, PurePosixPath

import pytest
import tomlkit
from overlay_tools import cli
from overlay_tools.commands import new as command
from overlay_tools.errors import OverlayError, ToolError, UsageError
from overlay_tools.scaffold import project as scaffolded
from overlay_tools.scaffold.base import Base
from overlay_tools.scaffold.model import NewModel
from overlay_tools.scaffold.project import LISTED, make_project, name_project, update_project
from overlay_tools.settings import Project, load_project
from overlay_tools.user_files import write_whole

from unit.conftest import REPOSITORY

PROJECT = load_project(REPOSITORY)
PACKAGE = "acme_models"
# Of each kind: a base, and Transformers' configuration and model without a head.
BASES = {
    "text": ("LlamaForCausalLM", "llama"),
    "embedding": ("Qwen3ForCausalLM", "qwen3"),
    "reward": ("LlamaForCausalLM", "llama"),
    "derived": ("Qwen3NextForCausalLM", "qwen3_next"),
    "multimodal": ("Qwen3NextForCausalLM", "qwen3_next"),
}


def new_model(kind: str, absent: tuple[str, ...] = ()) -> NewModel:
    architecture, module = BASES[kind]
    title = architecture.removesuffix("ForCausalLM")
    base = Base(
        architecture=architecture,
        module=f"sglang.srt.models.{module}",
        absent=absent,
        config=f"{title}Config",
        backbone=f"{title}Model",
        classifier=f"{title}ForSequenceClassification",
        more=(),
        fixed={},
        layer_kinds=(),
        tiny={"num_hidden_layers": 3},
    )
    return NewModel(name="my_model", kind=kind, base=base)


def python(folder: Path, does: str = "echo 7 a.1.b") -> Path:
    """Make an interpreter that finds a seed, or does something else."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return path


def make(folder: Path, kind: str = "text", project: Project = PROJECT) -> Path:
    target = name_project(project, folder / "acme-models")
    make_project(project, new_model(kind), target, python(folder))
    return target.folder


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def imported(text: bytes) -> Iterator[str]:
    """Yield the modules that Python source imports, and those that it names as `module:Class`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(f"{PACKAGE}."):
            yield node.value.partition(":")[0]


@pytest.mark.parametrize("kind", BASES)
def test_a_project_has_all_that_it_needs_of_ours_and_names_nothing_else_of_it(kind: str, tmp_path: Path) -> None:
    files = content(make(tmp_path, kind))
    roots = ("src", "start", "tests")
    modules = {name.partition("/")[2].removesuffix(".py").removesuffix("/__init__") for name in files}
    for name, data in files.items():
        if not name.endswith(".py"):
            continue
        assert b"overlay_tools" not in data, name
        assert b"sglang_overlay" not in data, name
        for module in imported(data):
            assert not module.startswith("sglang.srt.overlay"), name
            if module.partition(".")[0] in (PACKAGE, f"{PACKAGE}_start", "bases", "engine", "models", "reference"):
                assert module.replace(".", "/") in modules, f"{name}: {module}"
    assert all(name.startswith(roots) for name in files if name.endswith(".py"))
    assert b"{{" not in files["README.md"] + files["pyproject.toml"]


def test_a_project_knows_the_marks_of_its_tests_and_has_the_programs_that_they_run(tmp_path: Path) -> None:
    files = content(make(tmp_path, "text"))
    tests = {name: data for name, data in files.items() if name.startswith("tests/") and name.endswith(".py")}
    used = {mark.decode() for data in tests.values() for mark in re.findall(rb"pytest\.mark\.(\w+)", data)}
    settings = tomlkit.parse(files["pyproject.toml"].decode()).unwrap()["tool"]["pytest"]["ini_options"]
    assert used - {"parametrize", "skipif"} == {mark.partition(":")[0] for mark in settings["markers"]}
    programs = {
        str(PurePosixPath(name).with_name(program.decode()))
        for name, data in tests.items()
        for program in re.findall(rb'Path\(__file__\)\.with_name\("(\w+\.py)"\)', data)
    }
    assert programs
    assert programs <= tests.keys()


def test_of_what_a_model_derives_from_nothing_is_served_or_tested(tmp_path: Path) -> None:
    files = content(make(tmp_path, "derived"))
    models = {name for name in files if name.startswith(f"src/{PACKAGE}/models/")}
    assert {name for name in models if b"\nEntryClass = " in files[name]} == {
        f"src/{PACKAGE}/models/my_model.py",
        f"src/{PACKAGE}/models/my_model_mtp.py",
    }
    assert f"src/{PACKAGE}/models/qwen3_next_ext.py" in models
    rows = [name for name in files if name.startswith(f"src/{PACKAGE}/overlay_models/")]
    assert [name.rpartition("/")[2] for name in sorted(rows)] == ["__init__.py", "my_model.py"]
    assert [name for name in files if name.startswith("tests/models/") and name.endswith("case.py")] == [
        "tests/models/my_model/case.py"
    ]
    assert "tests/data/qwen3-next-ext/config.json" in files
    assert not any("qwen" in name for name in content(make_in(tmp_path / "text")))


def test_of_the_processors_only_its_own_names_a_model(tmp_path: Path) -> None:
    files = content(make(tmp_path, "multimodal"))
    named = {
        name.rpartition("/")[2]: line.strip()
        for name, data in files.items()
        for line in data.decode("utf-8", "replace").splitlines()
        if "/multimodal/processors/" in name and line.startswith("    models = ")
    }
    assert named == {
        "my_model.py": "models = (MyModelForConditionalGeneration,)",
        "qwen3_next_ext_vl.py": "models = ()",
    }
    assert "tests/data/qwen3-next-ext-vl/config.json" in files


def make_in(folder: Path) -> Path:
    folder.mkdir()
    return make(folder)


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    subprocess.run(list(map(str, command)), check=True)


@pytest.mark.parametrize("kind", ["text", "derived"])
def test_the_wheel_that_pip_builds_has_what_the_plugin_wheel_of_ours_has(kind: str, tmp_path: Path) -> None:
    folder = make(tmp_path, kind)
    # As in many a repository that it may lie in.
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("models/\n*.pth\ndist/\n")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path / "dist", folder)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name == f"{PACKAGE}-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    info = f"{PACKAGE}-0.1.dist-info"
    beside = {name.removeprefix(f"{info}/"): held.pop(name) for name in list(held) if name.startswith(f"{info}/")}
    files = content(folder)
    assert held == {name.partition("/")[2]: data for name, data in files.items() if name.startswith(("src/", "start/"))}
    assert {f"{PACKAGE}.pth", f"{PACKAGE}_start.py", f"{PACKAGE}/checks.py", f"{PACKAGE}/models/my_model.py"} <= {*held}
    metadata = message_from_bytes(beside["METADATA"])
    assert metadata["Name"] == "acme-models"
    assert sorted(metadata["Keywords"].split(",")) == sorted(f"sglang=={version}" for version in PROJECT.plugin)
    assert beside["entry_points.txt"].decode().split() == [
        "[sglang.srt.plugins]", PACKAGE, "=", f"{PACKAGE}.attach:attach"
    ]  # fmt: skip
    for name in ("LICENSE", "NOTICE"):
        assert beside[f"licenses/licenses/{name}.sglang-overlay"] == (REPOSITORY / name).read_bytes()


def test_an_editable_install_has_what_python_reads_when_it_starts(tmp_path: Path) -> None:
    folder = make(tmp_path)
    pip("install", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site", "--editable", folder)
    names = {path.name for path in (tmp_path / "site").iterdir()}
    assert {f"{PACKAGE}.pth", f"{PACKAGE}_start.py"} <= names
    assert PACKAGE not in names  # it is taken from src/
    code = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import {PACKAGE}; print({PACKAGE}.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(folder / "src" / PACKAGE / "__init__.py")


def test_the_releases_without_the_base_are_not_among_its_own(tmp_path: Path) -> None:
    target = name_project(PROJECT, tmp_path / "acme-models")
    make_project(PROJECT, new_model("text", absent=PROJECT.plugin[:-1]), target, python(tmp_path))
    settings = (target.folder / "pyproject.toml").read_text()
    assert f'keywords = [\n    "sglang=={PROJECT.plugin[-1]}",\n]' in settings


def test_a_base_that_none_of_the_proven_releases_has_is_refused(tmp_path: Path) -> None:
    target = name_project(PROJECT, tmp_path / "acme-models")
    with pytest.raises(UsageError, match="None of the releases on which the plugin is proven has LlamaForCausalLM"):
        make_project(PROJECT, new_model("text", absent=PROJECT.plugin), target, python(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


def test_the_name_of_a_model_of_this_checkout_is_refused(tmp_path: Path) -> None:
    target = name_project(PROJECT, tmp_path / "acme-models")
    with pytest.raises(UsageError, match="This checkout has an overlay/sglang/srt/models/llama_logit_shaping"):
        make_project(PROJECT, replace(new_model("text"), name="llama_logit_shaping"), target, python(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme models", "letters and digits"),
        ("1-models", "cannot be imported"),
        ("json", "is the name of something else"),
        ("sglang", "is the name of something else"),
        ("engine", "is a package of its tests"),
        ("absent/acme-models", "There is no folder"),
        ("full", "is there already, and not empty"),
        ("file", "is there already, and not empty"),
        (str(REPOSITORY / "acme-models"), "is in this checkout"),
        (str(REPOSITORY), "is in this checkout"),
    ],
)
def test_where_a_project_cannot_be_it_is_refused(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=said):
        name_project(PROJECT, tmp_path / name)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "acme-models").mkdir()
    assert (make(tmp_path) / "pyproject.toml").exists()


def test_nothing_is_left_of_a_project_without_a_seed(tmp_path: Path) -> None:
    target = name_project(PROJECT, tmp_path / "acme-models")
    with pytest.raises(ToolError):
        make_project(PROJECT, new_model("text"), target, python(tmp_path, "exit 3"))
    assert [path.name for path in tmp_path.iterdir()] == ["python"]


def test_what_has_no_lines_is_listed_by_its_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    command.table({"case.py": b"a\nb\n", "model.safetensors": b"\0\n" * 600}, "acme-models")
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["case.py", "2", "lines"] in shown
    assert ["model.safetensors", "1,200", "bytes"] in shown


def test_the_command_makes_one_and_says_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(command, "open_engine", lambda *_, **__: nullcontext(python(tmp_path)))
    monkeypatch.setattr(command, "only_writer", lambda _: nullcontext())
    monkeypatch.setattr(command, "find_base", lambda *_: new_model("text").base)
    assert cli.main(["new", "my_model", "--project", str(tmp_path / "acme-models")]) == 0
    shown = capsys.readouterr().out
    assert f"src/{PACKAGE}/models/my_model.py" in shown
    assert f"Next: see {tmp_path / 'acme-models' / 'README.md'}" in shown
    assert cli.main(["new", "my_model", "--project", str(tmp_path / "acme-models")]) == 2
    assert "is there already, and not empty" in capsys.readouterr().err
    assert cli.main(["new", "--update", str(tmp_path / "acme-models")]) == 0
    for words, said in (
        (["new"], "Which model?"),
        (["new", "x", "--update", "y"], "takes the project's path and noth"),
    ):
        assert cli.main(words) == 2
        assert said in capsys.readouterr().err


@pytest.fixture
def newer(tmp_path: Path) -> Project:
    """Give a checkout of ours that has changed: a file has another text, one is new, and one is gone."""
    root = tmp_path / "newer"
    for name in ("overlay", "tests", "ci/overlay_tools"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "NOTICE", "pyproject.toml", "upstream.lock"):
        shutil.copy(REPOSITORY / name, root)
    srt = root / "overlay/sglang/srt"
    (srt / "overlay_registry.py").write_text((srt / "overlay_registry.py").read_text() + "\nNEWER = 1\n")
    (srt / "overlay_added.py").write_text("ADDED = 1\n")
    (root / "tests/engine/serving/test_http.py").write_text("from engine.harness import ours\n")
    (root / "tests/reference/logits.py").unlink()
    shutil.copy(REPOSITORY / "tests/reference/logits.py", root / "tests/reference/other.py")
    for name in ("qwen3_next_ext", "llama_logit_shaping"):
        path = root / "tests/models" / name / "reference.py"
        path.write_text(path.read_text().replace("reference.logits", "reference.other"))
    return load_project(root)


@pytest.mark.parametrize("kind", ["text", "derived", "multimodal"])
def test_an_update_brings_what_is_ours_and_keeps_what_is_not(kind: str, newer: Project, tmp_path: Path) -> None:
    folder = make(tmp_path, kind)
    mine = folder / f"src/{PACKAGE}/models/my_model.py"
    mine.write_text(mine.read_text() + "\nMINE = 1\n")
    (folder / "README.md").write_text("mine\n")
    before = content(folder)
    assert update_project(PROJECT, folder).keys() == listed(folder).keys()
    assert content(folder) == before  # nothing is newer yet
    update_project(newer, folder)
    after = content(folder)
    assert after[f"src/{PACKAGE}/overlay_added.py"] == b"ADDED = 1\n"
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {
        f"src/{PACKAGE}/overlay_registry.py",
        "tests/engine/serving/test_http.py",
        LISTED,
        *(["tests/reference/logits.py", "tests/bases/qwen3_next_ext/reference.py"] if kind != "text" else []),
    }
    subprocess.run(["sha256sum", "--quiet", "--strict", "--check", LISTED], cwd=folder, check=True)
    assert after.keys() - before.keys() == {
        f"src/{PACKAGE}/overlay_added.py",
        *(["tests/reference/other.py"] if kind != "text" else []),
    }


def test_an_update_that_was_cut_short_is_done_again(
    newer: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = make(tmp_path, "derived"), tmp_path / "whole"
    shutil.copytree(folder, whole)
    update_project(newer, whole)
    before = content(folder)

    def write_one(path: Path, data: bytes) -> None:
        if content(folder).items() - before.items():
            raise KeyboardInterrupt
        write_whole(path, data)

    monkeypatch.setattr(scaffolded, "write_whole", write_one)
    with pytest.raises(KeyboardInterrupt):
        update_project(newer, folder)
    monkeypatch.undo()
    assert content(folder) not in (before, content(whole))
    update_project(newer, folder)
    assert content(folder) == content(whole)


def listed(folder: Path) -> Mapping[str, str]:
    lines = (folder / LISTED).read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (f"src/{PACKAGE}/checks.py", "mine\n", "is not as it was written"),
        (f"start/{PACKAGE}_start.py", None, "is not as it was written"),
        (f"src/{PACKAGE}/overlay_added.py", "mine\n", "is the project's own"),
        (LISTED, None, "is not a plugin project that `new` has made"),
        (LISTED, "mine\n", "is not a plugin project that `new` has made"),
        ("pyproject.toml", "[project]\nname = 'x'\n", "is not a plugin project that `new` has made"),
        (
            "pyproject.toml",
            f"[project.entry-points.'sglang.srt.plugins']\n{PACKAGE} = 'x'\n",
            "is not a plugin project that `new` has made: 'name'",
        ),
        ("pyproject.toml", "[", "is not a plugin project that `new` has made"),
    ],
)
def test_an_update_that_would_lose_something_changes_nothing(
    name: str, text: str | None, said: str, newer: Project, tmp_path: Path
) -> None:
    folder = make(tmp_path)
    (folder / name).unlink(missing_ok=True)
    if text is not None:
        (folder / name).write_text(text)
    before = content(folder)
    with pytest.raises(OverlayError, match=said):
        update_project(newer, folder)
    assert content(folder) == before
