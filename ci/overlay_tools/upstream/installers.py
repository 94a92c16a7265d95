"""How uv and pip are told which index to ask, and which wheel to take."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs
import tomlkit
from tomlkit.exceptions import TOMLKitError

from overlay_tools.errors import ToolError
from overlay_tools.subprocesses import run
from overlay_tools.upstream.installer_settings import PLACES, counts, foreign_variables
from overlay_tools.upstream.lockfile import PLATFORMS, PYTHONS, LockedWheel
from overlay_tools.user_files import file_in_memory, read_text


def uv() -> list[str]:
    """Return the command that calls this environment's uv."""
    return [sys.executable, "-m", "uv"]


def pip() -> list[str]:
    """Return the command that calls this environment's pip."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def uv_index(index: str) -> list[str]:
    """Return the options that make uv ask one index first, or those that it is configured for."""
    return ["--index", index, "--default-index", index] if index else []


def pip_index(index: str) -> list[str]:
    """Return the options that make pip ask one index, or those that it is configured for."""
    return ["--index-url", index] if index else []


def pip_environment(command: str, index: str = "") -> dict[str, str | None]:
    """Return what changes in the environment of pip, so that of a user's settings those count that should.

    Parameters: `command`, of pip, whose own settings its files have too; `index`, the only one to ask, if any.
    """
    kept = {key: value for key, value in _pip_files(command).items() if counts("PIP_", key)}
    env: dict[str, str | None] = {f"PIP_{key.upper().replace('-', '_')}": value for key, value in kept.items()}
    return env | _changes("PIP_", index) | {"PIP_CONFIG_FILE": os.devnull}  # pip reads no file then


def uv_environment(index: str = "") -> dict[str, str | None]:
    """Return what changes in the environment of uv, as `pip_environment` does for pip."""
    kept: dict[str, Any] = {}
    for path, table in _uv_files():
        _merge(kept, _that_count(table, path.parent, index))
    changes = _changes("UV_", index)
    if not kept:
        return changes | {"UV_CONFIG_FILE": None, "UV_NO_CONFIG": "1"}
    return changes | {"UV_CONFIG_FILE": file_in_memory("uv.toml", tomlkit.dumps(kept)), "UV_NO_CONFIG": None}


def _changes(prefix: str, index: str) -> dict[str, str | None]:
    """Return the variables that do not count, to be taken away; those of other places too where one index is named."""
    places = [f"{prefix}{key.upper().replace('-', '_')}" for key in PLACES] if index else []
    foreign = [name for name in foreign_variables(os.environ) if name.startswith(prefix)]
    # What is set stands before what a file says.
    same = {name: value for name, value in os.environ.items() if name.startswith(prefix)}
    return {**same, **dict.fromkeys(foreign + places)}


def _pip_files(command: str) -> dict[str, str]:
    """Return what pip's configuration files set for a command, as pip itself finds them."""
    values: dict[str, dict[str, str]] = {"global": {}, command: {}}
    for line in run([*pip(), "config", "list"], env=dict.fromkeys(foreign_variables(os.environ))).stdout.splitlines():
        name, equals, value = line.partition("=")
        section, _, key = name.partition(".")
        if equals and section in values:
            values[section][key] = str(ast.literal_eval(value))
    return {**values["global"], **values[command]}


def _uv_files() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield uv's configuration files, the one that counts most first (uv's documentation, "Configuration files")."""
    if os.environ.get("UV_CONFIG_FILE") or os.environ.get("UV_NO_CONFIG"):
        named = os.environ.get("UV_CONFIG_FILE")
        yield from ((path, _toml(path)) for path in ([Path(named).absolute()] if named else []))
        return
    for folder in (Path.cwd(), *Path.cwd().parents):
        table = _toml(folder / "uv.toml") or _toml(folder / "pyproject.toml").get("tool", {}).get("uv", {})
        if table:
            yield folder / "uv.toml", table
            break
    users = platformdirs.user_config_path("uv")
    systems = os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
    for path in (users, *(Path(each, "uv") for each in systems), Path("/etc/uv")):
        if table := _toml(path / "uv.toml"):
            yield path / "uv.toml", table


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomlkit.parse(read_text(path)).unwrap() if path.is_file() else {}
    except TOMLKitError as error:
        raise ToolError(f"{path}: {error}.", hint="uv reads this file: mend it.") from None


def _that_count(table: Mapping[str, Any], folder: Path, index: str) -> dict[str, Any]:
    """Return the settings of a file of uv's that count, with paths that do not depend on where the file is."""
    kept: dict[str, Any] = {}
    for key, value in table.items():
        if key == "pip" and isinstance(value, dict):
            kept[key] = _that_count(value, folder, index)
        elif counts("UV_", key) and not (index and key in PLACES):
            kept[key] = value
            if key == "find-links" and isinstance(value, list):
                kept[key] = [each if "://" in each else str(folder / each) for each in value]
            elif key == "cache-dir":
                kept[key] = str(folder / value)
    return kept


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Add settings of a file that counts less: lists go on, and of single values the first stays."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, list) and isinstance(into.get(key), list):
            into[key] = [*into[key], *value]
        else:
            into.setdefault(key, value)


def pip_target(wheel: LockedWheel) -> list[str]:
    """Return the options that make pip take exactly `wheel`, whatever interpreter and machine it runs on."""
    _, abi, platform = wheel.tags[-1].split("-")
    python = next(python for python in reversed(PYTHONS) if any(wheel.fits(python, machine) for machine in PLATFORMS))
    options = ["--only-binary=:all:", "--ignore-requires-python", f"--python-version={python}"]
    if abi != "none":
        options += ["--implementation=cp", f"--abi={abi}"]
    return options if platform == "any" else [*options, f"--platform={platform}"]


def pip_download(requirement: str, wheel: LockedWheel, index: str, folder: Path) -> None:
    """Download a wheel, whose sha256 is known, into a folder.

    Parameters: `requirement`, as "sglang==0.5.23".
    Raises ToolError, with what pip said, if there is no such file.
    """
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--quiet", *pip_index(index), *pip_target(wheel)]
    run(
        [*pip(), "download", *options, "--dest", folder, "--requirement", pinned],
        env=pip_environment("download", index),
    )
