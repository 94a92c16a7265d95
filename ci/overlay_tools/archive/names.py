"""The names that a wheel may give its members: those of files below its packages, its .dist-info and its .data."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

# Git sees its own folder in these on some disk; the second is what Windows may call the first.
_REPOSITORY = re.compile(r"/(?:\.git|git~1)[ .]*/", re.IGNORECASE)
_FOLDER = re.compile(r"[^\W\d]\w*(?:[.-]\w+)*")  # a package, or what auditwheel adds, as sglang.libs
_MODULE = re.compile(r"\w+\.(?:py|pth)")
_BASE = "sglang-"  # how the .dist-info of every base wheel begins


def find_name_faults(names: Sequence[str], dist_info: str = _BASE) -> Iterator[str]:
    """Yield what is wrong with the names of a wheel's members, folders end in a slash, a sentence each.

    Each file has one name, which every installer and every disk reads alike. None is, or makes, a git repository: git
    runs what such a one says. Beside packages, sglang's own wheel holds nothing: what lies there configures git, or
    runs with every Python. A .gitattributes or .gitignore in a package is a file as any other.
    Parameters: `dist_info`, the name of the .dist-info folder, left out where there is none among the names.
    """
    folders, files = set[str](), set[str]()
    for name in names:
        place = name.removesuffix("/")
        path = f"/{place}/"
        if name.startswith("/") or "\\" in name or ":" in name or "\0" in name or "/../" in path:
            yield f"{name!r} would be written outside the folder it is unpacked to."
            continue
        if not name.isprintable():
            yield f"{name!a} has a character that cannot be printed."
            continue
        if "//" in path or "/./" in path:
            yield f"{name!r} is not the plain way to write this path."
        if _REPOSITORY.search(path):
            yield f"{name!r} is part of a git repository."
        top, slash, _ = name.partition("/")
        if not _belongs(top, dist_info, below=bool(slash)):
            yield f"{name!r} is in no package of the wheel, nor in its .dist-info or .data."
        kind = folders if name.endswith("/") else files
        if place in kind:
            yield f"{name} appears twice."
        kind.add(place)
    parents = set[str]()
    for place in (*folders, *files):
        while (place := place.rpartition("/")[0]) and place not in parents:
            parents.add(place)
    folders |= parents
    yield from (f"{name} is a file and also a folder." for name in sorted(files & folders))
    yield from _repositories(files, folders)


@lru_cache
def _belongs(top: str, dist_info: str, *, below: bool) -> bool:
    """Tell whether a wheel may have a file at its top, or one below a folder there."""
    if not below:
        return not dist_info.startswith(_BASE) and _MODULE.fullmatch(top) is not None
    if top.endswith((".dist-info", ".data")):
        return top in (dist_info, f"{dist_info.removesuffix('.dist-info')}.data")
    return _FOLDER.fullmatch(top) is not None


def _repositories(files: Collection[str], folders: Collection[str]) -> Iterator[str]:
    """Yield the folders that git takes for repositories by what is in them."""
    heads = [name for name in files if name.rpartition("/")[2].casefold() == "head"]
    known = {name.casefold() for name in (*files, *folders)} if heads else set()
    for head in sorted(heads):
        folder = head.rpartition("/")[0]
        if {f"{folder}/{name}".casefold() for name in ("objects", "refs")} <= known or (
            f"{folder}/commondir".casefold() in known
        ):
            yield f"{folder} is a git repository."
