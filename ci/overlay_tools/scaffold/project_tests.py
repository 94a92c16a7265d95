"""The tests of a plugin project: those here that run on any model, made to stand by themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from overlay_tools.settings import Project
from overlay_tools.upstream.source_tree import module_name
from overlay_tools.user_files import read_data
from overlay_tools.wheels.import_rewriter import rewrite

_TOOL = "ci/overlay_tools"
COPIED = {  # what tests take from elsewhere than tests/, by where a project has it
    "tests/engine/engine_config.py": f"{_TOOL}/engines/engine_config.py",
    "tests/engine/forked.py": f"{_TOOL}/scaffold/project_forked.py",
    "tests/engine/loopback.py": f"{_TOOL}/engines/loopback.py",
    "tests/engine/server.py": f"{_TOOL}/scaffold/project_server.py",
    "tests/engine/settings.py": f"{_TOOL}/scaffold/project_settings.py",
    "tests/engine/supervisor.py": f"{_TOOL}/supervisor.py",
}
_MODULES = {
    "overlay_tools.engines": "engine",
    "overlay_tools.engines.loopback": "engine.loopback",
    "overlay_tools.engines.server": "engine.server",
    "overlay_tools.errors": "engine.server",
    "overlay_tools.scaffold.project_server": "engine.server",
    "overlay_tools.settings": "engine.settings",
    "overlay_tools.supervisor": "engine.supervisor",
}
_SERVING = "tests/engine/serving"
_TESTS = (  # those that run on a case of any kind, each on what the case declares
    "tests/engine/conftest.py",
    "tests/engine/offline_engine.py",
    f"{_SERVING}/test_http.py",
    f"{_SERVING}/test_multimodal.py",
    f"{_SERVING}/test_parity.py",
    f"{_SERVING}/test_refusals.py",
    f"{_SERVING}/test_servers.py",
    f"{_SERVING}/test_vectors.py",
    f"{_SERVING}/test_weight_updates.py",
    "tests/plugin/test_doctor.py",
    "tests/reference/seeds.py",
    "tests/data/heldout.txt",
)
_DATA = re.compile(rb'\bDATA / "([\w.-]+)"')  # how a case names the folder of its trained weights


def gather_tests(project: Project, own: Mapping[str, bytes], more: Iterable[str] = ()) -> dict[str, bytes]:
    """Return a project's tests: its own, those here that run on any model, some more, and what all these import.

    What a case takes from that of another model is in tests/bases: the project does not serve that, nor test it.
    """
    files: dict[str, bytes] = {}
    wanted = [*own, *_TESTS, *more]
    while wanted:
        name = wanted.pop()
        files[name] = own[name] if name in own else read_data(project.root / COPIED.get(name, name))
        if name.endswith(".py"):
            wanted += [found for found in _imported(project, files[name]) if found not in files]
    others = {name: name.replace("/models/", "/bases/", 1) for name in files if name.startswith("tests/models/")}
    others = {name: place for name, place in others.items() if name not in own}
    modules = _MODULES | {_test_module(name): _test_module(place) for name, place in others.items()}
    placed = {
        others.get(name, name): rewrite(data, modules, name) if name.endswith(".py") else data
        for name, data in files.items()
    }
    for folder in {folder.decode() for name in others for folder in _DATA.findall(files[name])}:
        data = [path for path in (project.root / "tests" / "data" / folder).iterdir() if path.is_file()]
        placed |= {path.relative_to(project.root).as_posix(): read_data(path) for path in data}
    packages = sorted({PurePosixPath(name).parent for name in placed if name.endswith(".py")})
    return {**{f"{package}/__init__.py": b"" for package in packages}, **placed}


def _test_module(name: str) -> str:
    return module_name(name.removeprefix("tests/"))


def _imported(project: Project, data: bytes) -> Iterator[str]:
    """Yield the files that a test imports, by where a project has them."""
    for node in ast.walk(ast.parse(data)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names] + [str(node.module)]
        for name in names:
            package, _, module = name.rpartition(".")
            path = f"tests/{_MODULES.get(name, f'{_MODULES.get(package, package)}.{module}').replace('.', '/')}.py"
            if path in COPIED or (project.root / path).is_file():
                yield path
