"""The pipelines are valid, and what they call of nox is there."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import yaml
from overlay_tools.upstream.lockfile import load_lock
from packaging.requirements import Requirement

from unit.conftest import REPOSITORY

LOCKED = list(load_lock(REPOSITORY / "upstream.lock"))
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").iterdir())
GITHUB = REPOSITORY / ".github" / "workflows" / "ci.yml"
WATCH = REPOSITORY / ".github" / "workflows" / "watch.yml"
GITLAB = REPOSITORY / ".gitlab-ci.yml"
CI = sorted((REPOSITORY / ".ci").iterdir())
SCHEMAS = {
    **dict.fromkeys(WORKFLOWS, ("vendor.github-workflows", "custom.github-workflows-require-timeout")),
    GITLAB: ("vendor.gitlab-ci",),
}

# Runs the command where the modules that the arguments name cannot be imported.
LINT_PATCHES = """\
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))
sys.argv[1:] = ["lint-patches"]
runpy.run_module("overlay_tools", run_name="__main__")
"""


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    # Without a choice, the sessions that run by default are listed alone.
    words = [sys.executable, "-m", "nox", "--list", "--json", "--keywords", "not nothing"]
    listed = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return {session["session"] for session in json.loads(listed.stdout)}


def read(path: Path) -> dict[str, Any]:
    """Read a definition in YAML."""
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def scripts(definition: object) -> Iterator[str]:
    """Find the shell scripts of a pipeline, whatever they are part of."""
    if isinstance(definition, dict):
        for key, value in definition.items():
            if key in ("run", "script", "before_script", "after_script"):
                yield value if isinstance(value, str) else "\n".join(value)
            else:
                yield from scripts(value)
    elif isinstance(definition, list):
        for value in definition:
            yield from scripts(value)


def whole(script: str) -> str:
    """Return a shell script with those of the project's that it calls."""
    return "\n".join([script, *(file.read_text(encoding="utf-8") for file in CI if f".ci/{file.name}" in script)])


def called(script: str) -> list[str]:
    """List the sessions that the calls of nox in a shell script name."""
    lexer = shlex.shlex(script, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    words, found = list(lexer), []
    for place, word in enumerate(words[:-1]):
        if Path(word).name == "nox" and words[place + 1] == "-s":
            for session in words[place + 2 :]:
                if session.startswith("-") or not session.strip(";&|\n"):
                    break
                found.append(session)
    return found


@pytest.mark.parametrize(
    ("path", "schema"),
    [pytest.param(path, schema, id=f"{path.name}-{schema}") for path, schemas in SCHEMAS.items() for schema in schemas],
)
def test_a_pipeline_is_valid(path: Path, schema: str) -> None:
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_job_waits_for_is_there() -> None:
    for workflow in WORKFLOWS:
        jobs = read(workflow)["jobs"]
        needed = [job["needs"] for job in jobs.values() if "needs" in job]
        assert {name for names in needed for name in ([names] if isinstance(names, str) else names)} <= jobs.keys()
    pipeline = read(GITLAB)
    jobs = {name: job for name, job in pipeline.items() if isinstance(job, dict) and "script" in job}
    assert {job["stage"] for job in jobs.values()} == set(pipeline["stages"])
    assert {name for job in jobs.values() for name in job.get("needs", [])} <= jobs.keys()


@pytest.mark.parametrize("path", [*WORKFLOWS, GITLAB], ids=lambda path: path.name)
def test_each_session_that_a_pipeline_runs_exists(path: Path, sessions: set[str]) -> None:
    found = [whole(script) for script in scripts(read(path))]
    matrix = [script.replace("${{ matrix.version }}", version) for version in LOCKED for script in found]
    ran = {session for script in matrix for session in called(script)}
    assert ran
    assert ran <= sessions


def test_each_pipeline_runs_lint_and_test(sessions: set[str]) -> None:
    assert all(".ci/run" in list(scripts(read(path))) for path in (GITHUB, GITLAB))
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    assert (
        {"lint", "test", "test-page", "test-docs"}
        <= set(called((REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")))
        <= sessions
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the job runs where Python has tomllib")
def test_the_matrix_is_every_locked_release(tmp_path: Path) -> None:
    jobs = read(GITHUB)["jobs"]
    (script,) = scripts(jobs["locked"])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "GITHUB_OUTPUT": str(tmp_path / "output")}
    subprocess.run(["bash", "-e", "-c", script], cwd=REPOSITORY, env=environment, check=True)
    name, _, value = (tmp_path / "output").read_text(encoding="utf-8").partition("=")
    assert json.loads(value) == LOCKED
    assert jobs["locked"]["outputs"] == {name: f"${{{{ steps.read.outputs.{name} }}}}"}
    assert jobs["releases"]["strategy"]["matrix"]["version"] == f"${{{{ fromJSON(needs.locked.outputs.{name}) }}}}"


def test_there_is_a_session_for_every_locked_release(sessions: set[str]) -> None:
    assert len(LOCKED) >= 17
    assert {f"test-{version}" for version in LOCKED} <= sessions


def test_nothing_is_kept_in_the_environment_of_a_session(sessions: set[str]) -> None:
    # nox removes an environment, with all that lies in it, when it makes it anew.
    folders = set()
    for path in (REPOSITORY / "ci" / "overlay_tools").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.BinOp(left=ast.BinOp(right=ast.Constant(value=".nox")), right=ast.Constant(value=str(name))):
                    folders.add(name)
                case ast.Call(args=[ast.Constant(value=".nox"), ast.Constant(value=str(name)), *_]):
                    folders.add(name)
                case ast.Constant(value=str(text)) if text.startswith(".nox/"):
                    folders.add(text.split("/")[1])
    assert {"worktrees", "porting", "releases", "engines"} <= folders
    assert folders.isdisjoint(sessions)


def test_each_action_is_pinned_by_its_commit() -> None:
    for workflow in WORKFLOWS:
        lines = [line for line in workflow.read_text(encoding="utf-8").splitlines() if "uses:" in line]
        assert lines
        for line in lines:
            assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_a_job_that_may_write_runs_nothing_of_upstreams() -> None:
    found = {}
    for workflow in WORKFLOWS:
        definition = read(workflow)
        assert definition["permissions"] == {"contents": "read"}
        for name, job in definition["jobs"].items():
            if "permissions" in job:
                found[name] = list(scripts(job))
    assert found == {"attest": [], "propose": [".ci/propose watched"]}
    for job in (read(WATCH)["jobs"]["propose"], read(GITLAB)["propose"]):
        assert all(called(whole(script)) == [] for script in scripts(job))
    assert read(WATCH)["jobs"]["propose"]["permissions"] == {
        "contents": "write", "pull-requests": "write", "issues": "write"
    }  # fmt: skip


def test_wheels_of_a_tag_are_signed_by_a_job_that_runs_nothing() -> None:
    job = read(GITHUB)["jobs"]["attest"]
    assert job["permissions"] == {"contents": "read", "id-token": "write", "attestations": "write"}
    assert job["needs"] == "wheels"
    assert [step["uses"].partition("@")[0] for step in job["steps"]] == [
        "actions/download-artifact",
        "actions/attest-build-provenance",
    ]
    uploaded = next(step for step in read(GITHUB)["jobs"]["wheels"]["steps"] if "upload" in step.get("uses", ""))
    assert job["steps"][0]["with"] == uploaded["with"]


def test_wheels_of_a_tag_are_proven_first() -> None:
    jobs, pipeline = read(GITHUB)["jobs"], read(GITLAB)
    assert jobs["wheels"]["needs"] == ["test", "status"]
    assert pipeline["stages"].index(pipeline["status"]["stage"]) < pipeline["stages"].index(pipeline["wheels"]["stage"])
    for job in (jobs["status"], pipeline["status"]):
        assert any("nox -s status -- --check" in script for script in scripts(job))


def test_a_schedule_tests_every_release_whatever_is_proven() -> None:
    """What a release installs may have changed since: its dependencies are not pinned."""
    assert "nox -s matrix -- --again" in "\n".join(scripts(read(GITLAB)["releases"]))
    assert 'nox -s "test-${{ matrix.version }}"' in "\n".join(scripts(read(GITHUB)["jobs"]["releases"]))


def test_what_gitlab_caches_does_not_count_as_a_change_of_the_checkout(tmp_path: Path) -> None:
    pipeline = read(GITLAB)
    variables = [value.removeprefix("$CI_PROJECT_DIR/") for value in pipeline["variables"].values()]
    assert len(variables) == 2
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for folder in [*pipeline["default"]["cache"]["paths"], *variables]:
        words = ["git", "-c", f"core.excludesFile={os.devnull}", "check-ignore", "--quiet", f"{folder}/file"]
        assert subprocess.run(words, cwd=tmp_path, check=False).returncode == 0, folder


def test_every_python_of_the_readme_is_tested() -> None:
    said = re.search(
        r"Python (3\.\d+(?:, 3\.\d+)*) or (3\.\d+)", (REPOSITORY / "README.md").read_text(encoding="utf-8")
    )
    assert said is not None
    pythons = [*said[1].split(", "), said[2]]
    assert read(GITHUB)["jobs"]["test"]["strategy"]["matrix"] == {"python": pythons}
    assert read(GITLAB)["test"]["parallel"] == {"matrix": [{"PYTHON": pythons}]}


def test_a_schedule_looks_at_new_releases_one_run_at_a_time() -> None:
    definition = read(WATCH)
    assert "\n  schedule:\n" in WATCH.read_text(encoding="utf-8")
    assert definition["concurrency"] == {"group": "watch", "cancel-in-progress": False}
    steps = [job["steps"][0] for job in definition["jobs"].values()]
    assert all("checkout" in step["uses"] and step["with"] == {"fetch-depth": 0} for step in steps)  # with all branches
    for name in ("watch", "propose"):
        assert read(GITLAB)[name]["variables"]["GIT_DEPTH"] == 0
        (rule,) = read(GITLAB)[name]["rules"]
        always = {"when": "always"} if name == "propose" else {}  # what was finished before `watch` failed, too
        assert rule == {"if": '$CI_PIPELINE_SOURCE == "schedule" && $WATCH', **always}
        assert read(GITLAB)[name]["variables"]["GIT_STRATEGY"] == "clone"
    assert read(GITLAB)["watch"]["artifacts"]["when"] == "always"
    for part in (read(WATCH)["jobs"]["propose"], read(WATCH)["jobs"]["watch"]["steps"][-1]):
        assert part["if"].startswith("${{ !cancelled() && ")
    assert read(GITLAB)["watch"]["resource_group"] == "watch"


def test_the_hook_that_lints_patches_lists_all_that_it_imports() -> None:
    """It runs in an environment of its own, which has no other dependency of the tool."""
    (repository,) = read(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    (hook,) = (hook for hook in repository["hooks"] if hook["id"] == "patches")
    project = tomlkit.parse((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")).unwrap()["project"]
    needed = {Requirement(line).name for line in project["dependencies"]}
    listed = {Requirement(line).name for line in hook["additional_dependencies"]}
    absent = [module for module, names in packages_distributions().items() if (needed - listed).intersection(names)]
    assert hook["entry"] == "env PYTHONPATH=ci python -m overlay_tools lint-patches"
    words, env = [sys.executable, "-c", LINT_PATCHES, *absent], {**os.environ, "PYTHONPATH": "ci"}
    done = subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
