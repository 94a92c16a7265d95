"""The overlay's own code, as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from overlay_tools.api_check.bindings import last_name
from overlay_tools.checkout import own_paths
from overlay_tools.errors import ContractError, WheelError
from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlayCode:
    """The overlay's Python files that are part of sglang or name it.

    `files`: their syntax trees by path in the wheel; `accessed_attributes`: the names of all attributes that they read,
    except from `super()`; `called_names`: the names of all functions and classes that they call.
    """

    files: Mapping[str, ast.Module]
    accessed_attributes: frozenset[str]
    called_names: frozenset[str]


def read_overlay(project: Project, version: str) -> OverlayCode:
    """Read the overlay's files that a release takes.

    Raises ContractError if one of them is not valid Python.
    """
    paths = (path for path in own_paths(project.overlay) if path.suffix == ".py")
    names = ((path.relative_to(project.overlay).as_posix(), path) for path in paths)
    files = ((name, path.read_bytes()) for name, path in names if project.takes(version, name))
    return _parse(tuple((name, data) for name, data in files if name.startswith("sglang/") or b"sglang" in data))


@lru_cache(maxsize=4)  # most releases take the same files
def _parse(contents: tuple[tuple[str, bytes], ...]) -> OverlayCode:
    try:
        files = {name: parse(data, f"overlay/{name}") for name, data in contents}
    except WheelError as error:
        raise ContractError(*error.problems, hint="Correct the file.") from None
    accessed, called = set[str](), set[str]()
    for node in (node for tree in files.values() for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and ast.unparse(node.value) != "super()":
            accessed.add(node.attr)
        if isinstance(node, ast.Call):
            called.add(name := last_name(node.func))
            if name in ("getattr", "hasattr"):
                accessed |= {str(item.value) for item in node.args[1:2] if isinstance(item, ast.Constant)}
    return OverlayCode(files=files, accessed_attributes=frozenset(accessed), called_names=frozenset(called))
