"""[tool.sglang-overlay] of pyproject.toml written anew: all that is not changed stays as a person wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape
from pathlib import PurePosixPath
from typing import Any

import tomlkit
from tomlkit.items import Array

# A glob of one of these would take files too that are added later, and are meant for every release.
_NOT_COLLAPSED = ("sglang", "sglang/srt")


def with_ranges(text: str, ranges: Mapping[str, str], every: Iterable[str]) -> str:
    """Return the text of pyproject.toml in which some of the overlay's files go to a range of releases each.

    A folder all of whose files have the same range is one line of `[tool.sglang-overlay.files]`. Lines that are there
    stay, unless they match no file any more, or a file that is given another range.

    Parameters: `ranges`, the PEP 440 specifier of each file by its path in a wheel, "" for every release; files that
    are not named keep what they have; `every`, the paths of all files that overlay/ is to hold.
    """
    document = tomlkit.parse(text)
    settings: Any = document["tool"]["sglang-overlay"]
    old = {str(key): str(value) for key, value in settings.get("files", {}).items()}
    every = sorted(every)
    wanted = {name: _range_of(name, old) for name in every} | dict(ranges)
    kept = {key: value for key, value in old.items() if _values(key, wanted) == {value}}
    new = _collapse({name: wanted[name] for name in every if not any(fnmatchcase(name, key) for key in kept)}, every)
    if kept == old and not new:
        return text
    if "files" not in settings:
        table = tomlkit.table()
        table.update(new)
        table.add(tomlkit.nl())
        settings["files"] = table
        return _dump(document, text)
    for key in old.keys() - kept.keys():
        del settings["files"][key]
    settings["files"].update(new)
    if not settings["files"]:
        del settings["files"]
    return _dump(document, text)


def with_dependencies(text: str, releases: str, override: Sequence[str], exclude: Sequence[str]) -> str:
    """Return the text of pyproject.toml with one more table of changed requirements, unless it has the same already.

    Parameters: `releases`, a PEP 440 specifier, "" for every release; `override` and `exclude`, as
    `[[tool.sglang-overlay.dependencies]]` takes them.
    """
    document = tomlkit.parse(text)
    settings: Any = document["tool"]["sglang-overlay"]
    table = tomlkit.table()
    if releases:
        table.add("releases", releases)
    for key, values in (("override", override), ("exclude", exclude)):
        if values:
            table.add(key, tomlkit.array().multiline(True))
            table[key].extend(tomlkit.string(value, literal='"' in value and "'" not in value) for value in values)
    if not (override or exclude) or table.unwrap() in settings.unwrap().get("dependencies", []):
        return text
    if isinstance(settings.get("dependencies"), Array):  # a person has written `dependencies = [{…}]`
        inline = tomlkit.inline_table()
        inline.update(table.unwrap())
        settings["dependencies"].append(inline)
        return _dump(document, text)
    table.add(tomlkit.nl())
    if "dependencies" not in settings:
        settings["dependencies"] = tomlkit.aot()
    settings["dependencies"].append(table)
    return _dump(document, text)


def _dump(document: tomlkit.TOMLDocument, text: str) -> str:
    """Return the text of a document that was read from a text, with the line ends of that."""
    made = tomlkit.dumps(document)
    return re.sub(r"\r?\n", "\r\n", made) if "\r\n" in text else made


def _range_of(name: str, ranges: Mapping[str, str]) -> str:
    return next((value for key, value in ranges.items() if fnmatchcase(name, key)), "")


def _values(key: str, wanted: Mapping[str, str]) -> set[str]:
    """Return the ranges of the files that a key matches."""
    return {value for name, value in wanted.items() if fnmatchcase(name, key)}


def _collapse(wanted: Mapping[str, str], every: Iterable[str]) -> dict[str, str]:
    """Return ranges by as few keys as it takes: folders where all of their files have the same one, and files.

    Parameters: `wanted`, the range of each file that has no key yet, "" for none.
    """
    found: dict[str, str] = {}
    for name, releases in wanted.items():
        if not releases or any(fnmatchcase(name, key) for key in found):
            continue
        parents = [str(parent) for parent in reversed(PurePosixPath(name).parents) if str(parent) != "."]
        folders = (folder for folder in parents if folder not in _NOT_COLLAPSED)
        within = {folder: [other for other in every if other.startswith(f"{folder}/")] for folder in folders}
        whole = [
            folder
            for folder, names in within.items()
            if len(names) > 1 and all(wanted.get(other) == releases for other in names)
        ]
        found[f"{escape(whole[0])}/*" if whole else escape(name)] = releases
    return found
