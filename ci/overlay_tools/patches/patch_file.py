"""One patch file, read and checked: a header as in RFC 822, then a diff of existing files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from email.message import Message
from email.parser import HeaderParser
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from unidiff import PatchedFile, PatchSet
from unidiff.errors import UnidiffParseError

from overlay_tools.archive.names import find_name_faults
from overlay_tools.errors import PatchError
from overlay_tools.patches.model import FIELDS, FORWARDED, Patch, deletes, modes_of, renames, source_of, target_of
from overlay_tools.subprocesses import git
from overlay_tools.user_files import decode, read_data

HINT = "patches/README.md says what a patch must look like."
_FILE_HEAD = re.compile(
    r"""diff\ --git\ a/(?P<old>\S+)\ b/(?P<new>\S+)\n
    (?:deleted\ file\ mode\ 100(?:644|755)\n
    |(?:old\ mode\ 100(?P<mode>644|755)\nnew\ mode\ 100(?!(?P=mode))(?:644|755)\n)?
     (?P<rename>(?:similarity\ index\ \d+%\n)?rename\ from\ (?P=old)\nrename\ to\ (?P=new)\n)?
    )(?:index\ .*\n)?
    (?P<lines>---\ a/(?P=old)\n\+\+\+\ b/(?P=new)\n)?""",
    re.VERBOSE,
)
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_BLOB, _NONE = "[0-9a-f]{40}", "0" * 40
_INDEX = {  # what stands for the content where no hunk says what is expected
    "delete": re.compile(rf"^index {_BLOB}\.\.{_NONE}$", re.MULTILINE),
    "rename": re.compile(rf"^index ({_BLOB})\.\.\1$", re.MULTILINE),
}


def load_patch(path: Path, hook: str) -> Patch:
    """Read one variant of a hook.

    Raises PatchError with every fault and its line.
    """
    data = read_data(path, PatchError, HINT)
    text = decode(data, path, PatchError)
    if text.count("\r\n") == text.count("\n") > 0:  # a few may: lines of a file that has them upstream
        raise PatchError(f"{path}: its lines end in CRLF: `sed -i 's/\\r$//' {path}` makes it LF.", hint=HINT)
    found = re.search(r"^(diff --git |--- |GIT binary patch)", text, re.MULTILINE)
    if found is None:
        raise PatchError(f"{path}: there is no diff in it.", hint=HINT)
    head, diff = text[: found.start()], text[found.start() :]
    header, first_line = HeaderParser().parsestr(head), head.count("\n") + 1
    if faults := [*_check_header(path, head, header), *_check_file_heads(path, diff, first_line)]:
        raise PatchError(*faults, hint=HINT)
    files = _parse_diff(path, diff, first_line)
    faults = [f"{path}:{first_line + number - 1}: {fault}" for number, fault in find_left_over(diff)]
    faults += [fault for file in files for fault in _check_file(path, file, first_line)]
    faults += _changed_again(path, files, first_line)
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


def find_left_over(diff: str, signs: tuple[str, ...] = ("",)) -> Iterable[tuple[int, str]]:
    """Yield the lines, by number, with which a hunk goes on after its end by its @@, and why: git drops them.

    Parameters: `signs`, what such a line begins with; others may follow a hunk, as a message does in `git log -p`.
    """
    old = new = 0  # lines of a hunk that are to come
    ended = False
    for number, (line, next_) in enumerate(pairwise([*diff.split("\n"), ""]), 1):
        if old > 0 or new > 0:
            old -= not line.startswith(("+", "\\"))
            new -= not line.startswith(("-", "\\"))
            ended = True
        elif head := _HUNK.match(line):
            old, new = (int(length or 1) for length in head.groups())
        elif ended and line.strip() and not line.startswith("\\"):
            ended = False  # what follows a line of another kind is not of the hunk
            begins_file = line.startswith("diff --git ") or (line.startswith("--- ") and next_.startswith("+++ "))
            if line.startswith(signs) and line.rstrip() != "--" and not begins_file:
                yield number, f"by its @@ the hunk above ends before {line!r}: correct the counts there."


def _check_header(path: Path, text: str, header: Message) -> Iterable[str]:
    """Yield what is wrong with the header of a patch, given as text and parsed."""
    for name in FIELDS:
        if not (header[name] or "").strip():
            yield f"{path}:1: the header has no {name}."
    for name in header:
        number = next(n for n, line in enumerate(text.splitlines(), 1) if line.startswith(f"{name}:"))
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
    if said := _malformed(diff):
        line = re.search(r" at (?:line |<stdin>:)(\d+)", said)
        where = f":{first_line + int(line[1]) - 1}" if line else ""
        raise PatchError(f"{path}{where}: git cannot read the diff: {said}.", hint=HINT)
    try:
        return list(PatchSet.from_string(diff))
    except UnidiffParseError as error:
        raise PatchError(f"{path}: the diff cannot be read: {error}.", hint=HINT) from None


@lru_cache(maxsize=1024)  # an import or an export reads the same diffs several times
def _malformed(diff: str) -> str:
    """Return what git says of a diff that it cannot read, "" if it can."""
    with TemporaryDirectory() as folder:
        checked = git(["apply", "--numstat", "-"], cwd=Path(folder), stdin=diff)
    return checked.stderr.strip().splitlines()[0].removeprefix("error: ") if checked.returncode != 0 else ""


def _check_file_heads(path: Path, diff: str, first_line: int) -> Iterable[str]:
    """Yield what is wrong with what a diff says that it does to each file, before its first hunk."""
    for head in re.finditer(r"^diff --git .*\n(?:(?!@@ |diff --git ).*\n?)*", diff, re.MULTILINE):
        where = f"{path}:{first_line + diff[: head.start()].count(chr(10))}:"
        if re.search(r"^(?:GIT binary patch|Binary files )", head[0], re.MULTILINE):
            yield f"{where} a binary diff; a patch changes text only."
        elif re.search(r"^(?:new file|--- /dev/null)", head[0], re.MULTILINE):
            yield f"{where} it adds a file; files of our own belong in overlay/."
        elif re.search(r"^copy (?:from|to) ", head[0], re.MULTILINE):
            yield f"{where} it copies a file; files of our own belong in overlay/."
        elif re.search(r"^\+\+\+ /dev/null", head[0], re.MULTILINE):
            yield f"{where} it deletes a file and shows its content; git's `--irreversible-delete` leaves that out."
        else:
            yield from _check_form(where, head[0], hunks=diff.startswith("@@ ", head.end()))


def _check_form(where: str, head: str, *, hunks: bool) -> Iterable[str]:
    """Yield what is wrong with the form of the lines before a file's first hunk, if it has one."""
    found = _FILE_HEAD.fullmatch(head)
    deletes = "\ndeleted file mode " in head
    if found is None or bool(found["lines"]) != hunks or (found["rename"] is None and found["old"] != found["new"]):
        yield (
            f"{where} it does not begin with `diff --git` and go on as git writes it: `--- a/FILE` and `+++ b/FILE`,"
            " `deleted file mode`, `rename from` and `rename to`, or `old mode` and `new mode`, 100644 and 100755."
        )
    elif deletes and (hunks or not _INDEX["delete"].search(head)):
        yield f"{where} a file is deleted by its content: `index ID..{_NONE}`, with git's ID of it in full."
    elif found["rename"] and not hunks and not _INDEX["rename"].search(head):
        yield f"{where} a file is renamed as it is by its content: `index ID..ID`, with git's ID of it in full."
    elif "\nindex " in head and not (deletes or found["rename"] or hunks):
        yield f"{where} a change of mode has no index line: it is for any content."


def _check_file(path: Path, file: PatchedFile, first_line: int) -> Iterable[str]:
    """Yield what is wrong with what a diff does to one file."""
    where = f"{path}:{first_line + file.diff_line_no - 1}:"
    if not any(line.startswith("diff --git ") for line in file.patch_info or ()):
        yield f"{where} {target_of(file)} has no line `diff --git a/FILE b/FILE` above it, as git writes for each file."
    for name in dict.fromkeys((source_of(file), target_of(file))):
        parts = PurePosixPath(name).parts
        if parts[0] != "sglang" or ".." in parts:
            yield f"{where} {name} is outside sglang/; paths are a/sglang/... and b/sglang/..., as in a wheel."
        else:
            yield from (f"{where} {fault}" for fault in find_name_faults([name]))
    whole = deletes(file) or renames(file) or modes_of(file)
    if not file.added + file.removed and (len(file) or not whole):
        yield f"{where} it changes no line of {target_of(file)}."
    if any(hunk.source_start and not hunk.source_length for hunk in file):
        yield f"{where} a hunk has no context, so that nothing says where it belongs."


def _changed_again(path: Path, files: Sequence[PatchedFile], first_line: int) -> Iterable[str]:
    """Yield the parts of a diff that change a file which an earlier part has changed, as of two diffs in a row."""
    for number, file in enumerate(files):
        before = files[:number]
        if any(source_of(file) == source_of(each) or target_of(file) == target_of(each) for each in before):
            where = f"{path}:{first_line + file.diff_line_no - 1}:"
            yield (
                f"{where} {target_of(file)} is changed a second time: put all of its hunks into its first part, or let"
                " `nox -s import` make one hook of the diffs."
            )
