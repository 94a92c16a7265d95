"""The plugin: the overlay's files as a package of their own, for an SGLang as upstream published it.

Its names are those that pyproject.toml gives it. What attaches it, in `overlay/sglang_overlay_plugin`, has its source
under the names that stand here, and each plugin has a copy under its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from types import MappingProxyType

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.errors import BuildError
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import load_lock
from overlay_tools.upstream.source_tree import module_name
from overlay_tools.wheels.builder import BuiltWheel, build_own
from overlay_tools.wheels.import_rewriter import rewrite
from overlay_tools.wheels.overlay_files import check_ranges, compile_all, is_tiles, read_package

_PACKAGE, _DISTRIBUTION = "sglang_overlay_plugin", "sglang-overlay-plugin"
_START = f"{_PACKAGE}_start.py"  # beside the package, so that it is there to say what of the package is not
_RUNTIME = (  # what any model needs of overlay/sglang
    "sglang/srt/configs/config_keys.py",
    "sglang/srt/model_loader/*",
    "sglang/srt/overlay_*.py",
    "sglang/srt/overlay_models/__init__.py",
)
_SERVED = ("sglang/srt/models/", "sglang/srt/multimodal/processors/")  # upstream imports every file here
_MODULE = re.compile(r"\bsglang(?:\.\w+)+")
_UPSTREAM = ("sglang/srt/", "sglang/")
_METADATA = """\
Summary: Models of an overlay for an SGLang as it was published
Keywords: {keywords}
Requires-Dist: sglang
"""
_ENTRY_POINTS = "[sglang.srt.plugins]\n{0} = {0}.attach:attach\n"
# Python runs this line whenever it starts, in every program of the environment: no damage to the file may show there.
_STARTUP = (
    "import sys; exec('try:\\n import {0}_start\\n {0}_start.watch(with_python=True)\\nexcept Exception: pass')\n"
)


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
    files = _files(project)
    built = build_own(
        project,
        project.plugin_distribution,
        str(project.revision),
        plugin_files(project, files),
        _METADATA.format(keywords=",".join(f"sglang=={version}" for version in project.plugin)),
        {"entry_points.txt": _ENTRY_POINTS.format(project.plugin_package).encode()},
        overlay=_attaching(project) | files,
    )
    return replace(built, left_out=sorted(read_package(project, "sglang", None).keys() - files.keys()))


def plugin_files(project: Project, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of a plugin beside its .dist-info, under the names that the project gives it.

    Parameters: `files`, those of overlay/sglang that it is to have, by their paths there.
    Raises BuildError if one of them cannot be moved into the plugin's package.
    """
    attaching = _attaching(project)
    compile_all(attaching)
    content = {_renamed(name.encode(), project).decode(): _renamed(data, project) for name, data in attaching.items()}
    moved = _moved(project, files)
    places = [*content, *moved.values()]
    if taken := sorted({name for name in places if places.count(name) > 1}):
        raise BuildError(
            *(f"overlay/: two files would become {name} of the plugin." for name in taken), hint="Rename one of them."
        )
    modules = {module_name(name): module_name(new) for name, new in moved.items() if name.endswith(".py")}
    for name, data in files.items():
        made = rewrite(data, modules, f"overlay/{name}") if name.endswith(".py") else data
        content[moved[name]] = with_mode(made, executable=is_executable(data))
    folders = {str(parent) for name in content for parent in PurePosixPath(name).parents if str(parent) != "."}
    content |= {file: b"" for folder in folders if (file := f"{folder}/__init__.py") not in content}
    compile_all(content)
    return {**content, f"{project.plugin_package}.pth": _STARTUP.format(project.plugin_package).encode()}


def runtime_files(project: Project, own: Mapping[str, bytes] = MappingProxyType({})) -> dict[str, bytes]:
    """Return the files of a plugin without a model: what attaches it, the registry, and the strict loading of weights.

    They are whole. Beside them a plugin needs its rows and models, in `overlay_models/` and `models/` of its package,
    and in its metadata the entry point of `sglang.srt.plugins` and, as keywords, `sglang==RELEASE` for each release
    that it is proven on.

    Parameters: `own`, files of models, by the paths that they would have in overlay/: they are among those returned,
    as is what they import of the overlay. Models among that are there to be derived from, and are not served.
    Raises BuildError if one of them cannot be moved into the plugin's package.
    """
    return plugin_files(project, with_imports(project, own))


def with_imports(project: Project, own: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return `own` with all that a plugin needs beside it of overlay/sglang, by their paths there."""
    files = {**read_package(project, "sglang", None), **own}
    found: set[str] = set()
    wanted = [name for name in files if name in own or any(PurePosixPath(name).match(each) for each in _RUNTIME)]
    while wanted:
        name = wanted.pop()
        found.add(name)
        named = {f"{module.replace('.', '/')}.py" for module in _MODULE.findall(files[name].decode("utf-8", "replace"))}
        wanted += (named & files.keys()) - found
    return {
        name: _not_served(data) if name.startswith(_SERVED) and name not in own else data
        for name, data in files.items()
        if name in found
    }


def _not_served(data: bytes) -> bytes:
    """Return the code of a model or a processor without that by which upstream finds what it serves."""
    unnamed = re.sub(rb"^EntryClass = .*\n", b"", data, flags=re.MULTILINE)
    return re.sub(rb"^    models = .*", b"    models = ()", unnamed, flags=re.MULTILINE)


def _attaching(project: Project) -> dict[str, bytes]:
    """Return the files of overlay/ that attach the plugin."""
    return read_package(project, _PACKAGE, None) | read_package(project, _START, None)


def _renamed(text: bytes, project: Project) -> bytes:
    """Return the path or the content of a file that attaches a plugin, with this plugin's names in it."""
    names = {_PACKAGE: project.plugin_package, _DISTRIBUTION: project.plugin_distribution}
    return re.sub("|".join(names).encode(), lambda found: names[found.group().decode()].encode(), text)


def _files(project: Project) -> dict[str, bytes]:
    """Return the files of overlay/sglang that the plugin has: those that the releases which it is proven on take.

    Raises BuildError if some of these releases take a file, and others do not.
    """
    # Upstream looks for tiles in its own folder, or in one that a variable names: never in a plugin.
    files = {name: data for name, data in read_package(project, "sglang", None).items() if not is_tiles(name)}
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
        moved[name] = f"{project.plugin_package}/{name.removeprefix(prefix)}"
    return moved
