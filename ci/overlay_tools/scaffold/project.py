"""A plugin project: a folder outside this checkout with one model, all that it needs of ours, and its tests."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overlay_tools import console
from overlay_tools.engines import engine_config
from overlay_tools.errors import UsageError
from overlay_tools.scaffold.model import NewModel, environment_of, find_seed, format_files, render
from overlay_tools.scaffold.project_tests import COPIED, gather_tests
from overlay_tools.settings import Project, check_plugin
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.upstream.source_tree import module_name
from overlay_tools.user_files import read_data, read_text, write_whole
from overlay_tools.wheels.dependencies import with_own_kernel
from overlay_tools.wheels.plugin import plugin_files, with_imports

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LISTED = "overlay.sha256"  # in a project: the files that it has of this checkout, as sha256sum lists them
_TESTS_OWN = ("bases", "engine", "models", "plugin", "reference")
_GROUP = "sglang.srt.plugins"
_OWN = ("pyproject.toml", "README.md")


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginProject:
    """A project's folder and names: what installers and what imports call it."""

    folder: Path
    distribution: str
    package: str

    def place(self, name: str) -> str:
        """Return where in the folder a file is, by its path in the wheel, or in overlay/ where that is of sglang."""
        if name.startswith("sglang/srt/"):
            name = f"{self.package}/{name.removeprefix('sglang/srt/')}"
        return f"src/{name}" if name.startswith(f"{self.package}/") else f"start/{name}"


def name_project(project: Project, folder: Path) -> PluginProject:
    """Name a project as its folder.

    Raises UsageError if it cannot be named so, is in the checkout, or has something in it.
    """
    folder = folder.absolute()
    if project.root.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UsageError(
            f"{folder} is in this checkout.", hint="Name a folder outside it; without --project the model is made here."
        )
    if not folder.parent.is_dir():
        raise UsageError(f"There is no folder {folder.parent}.", hint="Make it, or name another.")
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise UsageError(f"{folder} is there already, and not empty.", hint="Name a new folder, or --update this one.")
    package = folder.name.replace("-", "_")
    faults = check_plugin(folder.name, package)
    if package in _TESTS_OWN:
        faults.append(f"{package} is a package of its tests")
    if faults:
        raise UsageError(
            *(f"--project: {fault}." for fault in faults),
            hint="The plugin is called as its folder: acme-models, for example, whose package is acme_models.",
        )
    return PluginProject(folder=folder, distribution=folder.name, package=package)


def make_project(project: Project, new: NewModel, target: PluginProject, python: Path) -> dict[str, bytes]:
    """Write a plugin project with a new model, all of it or nothing; return its files by their paths in it.

    Parameters: `python`, the interpreter of an engine environment, whose Transformers has the base.
    Raises UsageError if this checkout has files of the model's name, or none of the releases that the plugin is proven
    on has the base; ToolError if its tiny checkpoint cannot be made.
    """
    made = {path.as_posix(): text.encode() for path, text in render(project, new).items()}
    models = {name.removeprefix("overlay/"): data for name, data in made.items() if name.startswith("overlay/")}
    if taken := [name for name in models if (project.overlay / name).exists()]:
        raise UsageError(*(f"This checkout has an overlay/{name}." for name in taken), hint="Take another name.")
    files = with_imports(project, models)
    tests = {name: data for name, data in made.items() if name.startswith("tests/") and name.endswith(".py")}
    everything = {
        **_runtime(project, target, files),
        **gather_tests(project, tests),
        **_beside(project, target),
        **_own_documents(project, new, target, _releases(project, new, files)),
    }
    own = [*(target.place(name) for name in models), *tests]
    everything[LISTED] = _list({name: everything[name] for name in everything if name not in (*own, *_OWN)})
    part = target.folder.with_name(f".{target.folder.name}.{os.getpid()}.part")
    try:
        with console.step(f"Write {target.folder}"):
            for name, data in everything.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                (part / name).write_bytes(data)
            format_files(project, [part / name for name in own])
        find_seed(part / "tests/models" / new.name / "case.py", part / "tests/reference/seeds.py", new, python)
        part.replace(target.folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return {name: read_data(target.folder / name) for name in everything}


def update_project(project: Project, folder: Path) -> dict[str, bytes]:
    """Put this checkout's revision of what is ours into a project; return what it has of ours now.

    Raises UsageError if the folder is no such project, a file of ours there was changed or is gone, or a file of its
    own is in the way: nothing is written then.
    """
    target, listed = _read(folder.absolute())
    modules = [module_name(name.removeprefix("src/")) for name in listed if name.endswith(".py")]
    named = {"": "\n".join(f"sglang.srt{name.removeprefix(target.package)}" for name in modules).encode()}
    files = {name: data for name, data in with_imports(project, named).items() if name}
    tests = [name.replace("/bases/", "/models/", 1) for name in listed if name.startswith("tests/")]
    tests = [name for name in tests if name in COPIED or (project.root / name).exists()]
    tests = [name for name in tests if not name.endswith("/__init__.py")]
    ours = {**_runtime(project, target, files), **gather_tests(project, {}, tests), **_beside(project, target)}
    # An update that was cut short has brought some files, removed others, and not listed any.
    there = {name: _present(target.folder / name) for name in {**listed, **ours}}
    brought = {name: _digest(data) for name, data in ours.items()}
    faults = [
        f"{target.folder / name} is not as it was written."
        for name, digest in listed.items()
        if there[name] not in (digest, brought.get(name, ""))
    ]
    faults += [
        f"{target.folder / name} is the project's own, and revision {project.revision} has a file of this name."
        for name in ours
        if name not in listed and there[name] not in ("", brought[name])
    ]
    if faults:
        raise UsageError(*faults, hint="Restore what was changed; rename what is in the way. What is ours stays whole.")
    with console.step(f"Update {target.folder}"):
        for name in listed.keys() - ours.keys():
            (target.folder / name).unlink(missing_ok=True)
        for name, data in {**ours, LISTED: _list(ours)}.items():
            (target.folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(target.folder / name, data)
    return ours


def _read(folder: Path) -> tuple[PluginProject, dict[str, str]]:
    """Return a project that is there, and the digests of what it has of ours. Raises UsageError if it is none."""
    try:
        table = tomllib.loads(read_text(folder / "pyproject.toml", UsageError))["project"]
        lines = read_text(folder / LISTED, UsageError).splitlines()
        (package,), distribution = table["entry-points"][_GROUP], table["name"]
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (UsageError, KeyError, ValueError) as error:
        raise UsageError(
            f"{folder} is not a plugin project that `new` has made: {error}.",
            hint="`new NAME --project PATH` makes one.",
        ) from None
    return PluginProject(folder=folder, distribution=distribution, package=package), listed


def _releases(project: Project, new: NewModel, files: Iterable[str]) -> list[str]:
    """Return the releases that a model is proven on as a plugin. Raises UsageError if there are none."""
    takers = [version for version in project.plugin if all(project.takes(version, name) for name in files)]
    if found := [version for version in takers if version not in new.base.absent]:
        return found
    raise UsageError(
        f"None of the releases on which the plugin is proven has {new.base.architecture}: {', '.join(project.plugin)}.",
        hint="Take another base, or start the model in this checkout, without --project.",
    )


def _runtime(project: Project, target: PluginProject, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what the project's wheel is to hold, by where the project has it."""
    named = replace(
        project,
        plugin_distribution=target.distribution,
        plugin_package=target.package,
        replaces=project.replaces & files.keys(),
    )
    return {target.place(name): data for name, data in plugin_files(named, files).items()}


def _beside(project: Project, target: PluginProject) -> dict[str, bytes]:
    """Return what else of a project is ours: what its tests check first, and the licence of all that is ours."""
    licences = {f"licenses/{name}.sglang-overlay": read_data(project.root / name) for name in ("LICENSE", "NOTICE")}
    return {"tests/conftest.py": _filled("conftest.py", package=target.package), **licences}


def _own_documents(project: Project, new: NewModel, target: PluginProject, releases: Sequence[str]) -> dict[str, bytes]:
    """Return a project's settings and its page, which are its own from then on."""
    default = project.default if project.default in releases else releases[-1]
    kernels = with_own_kernel(project, load_lock(project.lock)[default])
    values = {
        "distribution": target.distribution,
        "package": target.package,
        "name": new.name,
        "model": new.architecture,
        "kind": new.kind,
        "base": new.base,
        "releases": releases,
        "default": default,
        "kernels": f"{kernels.kernel.name.replace('-', '_')}-{project.kernel_version(kernels.kernel_version)}",
        "env": engine_config.ENV,
        "flags": engine_config.flags(engine_config.ARGS),
    }
    return {name: _filled(name, **values) for name in _OWN}


def _filled(template: str, **values: object) -> bytes:
    return environment_of(("project",)).get_template(f"{template}.j2").render(values).encode()


def _list(files: Mapping[str, bytes]) -> bytes:
    return "".join(f"{_digest(data)}  {name}\n" for name, data in sorted(files.items())).encode()


def _present(path: Path) -> str:
    """Return the digest of a file, "" if there is none."""
    return _digest(read_data(path)) if path.is_file() else "not a file" if path.exists() else ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
