"""The plugin: the overlay's files as a package of their own, for an SGLang as upstream published it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from overlay_tools.errors import BuildError
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.upstream.source_tree import module_name
from overlay_tools.wheels.builder import BuiltWheel, build_own
from overlay_tools.wheels.import_rewriter import rewrite
from overlay_tools.wheels.overlay_files import check_ranges, compile_all, read_package

PACKAGE = "sglang_overlay_plugin"
_START = f"{PACKAGE}_start"  # beside the package, so that it is there to say what of the package is not
_UPSTREAM = ("sglang/srt/", "sglang/")
_METADATA = """\
Summary: The models of sglang-overlay for an SGLang as it was published
Keywords: {keywords}
Requires-Dist: sglang
"""
_ENTRY_POINTS = f"[sglang.srt.plugins]\n{PACKAGE} = {PACKAGE}.attach:attach\n"
# Python runs this line whenever it starts, in every program of the environment: no damage to the file may show there.
_STARTUP = f"import sys; exec('try:\\n import {_START}\\n {_START}.watch(with_python=True)\\nexcept Exception: pass')\n"


def build_plugin(project: Project) -> BuiltWheel:
    """Build the plugin wheel from the overlay's files.

    Raises BuildError if a file cannot be moved into the plugin's package, or if a release that pyproject.toml lists as
    proven with the plugin is not locked.
    """
    lock = load_lock(project.lock)
    if unknown := [version for version in project.plugin if version not in lock]:
        raise BuildError(
            *(f"pyproject.toml: plugin names {version}, which is not locked." for version in unknown),
            hint="It lists the releases that the plugin is proven on, with `nox -s test-plugin-VERSION`: take it out.",
        )
    check_ranges(project, lock)
    content = read_package(project, PACKAGE, None) | read_package(project, f"{_START}.py", None)
    files = _files(project)
    overlay = {**content, **files}
    moved = _moved(project, files)
    places = [*content, *moved.values()]
    if taken := sorted({name for name in places if places.count(name) > 1}):
        raise BuildError(
            *(f"overlay/: two files would become {name} of the plugin." for name in taken), hint="Rename one of them."
        )
    modules = {module_name(name): module_name(new) for name, new in moved.items() if name.endswith(".py")}
    for name, data in files.items():
        content[moved[name]] = rewrite(data, modules, f"overlay/{name}") if name.endswith(".py") else data
    folders = {str(parent) for name in content for parent in PurePosixPath(name).parents if str(parent) != "."}
    content |= {file: b"" for folder in folders if (file := f"{folder}/__init__.py") not in content}
    compile_all(content)
    built = build_own(
        project,
        PACKAGE.replace("_", "-"),
        str(project.revision),
        {**content, f"{PACKAGE}.pth": _STARTUP.encode()},
        _METADATA.format(keywords=",".join(f"sglang=={version}" for version in project.plugin)),
        {"entry_points.txt": _ENTRY_POINTS.encode()},
        overlay=overlay,
    )
    return replace(built, left_out=sorted(read_package(project, "sglang", None).keys() - files.keys()))


def _files(project: Project) -> dict[str, bytes]:
    """Return the files of overlay/sglang that the plugin has: those that the releases which it is proven on take.

    Raises BuildError if some of these releases take a file, and others do not.
    """
    files = read_package(project, "sglang", None)
    takers = {name: [version for version in project.plugin if project.takes(version, name)] for name in files}
    if faults := [
        f"overlay/{name} goes to {', '.join(some)} of the releases that the plugin is proven on, not to all of them."
        for name, some in takers.items()
        if some and len(some) < len(project.plugin)
    ]:
        raise BuildError(
            *faults,
            hint="One plugin serves all releases that `plugin` in pyproject.toml lists: list fewer, or let all of them"
            " take the file.",
        )
    return {name: data for name, data in files.items() if takers[name] or not project.plugin}


def _moved(project: Project, files: Iterable[str]) -> dict[str, str]:
    if project.replaces:
        raise BuildError(
            *(f"overlay/{name} replaces a file of upstream." for name in sorted(project.replaces)),
            hint="A plugin cannot replace upstream's files: this overlay needs the drop-in wheel of `nox -s build`.",
        )
    moved = {}
    for name in files:
        prefix = next(prefix for prefix in _UPSTREAM if name.startswith(prefix))
        moved[name] = f"{PACKAGE}/{name.removeprefix(prefix)}"
    return moved
