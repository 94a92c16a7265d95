"""A release's own files, read from its base wheel without unpacking or importing anything."""

from __future__ import annotations

import ast
import gc
import platform
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

from overlay_tools.archive.reader import WheelReader
from overlay_tools.errors import LockError, WheelError
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import THIS_PYTHON, LockedWheel, Release

TOO_DEEP = (RecursionError, MemoryError)  # what Python raises for code that is nested too deeply for its compiler
_STEM = 5  # letters: words that begin with the same ones are searched for together
_HELD: dict[frozenset[str], dict[tuple[int, int], frozenset[str]]] = {}  # by CRC and size: releases share most files


class SourceTree:
    """The files of one release by their path in the wheel, as upstream has them, or with some changed, added or gone.

    `names`: the paths of the Python files under sglang/.
    """

    def __init__(
        self, version: str, wheel: WheelReader, changed: Mapping[str, bytes | None] = MappingProxyType({})
    ) -> None:
        self.version = version
        self._changed = changed
        names = [*wheel.members, *(name for name in changed if name not in wheel.members)]
        self.names = tuple(
            name
            for name in names
            if name.startswith("sglang/") and name.endswith(".py") and changed.get(name, b"") is not None
        )
        self._wheel = wheel
        self._read: dict[str, bytes | None] = {**changed}
        self._trees: dict[str, ast.Module] = {}

    @property
    def path(self) -> Path:
        """Return the wheel that the files are read from."""
        return self._wheel.path

    @property
    def metadata(self) -> bytes:
        """Return the wheel's METADATA.

        Raises WheelError if it has none.
        """
        return self._wheel.read(f"{self._wheel.dist_info}/METADATA")

    def changed(self, files: Mapping[str, bytes | None]) -> SourceTree:
        """Return the same release with other files, by path, None for one that it is not to have."""
        return SourceTree(self.version, self._wheel, files)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if the release has no such file."""
        if name not in self._read:
            self._read[name] = self._wheel.get(name)
        return self._read[name]

    def tree(self, name: str) -> ast.Module | None:
        """Return the syntax tree of a file, or None if the release has no such file.

        Raises WheelError if the file is not valid Python.
        """
        if name not in self._trees:
            data = self.read(name)
            if data is None:
                return None
            self._trees[name] = parse(data, f"{name} of sglang {self.version}")
        return self._trees[name]

    def is_changed(self, name: str) -> bool:
        """Tell whether a file is another than upstream has."""
        return name in self._changed

    def holding(self, *words: str, under: str = "") -> list[str]:
        """Return the names of the Python files whose text holds at least one of some words.

        Parameters: `under`, how the paths begin that are asked about.
        """
        return [name for name, held in self.words_in(words, under) if held]

    def words_in(self, words: Iterable[str], under: str = "") -> Iterator[tuple[str, frozenset[str]]]:
        """Yield the names of the Python files, each with those of some words that its text holds.

        Parameters: `under`, how the paths begin that are asked about.
        """
        every = frozenset(words)
        alike = [list(group) for _, group in groupby(sorted(every), lambda word: word[:_STEM])]
        # Few files hold one of these: the letters that a group begins with, or all of a word that is alone.
        stems = [(group[0][: _STEM if group[1:] else None].encode(), group) for group in alike]
        held = _HELD.setdefault(every, {})
        for name in self.names:
            if not name.startswith(under):
                continue
            data = self._changed.get(name)
            if data is None:
                info = self._wheel.members[name]
                key = info.CRC, info.file_size
            else:
                key = zlib.crc32(data), len(data)
            if key not in held:
                data = self.read(name) or b""
                begun = (word for stem, group in stems if stem in data for word in group)
                held[key] = frozenset(word for word in begun if word.encode() in data)
            yield name, held[key]


@contextmanager
def open_source_tree(release: Release, cache: Path) -> Iterator[SourceTree]:
    """Open a release's files, fetching a base wheel first if none is in `cache`.

    Raises FetchError or WheelError if the wheel cannot be fetched or read.
    """
    with WheelReader(fetch(release, source_wheel(release), cache)) as wheel:
        yield SourceTree(release.version, wheel)


def source_wheel(release: Release) -> LockedWheel:
    """Return the wheel to read a release's sources from: this Python's or, as all hold the same ones, any."""
    try:
        return release.select(THIS_PYTHON, platform.machine())
    except LockError:
        return release.wheels[0]


def module_name(path: str) -> str:
    """Return the dotted name of the module that a Python file is, by its path in a wheel."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def parse(data: bytes, what: str) -> ast.Module:
    """Return the syntax tree of a file's content, or of part of it.

    Parameters: `what`, what an error calls the file.
    Raises WheelError if it is not valid Python.
    """
    try:
        return _parse(data)
    except (SyntaxError, ValueError) as error:
        raise WheelError(f"{what}: {error}.", hint="The wheel is damaged, or for a newer Python than this.") from None
    except TOO_DEEP:
        raise WheelError(f"{what}: nested too deeply.", hint="Python itself does not compile this file.") from None


@lru_cache(maxsize=512)
def _parse(data: bytes) -> ast.Module:
    # Releases share most of their files, and nothing changes a tree, so trees are kept. The garbage collector is kept
    # away from them: they hold no cycles, and to search so many objects for some would take as long as to parse.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # upstream's invalid escapes are upstream's
            return ast.parse(data)
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
