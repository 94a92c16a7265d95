"""One patch file, read and checked: a header as in RFC 822, then a diff that changes lines of existing files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from unidiff import PatchedFile, PatchSet
from unidiff.errors import UnidiffParseError

from overlay_tools.errors import PatchError
from overlay_tools.patches.model import FIELDS, FORWARDED, Patch, target_of
from overlay_tools.subprocesses import git

HINT = "patches/README.md says what a patch must look like."
_FILE_HEAD = re.compile(r"diff --git a/(\S+) b/\1\n(?:index .*\n)?--- a/\1\n\+\+\+ b/\1\n")


def load_patch(path: Path, hook: str) -> Patch:
    """Read one variant of a hook.

    Raises PatchError with every fault and its line.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PatchError(f"{path}: {error}.", hint=HINT) from None
    found = re.search(r"^(diff --git |--- |GIT binary patch)", text, re.MULTILINE)
    if found is None:
        raise PatchError(f"{path}: there is no diff in it.", hint=HINT)
    head, diff = text[: found.start()], text[found.start() :]
    header, first_line = HeaderParser().parsestr(head), head.count("\n") + 1
    if faults := [*_check_header(path, head, header), *_check_file_heads(path, diff, first_line)]:
        raise PatchError(*faults, hint=HINT)
    files = _parse_diff(path, diff, first_line)
    faults = [fault for file in files for fault in _check_file(path, file, first_line)]
    if faults or not files:
        raise PatchError(*(faults or [f"{path}:{first_line}: the diff changes nothing."]), hint=HINT)
    return Patch(
        hook=hook,
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        header={name: " ".join(value.split()) for name, value in header.items()},
        applies=SpecifierSet(header["Applies"]),
        diff=diff,
        first_line=first_line,
        files=files,
    )


def _check_header(path: Path, text: str, header: Message) -> Iterable[str]:
    """Yield what is wrong with the header of a patch, given as text and parsed."""
    for name in FIELDS:
        if not (header[name] or "").strip():
            yield f"{path}:1: the header has no {name}."
    for name in header:
        number = next((n for n, line in enumerate(text.splitlines(), 1) if line.startswith(f"{name}:")), 1)
        if name not in FIELDS:
            yield f"{path}:{number}: unknown header {name}; there are {', '.join(FIELDS)}."
        elif len(header.get_all(name, [])) > 1:
            yield f"{path}:{number}: {name} is there twice."
    rest = str(header.get_payload()).strip()
    if rest or header.defects:
        yield f"{path}: this is neither a header nor a diff: {rest.splitlines()[0] if rest else text!r}."
    if not FORWARDED.match(header["Forwarded"] or "no: absent"):
        yield f"{path}: Forwarded must be upstream's address of it, or `no: ` and a reason."
    try:
        SpecifierSet(header["Applies"] or "")
    except InvalidSpecifier as error:
        yield f"{path}: Applies: {error}."


def _parse_diff(path: Path, diff: str, first_line: int) -> Sequence[PatchedFile]:
    # git says on which line a diff is malformed; unidiff says what is in a diff that is not.
    with TemporaryDirectory() as folder:
        checked = git(["apply", "--numstat", "-"], cwd=Path(folder), stdin=diff)
    if checked.returncode != 0:
        said = checked.stderr.strip().splitlines()[0].removeprefix("error: ")
        line = re.search(r" at (?:line |<stdin>:)(\d+)", said)
        where = f":{first_line + int(line[1]) - 1}" if line else ""
        raise PatchError(f"{path}{where}: git cannot read the diff: {said}.", hint=HINT)
    try:
        return list(PatchSet.from_string(diff))
    except UnidiffParseError as error:
        raise PatchError(f"{path}: the diff cannot be read: {error}.", hint=HINT) from None


def _check_file_heads(path: Path, diff: str, first_line: int) -> Iterable[str]:
    """Yield what is wrong with what a diff says that it does to each file, before its first hunk."""
    for head in re.finditer(r"^diff --git .*\n(?:(?!@@ |diff --git ).*\n?)*", diff, re.MULTILINE):
        where = f"{path}:{first_line + diff[: head.start()].count(chr(10))}:"
        if re.search(r"^(?:GIT binary patch|Binary files )", head[0], re.MULTILINE):
            yield f"{where} a binary diff; a patch changes text only."
        elif re.search(r"^(?:new file|deleted file|--- /dev/null|\+\+\+ /dev/null)", head[0], re.MULTILINE):
            yield f"{where} it adds or removes a whole file; files of our own belong in overlay/."
        elif re.search(r"^(?:old|new) mode ", head[0], re.MULTILINE):
            yield f"{where} it changes a file's mode; a patch changes lines only."
        elif not _FILE_HEAD.fullmatch(head[0]):
            yield f"{where} it renames a file, or does not begin with `diff --git`, `--- a/FILE`, `+++ b/FILE`."


def _check_file(path: Path, file: PatchedFile, first_line: int) -> Iterable[str]:
    """Yield what is wrong with what a diff does to one file."""
    where = f"{path}:{first_line + file.diff_line_no - 1}:"
    parts = PurePosixPath(target_of(file)).parts
    if parts[0] != "sglang" or ".." in parts:
        yield f"{where} {target_of(file)} is outside sglang/; paths are a/sglang/... and b/sglang/..., as in a wheel."
    if not file.added + file.removed:
        yield f"{where} it changes no line of {target_of(file)}."
    if any(hunk.source_start and not hunk.source_length for hunk in file):
        yield f"{where} a hunk has no context, so that nothing says where it belongs."
