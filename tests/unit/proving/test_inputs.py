"""What makes a recorded result one of something else, and how that is said."""

from __future__ import annotations

import ast
import platform
from collections.abc import Callable
from dataclasses import replace

import pytest
from overlay_tools.errors import PatchError
from overlay_tools.patches.series import load_series
from overlay_tools.proving.inputs import Inputs, stage_tests, stage_tool
from overlay_tools.proving.results import Result
from overlay_tools.proving.stages import PLUGIN_STAGE, STAGES
from overlay_tools.upstream.lockfile import THIS_PYTHON

from unit.conftest import LOADER, PATCH, REPOSITORY, Miniature, upstream_files
from unit.proving.test_results import GREEN, committed

PYTEST = "\n[tool.pytest.ini_options]\nxfail_strict = true\n"
Change = Callable[[Miniature], object]


def inputs_of(mini: Miniature, python: str | None = None) -> Inputs:
    return Inputs(mini.project, load_series(mini.root / "patches"), python)


def parts(mini: Miniature, release: str = "1.0", stage: str = "engine") -> dict[str, str]:
    return inputs_of(mini).parts(mini.lock[release], stage)


def changed(mini: Miniature, change: Change, stage: str = "engine") -> set[str]:
    """Return the parts of release 1.0 that a change to the checkout changes."""
    before = parts(mini, stage=stage)
    assert parts(mini, stage=stage) == before
    change(mini)
    after = parts(mini, stage=stage)
    return {part for part in before if after[part] != before[part]}


def result(mini: Miniature, stage: str = "engine") -> Result:
    """Return a green result of what the checkout has now."""
    ran_on = {"python": platform.python_version(), "machine": platform.machine(), "inputs": parts(mini, stage=stage)}
    return replace(GREEN, stage=stage, **ran_on)  # type: ignore[arg-type]


def differences(mini: Miniature, old: Result, python: str | None = None) -> list[str]:
    return inputs_of(mini, python).differences(old, mini.lock["1.0"])


def rename(mini: Miniature, old: str, new: str) -> None:
    (mini.root / old).rename(mini.root / new)


def append(mini: Miniature, name: str, text: str) -> None:
    mini.write(name, (mini.root / name).read_text() + text)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda mini: mini.write("overlay/sglang/models/ours.py", "OURS = 2\n"), "overlay"),
        (lambda mini: mini.write("overlay/sglang/models/more.py", ""), "overlay"),
        (lambda mini: (mini.root / "overlay/sglang/models/ours.py").chmod(0o755), "overlay"),
        (lambda mini: rename(mini, "overlay/sglang/models/ours.py", "overlay/sglang/models/theirs.py"), "overlay"),
        (lambda mini: mini.write("overlay/sgl_kernel/__init__.py", "KERNEL = 2\n"), "overlay"),
        (lambda mini: mini.limit({"sglang/models/ours.py": ">1.0"}), "overlay"),
        (lambda mini: mini.patch.write_text(PATCH.replace("choose(config)", "pick(config)")), "hooks"),
        (
            lambda mini: mini.lock_release("1.0", {**upstream_files("1.0"), "sglang/loader.py": LOADER[1:].encode()}),
            "base",
        ),
        (lambda mini: append(mini, "NOTICE", "more\n"), "settings"),
        (lambda mini: append(mini, "LICENSE", "more\n"), "settings"),
        (lambda mini: mini.require("releases = '==1.0'\noverride = ['numpy<2']\n"), "settings"),
        (
            lambda mini: mini.write(
                "pyproject.toml", mini.project.settings.read_text().replace("revision = 3", "revision = 4")
            ),
            "revision",
        ),
        (
            lambda mini: mini.write(
                "pyproject.toml", mini.project.settings.read_text().replace("replaces = []", "replaces = ['a.py']")
            ),
            "settings",
        ),
        (lambda mini: append(mini, "pyproject.toml", PYTEST), "tests"),
        *(
            (lambda mini, name=name: mini.write(name, "changed"), "tests")
            for name in (
                "tests/engine/harness.py",
                "tests/engine/conftest.py",
                "tests/engine/serving/test_new.py",
                "tests/engine/serving/deep/answers.json",
                "tests/reference/greedy.py",
                "tests/data/checkpoint/config.json",
            )
        ),
        *(
            (lambda mini, name=name: mini.write(f"ci/overlay_tools/{name}", "changed"), "tool")
            for name in (
                "engines/engine_config.py",
                "wheels/builder.py",
                "patches/apply.py",
                "archive/writer.py",
                "upstream/download.py",
                "proving/stages.py",
                "subprocesses.py",
            )
        ),
    ],
)
def test_what_a_stage_runs_on_is_one_part_of_its_key(mini: Miniature, change: Change, part: str) -> None:
    assert changed(mini, change) == {part}


@pytest.mark.parametrize(
    "change",
    [
        lambda mini: mini.patch.write_text(PATCH.replace("Why: because", "Why: for a better reason")),
        lambda mini: mini.lock_release("1.2"),
        lambda mini: mini.require("releases = '==1.1'\noverride = ['numpy<2']\n"),
        lambda mini: append(mini, "pyproject.toml", "\n[tool.ruff]\nline-length = 100\n"),
        *(
            (lambda mini, name=name: mini.write(name, "changed"))
            for name in (
                "ci/results.json",
                "README.md",
                "overlay/README.md",
                "overlay/sglang_overlay_plugin/attach.py",  # of the plugin, which no stage tests
                "overlay/sglang/__pycache__/ours.pyc",
                "tests/README.md",
                "tests/engine/README.md",
                "tests/engine/serving/__pycache__/test_http.pyc",
                "tests/engine/decisions/test_defaults.py",  # of another stage
                "tests/unit/test_cli.py",
                "tests/gpu/RESULTS.md",
                "ci/overlay_tools/report/html.py",
                "ci/overlay_tools/downstream/port.py",
                "ci/overlay_tools/api_check/contract.py",
                "ci/contract.toml",
            )
        ),
    ],
)
def test_what_it_does_not_run_on_is_none(mini: Miniature, change: Change) -> None:
    mini.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    assert changed(mini, change) == set()


@pytest.mark.parametrize("name", ["ci/contract.toml", "ci/overlay_tools/api_check/contract.py"])
def test_the_contract_is_tested_by_the_static_stage(mini: Miniature, name: str) -> None:
    assert changed(mini, lambda mini: mini.write(name, "changed"), "static") == {"tool"}


def test_a_variant_of_one_release_leaves_the_parts_of_another(mini: Miniature) -> None:
    before = parts(mini), parts(mini, "1.1")
    mini.patch.write_text(PATCH.replace("<=1.1", "<1.1"))
    mini.write("patches/choose/1.1.patch", PATCH.replace("1.0,<=1.1", "1.1").replace("choose(", "pick("))
    assert parts(mini) == before[0]
    assert parts(mini, "1.1") != before[1]
    old = result(mini)
    (mini.root / "patches/choose/1.1.patch").unlink()
    with pytest.raises(PatchError, match=r"no variant for sglang 1\.1"):
        parts(mini, "1.1")
    says = inputs_of(mini).differences(replace(old, release="1.1"), mini.lock["1.1"])
    assert says == ["Hook choose has no variant for sglang 1.1."]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mini: mini.write("tests/engine/harness.py", "2"), "tests/engine/harness.py changed"),
        (
            lambda mini: mini.write("overlay/sglang/models/ours.py", "OURS = 2\n"),
            "overlay/sglang/models/ours.py changed",
        ),
        (
            lambda mini: mini.patch.write_text(PATCH.replace("choose(config)", "pick(config)")),
            "patches/choose/1.0.patch changed",
        ),
        (lambda mini: append(mini, "NOTICE", "more"), "NOTICE changed"),
        (
            lambda mini: mini.write(
                "pyproject.toml", mini.project.settings.read_text().replace("revision = 3", "revision = 4")
            ),
            "the overlay's revision was 3 and is 4",
        ),
        (
            lambda mini: mini.lock_release("1.0", {**upstream_files("1.0"), "sglang/loader.py": LOADER[1:].encode()}),
            "upstream.lock has another sglang 1.0",
        ),
        (
            lambda mini: [mini.write(f"tests/reference/{name}.py", "2") for name in "abcde"],
            "tests/reference/a.py, tests/reference/b.py, tests/reference/c.py and 2 more files changed",
        ),
    ],
)
def test_what_changed_is_named_by_file(mini: Miniature, change: Change, words: str) -> None:
    for name in ["tests/engine/harness.py", *(f"tests/reference/{name}.py" for name in "abcde")]:
        mini.write(name, "1")
    git = committed(mini)
    head = (mini.root / ".git/refs/heads").iterdir().__next__().read_text()[:12]
    old = replace(result(mini), commit=head)
    assert differences(mini, old) == []
    change(mini)
    mini.write("tests/README.md", "a page")
    assert differences(mini, old) == [words]
    git("add", ".")
    git("commit", "--quiet", "--message=second")
    assert differences(mini, old) == [words]


def test_what_changed_is_named_by_part_where_git_does_not_know(mini: Miniature) -> None:
    old = result(mini)
    mini.write("tests/engine/harness.py", "2")
    mini.write("overlay/sglang/models/ours.py", "OURS = 2\n")
    assert differences(mini, old) == [
        "the files of overlay/ changed",
        "what tests/ has of this stage changed",
    ]


def test_the_interpreter_and_the_machine_are_part_of_it(mini: Miniature) -> None:
    old = result(mini)
    other = {"3.10": "3.12"}.get(THIS_PYTHON, "3.10")
    assert differences(mini, old, THIS_PYTHON) == []
    assert differences(mini, old, other) == [f"it was recorded with Python {platform.python_version()}, not {other}"]
    assert differences(mini, replace(old, python=f"{other}.4"), other) == []
    assert differences(mini, replace(old, python=f"{THIS_PYTHON}.99")) == []
    assert differences(mini, replace(old, machine="s390x")) == [f"it was recorded on s390x, not {platform.machine()}"]


def test_the_static_stage_is_of_the_interpreter_that_runs_the_tool(mini: Miniature) -> None:
    assert differences(mini, result(mini, "static"), "3.99") == []
    old = replace(result(mini, "static"), python="3.9.1")
    assert differences(mini, old, "3.9") == [f"it was recorded with Python 3.9.1, not {THIS_PYTHON}"]


def test_the_plugin_s_stage_is_of_the_plugin_s_own_files_too(mini: Miniature) -> None:
    of_plugin, of_engine = result(mini, "plugin"), result(mini)
    mini.write("overlay/sglang_overlay_plugin/attach.py", "ATTACHED = 2\n")
    assert differences(mini, of_plugin) == ["what ci/overlay_tools has of this stage changed"]
    assert differences(mini, of_engine) == []


def test_a_result_without_parts_does_not_hold(mini: Miniature) -> None:
    assert differences(mini, replace(result(mini), inputs={})) == ["it was recorded without what it ran on"]
    old = result(mini)
    some = {part: digest for part, digest in old.inputs.items() if part != "tool"}
    assert differences(mini, replace(old, inputs=some)) == ["what ci/overlay_tools has of this stage changed"]


@pytest.mark.parametrize("stage", [*STAGES, *PLUGIN_STAGE])
def test_what_the_tests_import_of_this_checkout_is_in_the_key(stage: str) -> None:
    files = stage_tests(stage), stage_tool(stage)
    roots = [REPOSITORY / root for root in {**STAGES, **PLUGIN_STAGE}[stage]]
    modules = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*.py"))]
    seen, missing = set(modules), set()
    while modules:
        for name in _imports(ast.parse(modules.pop().read_text(encoding="utf-8"))):
            for root in ("tests", "ci"):
                path = REPOSITORY / root / f"{name.replace('.', '/')}.py"
                if path.is_file() and path not in seen:
                    seen.add(path)
                    modules.append(path)
                    where = path.relative_to(REPOSITORY).as_posix()
                    missing |= set() if any(each.holds(where) for each in files) else {where}
    assert missing == set()


def _imports(tree: ast.Module) -> set[str]:
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found
