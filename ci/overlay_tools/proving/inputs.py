"""What a stage of a release runs on, part by part, and in what of it a recorded result differs from the checkout."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from overlay_tools.archive.mode import is_executable
from overlay_tools.checkout import is_scratch, own_paths
from overlay_tools.errors import PatchError
from overlay_tools.patches.model import Hook
from overlay_tools.proving.results import Result
from overlay_tools.proving.stages import PLUGIN_STAGE, tests_of
from overlay_tools.settings import Project
from overlay_tools.subprocesses import git
from overlay_tools.upstream.lockfile import THIS_PYTHON, Release, dump_lock
from overlay_tools.wheels.dependencies import rules_for
from overlay_tools.wheels.overlay_files import read_file, read_package

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TOOL = "ci/overlay_tools"
# Packages of the tool that a stage's tests import, beside those that make wheels.
_ENGINE = (
    "checkpoints",
    "engines",
    "proving/accuracy",
    "proving/compare",
    "proving/tune",
    *(f"proving/{name}.py" for name in ("lines", "looking", "reference", "reference_script", "script")),
)
_PACKAGES = {
    "static": ("api_check",),
    "decisions": ("api_check", "engines"),
    "engine": _ENGINE,
    "plugin": (*_ENGINE, "api_check", "scaffold"),
}
_NAMED = 3  # of the files that changed, so many are named


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSet:
    """Files of a checkout: all below `trees`, each a folder or a file, and those that lie in `folders` themselves.

    Pages are not among them, and neither is what is hidden or an editor's.
    """

    trees: tuple[str, ...]
    folders: tuple[str, ...] = ()

    def holds(self, name: str) -> bool:
        """Tell whether a path, from the checkout's folder, is that of one of the files."""
        path = PurePosixPath(name)
        if path.suffix in (".md", ".pyc") or is_scratch(path):
            return False
        return str(path.parent) in self.folders or any(path.is_relative_to(tree) for tree in self.trees)

    def digest(self, root: Path) -> str:
        """Return the digest of the files' names and contents."""
        found = [root / tree for tree in self.trees]
        found += [path for tree in self.trees for path in own_paths(root / tree)]
        found += [path for folder in self.folders if (root / folder).is_dir() for path in (root / folder).iterdir()]
        names = {path.relative_to(root).as_posix(): path for path in found if path.is_file()}
        return _digest(_content((name, read_file(names[name])) for name in sorted(names) if self.holds(name)))


def stage_tests(stage: str) -> FileSet:
    """Return the tests of a stage and what they import and read: their folders, what lies beside these, shared data."""
    folders = tests_of(stage)
    beside = {str(parent) for folder in folders for parent in PurePosixPath(folder).parents if str(parent) != "."}
    return FileSet(trees=(*folders, "tests/models", "tests/reference", "tests/data"), folders=tuple(sorted(beside)))


def stage_tool(stage: str) -> FileSet:
    """Return the files of the tool that make wheels and environments, and run the stage or are what it tests.

    Those of the plugin that are in no other wheel are among them, for its stage.
    """
    packages = ("archive", "patches", "upstream", "wheels", *_PACKAGES.get(stage, ("engines",)))
    contract = ("ci/contract.toml",) * (stage == "static")
    plugin = ("overlay/sglang_overlay_plugin", "overlay/sglang_overlay_plugin_start.py") * (stage in PLUGIN_STAGE)
    trees = (*(f"{_TOOL}/{package}" for package in packages), f"{_TOOL}/proving/stages.py", *contract, *plugin)
    return FileSet(trees=trees, folders=(_TOOL,))


class Inputs:
    """What stages run on in a checkout as it is now; what several stages share is read once.

    Parameters: `hooks`, the series; `python`, the minor version of the engines' environments, this one's if None.
    """

    def __init__(self, project: Project, hooks: Sequence[Hook], python: str | None = None) -> None:
        self.project = project
        self._hooks = hooks
        self._python = python or THIS_PYTHON
        self._pytest = _pytest_settings(project)
        self._files: dict[FileSet, str] = {}
        self._wheels: dict[str, dict[str, str]] = {}
        self._changed: dict[str, list[str]] = {}

    def parts(self, release: Release, stage: str) -> dict[str, str]:
        """Return what a stage of a release runs on: the digest of each part, and the overlay's revision as it is.

        Raises PatchError if a hook that is due has no variant for the release.
        """
        if release.version not in self._wheels:
            self._wheels[release.version] = _wheel_parts(self.project, release, self._hooks)
        tests = _digest(f"{self._digest_of(stage_tests(stage))} {self._pytest}".encode())
        return {**self._wheels[release.version], "tests": tests, "tool": self._digest_of(stage_tool(stage))}

    def differences(self, result: Result, release: Release) -> list[str]:
        """Say in what a result was of something else than the checkout; nothing where it still holds."""
        try:
            now = self.parts(release, result.stage)
        except PatchError as error:
            return list(error.problems)
        if not result.inputs:
            return ["it was recorded without what it ran on"]
        words = [
            word for part in now if result.inputs.get(part) != now[part] for word in self._words(part, result, now)
        ]
        # The static stage runs in the tool's own environment.
        python = THIS_PYTHON if result.stage == "static" else self._python
        if result.python.split(".")[:2] != python.split("."):
            words.append(f"it was recorded with Python {result.python}, not {python}")
        if result.machine != platform.machine():
            words.append(f"it was recorded on {result.machine}, not {platform.machine()}")
        return list(dict.fromkeys(words))

    def _digest_of(self, files: FileSet) -> str:
        if files not in self._files:
            self._files[files] = files.digest(self.project.root)
        return self._files[files]

    def _words(self, part: str, result: Result, now: Mapping[str, str]) -> list[str]:
        """Say what of a part has changed; git knows which files, where it has the commit of the result."""
        if part == "revision":
            return [f"the overlay's revision was {result.inputs.get(part, 'not recorded')} and is {now[part]}"]
        if part == "base":
            return [f"upstream.lock has another sglang {result.release}"]
        files, otherwise = {
            "hooks": (FileSet(trees=("patches",)), f"the hooks of sglang {result.release}"),
            "overlay": (FileSet(trees=("overlay/sglang", "overlay/sgl_kernel")), "the files of overlay/"),
            "settings": (FileSet(trees=("pyproject.toml", "NOTICE", "LICENSE")), "pyproject.toml, NOTICE or LICENSE"),
            "tests": (stage_tests(result.stage), "what tests/ has of this stage"),
            "tool": (stage_tool(result.stage), f"what {_TOOL} has of this stage"),
        }[part]
        names = [name for name in self._changed_since(result.commit.rstrip("+")) if files.holds(name)]
        more = f" and {len(names) - _NAMED} more files" if len(names) > _NAMED else ""
        return [f"{', '.join(names[:_NAMED]) or otherwise}{more} changed"]

    def _changed_since(self, commit: str) -> list[str]:
        if commit not in self._changed:
            words = ["diff", "--name-only", "-z", "--no-renames", "--relative", commit, "--"]
            found = git(words, cwd=self.project.root)
            self._changed[commit] = found.stdout.split("\0")[:-1] if found.returncode == 0 else []
        return self._changed[commit]


def _wheel_parts(project: Project, release: Release, hooks: Sequence[Hook]) -> dict[str, str]:
    """Return the parts that both wheels of a release are made of."""
    patches = [patch for hook in hooks if (patch := hook.variant(release.version))]
    packages = [read_package(project, package, release.version) for package in ("sglang", "sgl_kernel")]
    rules = [[[str(each) for each in some] for some in (rule.override, rule.exclude)]
             for rule in rules_for(project, release.version)]  # fmt: skip
    legal = [(name, read_file(project.root / name)) for name in ("NOTICE", "LICENSE")]
    settings = [rules, sorted(project.replaced(release.version))]
    return {
        "base": _digest(dump_lock({release.version: release}).encode()),
        "hooks": _digest(_content((patch.hook, patch.diff.encode()) for patch in patches)),
        "overlay": _digest(_content(file for package in packages for file in package.items())),
        "settings": _digest(_content(legal) + json.dumps(settings).encode()),
        "revision": str(project.revision),
    }


def _pytest_settings(project: Project) -> str:
    table = tomllib.loads(project.settings.read_text(encoding="utf-8"))
    return json.dumps(table["tool"].get("pytest", {}), sort_keys=True)


def _content(files: Iterable[tuple[str, bytes]]) -> bytes:
    return b"".join(f"\0{name}\0{len(data)}\0{'x' * is_executable(data)}".encode() + data for name, data in files)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
