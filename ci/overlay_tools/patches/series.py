"""patches/: the series of hooks, the header and the diff of each variant, and which variant a release takes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from unidiff import PatchedFile, PatchSet
from unidiff.errors import UnidiffParseError

from overlay_tools.errors import PatchError
from overlay_tools.patches.model import FIELDS, README, Hook, Patch, sides, target_of
from overlay_tools.subprocesses import git

_FILE_HEAD = re.compile(r"diff --git a/(\S+) b/\1\n(?:index .*\n)?--- a/\1\n\+\+\+ b/\1\n")
_HINT = "patches/README.md says what a patch must look like."


def load_series(folder: Path) -> tuple[Hook, ...]:
    """Read `series` and every patch of the hooks that it lists, in order.

    Raises PatchError with every fault found: of headers, diffs, paths and of files that are unlisted or absent.
    """
    faults: list[str] = []
    series = folder / "series"
    try:
        lines = series.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PatchError(f"{series}: {error.strerror}.", hint="List the hooks there, one a line.") from None
    hooks: dict[str, Hook] = {}
    for number, line in enumerate(lines, 1):
        name, _, range_ = line.partition("#")[0].strip().partition(" ")
        if not name:
            continue
        if name in hooks:
            faults.append(f"{series}:{number}: {name} is listed twice.")
            continue
        try:
            due = SpecifierSet(range_.strip())
        except InvalidSpecifier as error:
            faults.append(f"{series}:{number}: {error}.")
            continue
        variants = []
        for path in sorted((folder / name).glob("*.patch")):
            try:
                variants.append(load_patch(path, name))
            except PatchError as error:
                faults += error.problems
        if not any((folder / name).glob("*.patch")):
            faults.append(f"{series}:{number}: there is no patch in {folder / name}.")
        hooks[name] = Hook(name=name, due=due, variants=tuple(variants))
    for path in sorted(folder.rglob("*")):
        part = path.relative_to(folder).parts
        listed = part[0] in hooks and (len(part) == 1 or (len(part) == 2 and path.suffix == ".patch"))
        if path not in (series, folder / README) and not listed:
            faults.append(f"{path} is not a patch of a hook that {series} lists.")
    if faults:
        raise PatchError(*faults, hint=_HINT)
    return tuple(hooks.values())


def load_patch(path: Path, hook: str) -> Patch:
    """Read one variant: a header as in RFC 822, then a diff that changes existing text files and nothing else.

    Raises PatchError with every fault and its line.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PatchError(f"{path}: {error}.", hint=_HINT) from None
    found = re.search(r"^(diff --git |--- |GIT binary patch)", text, re.MULTILINE)
    if found is None:
        raise PatchError(f"{path}: there is no diff in it.", hint=_HINT)
    header, diff = text[: found.start()], text[found.start() :]
    first_line = header.count("\n") + 1
    faults, applies = _check_header(path, header)
    faults += _check_diff(path, diff, first_line)
    if faults:
        raise PatchError(*faults, hint=_HINT)
    files = _parse(path, diff, first_line)
    for file in files:
        faults += _check_file(path, file, first_line)
    if not files:
        faults.append(f"{path}:{first_line}: the diff changes nothing.")
    if faults:
        raise PatchError(*faults, hint=_HINT)
    return Patch(
        hook=hook,
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        header={name: " ".join(value.split()) for name, value in HeaderParser().parsestr(header).items()},
        applies=applies,
        diff=diff,
        first_line=first_line,
        files=files,
    )


def _check_header(path: Path, header: str) -> tuple[list[str], SpecifierSet]:
    message = HeaderParser().parsestr(header)
    faults = [f"{path}:1: the header has no {name}." for name in FIELDS if not (message[name] or "").strip()]
    for name in message:
        line = next((n for n, text in enumerate(header.splitlines(), 1) if text.startswith(name + ":")), 1)
        if name not in FIELDS:
            faults.append(f"{path}:{line}: unknown header {name}; there are {', '.join(FIELDS)}.")
        elif len(message.get_all(name, [])) > 1:
            faults.append(f"{path}:{line}: {name} is there twice.")
    rest = str(message.get_payload()).strip()
    if rest or message.defects:
        faults.append(f"{path}: this is neither a header nor a diff: {rest.splitlines()[0] if rest else header!r}.")
    if not re.match(r"https://\S+$|no: \S", message["Forwarded"] or "no: absent"):
        faults.append(f"{path}: Forwarded must be upstream's address of it, or `no: ` and a reason.")
    try:
        return faults, SpecifierSet(message["Applies"] or "")
    except InvalidSpecifier as error:
        return [*faults, f"{path}: Applies: {error}."], SpecifierSet()


def _parse(path: Path, diff: str, first_line: int) -> Sequence[PatchedFile]:
    # git says on which line a diff is malformed; unidiff says what is in a diff that is not.
    with TemporaryDirectory() as folder:
        checked = git(["apply", "--numstat", "-"], cwd=Path(folder), stdin=diff)
    if checked.returncode != 0:
        said = checked.stderr.strip().splitlines()[0].removeprefix("error: ")
        line = re.search(r" at (?:line |<stdin>:)(\d+)", said)
        where = f":{first_line + int(line[1]) - 1}" if line else ""
        raise PatchError(f"{path}{where}: git cannot read the diff: {said}.", hint=_HINT)
    try:
        return list(PatchSet.from_string(diff))
    except UnidiffParseError as error:
        raise PatchError(f"{path}: the diff cannot be read: {error}.", hint=_HINT) from None


def _check_diff(path: Path, diff: str, first_line: int) -> Iterable[str]:
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
    if not all(sides(hunk)[0] for hunk in file):
        yield f"{where} a hunk has no context, so that nothing says where it belongs."
