"""Patches that others made, read as they come: a diff, a mail of `git format-patch`, a mailbox, or a folder of them."""

from __future__ import annotations

import dataclasses
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import HeaderParser
from itertools import pairwise
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from unidiff import Hunk, PatchedFile, PatchSet
from unidiff.errors import UnidiffParseError

from overlay_tools.archive.mode import is_executable, with_mode
from overlay_tools.archive.names import find_name_faults
from overlay_tools.checkout import is_scratch
from overlay_tools.downstream.wheel_names import why_not_taken
from overlay_tools.downstream.worktree import read_trailers
from overlay_tools.errors import PatchError
from overlay_tools.patches.model import FORWARDED, HOOK_NAME, blob_id
from overlay_tools.patches.patch_file import find_left_over
from overlay_tools.subprocesses import git
from overlay_tools.user_files import read_data, read_text

HINT = (
    "SOURCE is a patch, a folder of patches, a mailbox of `git format-patch`, or a fork: a checkout, or a wheel,"
    " which may be unpacked."
)
_IS_LINK = "it is a link, which a wheel cannot hold"
_NOT_EXPRESSED = tuple(
    (re.compile(pattern, re.MULTILINE), reason)
    for pattern, reason in (
        (r"^diff --c", "it is of a merge: `git diff PARENT MERGE` gives all that it makes as one patch"),
        (r"^copy from ", "it is a copy of another file, which a hook cannot express"),
        (r"^(?:GIT binary patch|Binary files )", "it is binary, which a hook cannot express"),
        (r"^(?:new file mode|new mode|deleted file mode) (?:12|16)0000", _IS_LINK),
    )
)  # by the head of a file's diff
_ENDINGS = (".patch", ".diff", ".mbox", ".eml")
_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".tar.xz", ".tar.bz2", ".zip")
_SHOWN = re.compile(r"^commit [0-9a-f]{40}\b.*\n", re.MULTILINE)
_SECTION = re.compile(r"^diff --(?:git|cc|combined) .*\n", re.MULTILINE)
_SIGNS = ("+", "-", " ")  # with which the lines of a hunk begin
_OF_CLONE = re.compile(r'^(?:\+\+\+|---) "?[^/\n]+/python/sglang/', re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileChange:
    """What a patch does to one file.

    `name`: its path in a wheel, or as the patch has it if it is not under sglang/; `diff`: the lines that change in an
    existing file, and `line`, that of its first @@ in what was read; `content`: a new file's; `deleted`: whether it
    goes; `target`: its new name, if it gets one; `executable`: its new mode, if that changes; `blob`: how git's id of
    the content that a deletion expects begins; `left_out`: what of it cannot be brought in, and why.
    """

    name: str
    diff: str = ""
    line: int = 0
    content: bytes | None = None
    deleted: bool = False
    target: str = ""
    executable: bool | None = None
    blob: str = ""
    left_out: str = ""

    def expects(self, content: bytes) -> bool:
        """Tell whether a file has the content that a deletion expects; lines say themselves what they expect."""
        return blob_id(content).startswith(self.blob)


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignPatch:
    """One change that is to be brought in.

    `title`: what a person knows it by; `path`: where it was read; `name`: of the hook that it becomes; `header`: what
    is known of that hook's header.
    """

    title: str
    path: Path
    name: str
    header: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[FileChange] = ()


def read_patches(source: Path) -> list[ForeignPatch]:
    """Read a patch, a mailbox, or all of a folder: in the order of its `series`, or else by name.

    Raises PatchError if one of them is absent, empty, or not a patch.
    """
    if source.name.endswith(_ARCHIVES):
        raise PatchError(f"{source} is an archive.", hint=f"Unpack it, and give its folder. {HINT}")
    if source.is_dir():
        return [*(patch for path in _patches_of(source) for patch in _read_file(path)), *_others_of(source)]
    return _read_file(source)


def new_file(name: str, content: bytes) -> FileChange:
    """Return the change that adds a file, left out if no wheel would hold it."""
    if why := why_not_taken(name):
        return FileChange(name=name, left_out=f"it would go into no wheel: {why}")
    return FileChange(name=name, content=content)


def slug(text: str) -> str:
    """Return a text as the name of a hook."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].rstrip("-") or "patch"


def wheel_name(path: str) -> str:
    """Return a path of a patch or a checkout as it is in a wheel: upstream keeps sglang/ in python/."""
    return path.removeprefix("python/") if path.startswith("python/sglang/") else path


def apply_as_stated(content: bytes, file: PatchedFile) -> bytes | None:
    """Return a file with hunks applied, if each stands at the very line that it states; None if one does not.

    A patch made for this file can say so with lines of context that stand in it twice.
    """
    lines = re.split(r"(?<=\n)", content.decode("utf-8", "surrogateescape"))
    shift = 0
    for hunk in file:
        before, after = _side(hunk, "-"), _side(hunk, "+")
        start = hunk.source_start - (hunk.source_length > 0) + shift
        if (not before and lines != [""]) or lines[start : start + len(before)] != before:
            return None
        lines[start : start + len(before)] = after
        shift += len(after) - len(before)
    return with_mode("".join(lines).encode("utf-8", "surrogateescape"), executable=is_executable(content))


def lacks_context(hunk: Hunk) -> bool:
    """Tell whether a hunk only inserts lines, and says of none where they belong but by its number, as of `-U0`."""
    return bool(hunk.source_start) and not hunk.source_length


def last_contents(patches: Sequence[ForeignPatch]) -> dict[str, bytes]:
    """Return, by path, what becomes of the files that patches add, with what later ones do to them."""
    last: dict[str, bytes] = {}
    for change in (change for patch in patches for change in patch.files):
        if change.content is not None:
            last[change.name] = change.content
        elif change.name in last:
            made: bytes | None = last.pop(change.name)
            if change.diff and made is not None:
                (file,) = PatchSet.from_string(change.diff)
                made = apply_as_stated(made, file)
            if made is not None and not change.deleted:
                last[change.target or change.name] = made
    return last


def _side(hunk: Hunk, sign: str) -> list[str]:
    """Return the lines of a hunk, with their ends, before it (`-`) or after it (`+`)."""
    lines: list[str] = []
    last = ""
    for line in hunk:
        if line.line_type == "\\" and last in (" ", sign):
            lines[-1] = lines[-1].removesuffix("\n")
        elif line.line_type in (" ", sign):
            lines.append(line.value)
        last = line.line_type
    return lines


def _patches_of(folder: Path) -> list[Path]:
    series = folder / "series"
    if series.is_file():
        paths = _read_series(series)
    else:
        paths = sorted((path for path in folder.iterdir() if path.suffix in _ENDINGS), key=_by_number)
    if not paths:
        raise PatchError(f"There is no patch in {folder}, and no sglang/ or python/sglang/.", hint=HINT)
    return paths


def _read_series(series: Path) -> list[Path]:
    """Return the patches that a series lists, in order. Raises PatchError if one is absent, or to be reversed."""
    paths = []
    for number, line in enumerate(read_text(series).splitlines(), 1):
        if not (words := line.partition("#")[0].split()):
            continue
        path = series.parent / words[0]
        if {"-R", "--reverse"} & {*words}:
            raise PatchError(
                f"{series}:{number}: {words[0]} is to be applied in reverse, which import does not do.",
                hint=f"List what `interdiff {path} /dev/null` prints, from patchutils: that is its reverse.",
            )
        paths.append(path)
    if absent := [path for path in paths if not path.is_file()]:
        raise PatchError(*(f"{series} lists {path.name}, which is not there." for path in absent), hint=HINT)
    return paths


def _by_number(path: Path) -> tuple[list[int | str], str]:
    """Return what sorts paths by name, and the numbers in it as such."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)], path.name


def _others_of(folder: Path) -> Iterator[ForeignPatch]:
    """Yield what a person may have taken for patches of a folder too: a change that is left out for each such file."""
    if (folder / "series").is_file():
        return
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not is_scratch(path.relative_to(folder)))
    why = f"it is not read: of a folder, files at its top are that end with {', '.join(_ENDINGS)}"
    others = [
        FileChange(name=path.relative_to(folder).as_posix(), left_out=why)
        for path in paths
        if (path.parent == folder) != (path.suffix in _ENDINGS)
    ]
    if others:
        yield ForeignPatch(title="other files", path=folder, name="other-files", files=others)


def _read_file(path: Path) -> list[ForeignPatch]:
    data = read_data(path, PatchError, HINT).removeprefix(BOM_UTF8)
    if data.count(b"\n") == data.count(b"\r\n"):  # a mail on its way: no file has given it these ends
        data = data.replace(b"\r\n", b"\n")
    text = data.decode("utf-8", "surrogateescape")
    head, diff = _split(text)
    if _SHOWN.match(text):
        patches = list(_read_shown(path, text))
    elif re.match(r"From \S+ ", text):
        patches = list(_read_mailbox(path, data, 1))
    elif {"From", "Subject", "Date"} <= {*HeaderParser().parsestr(head)}:
        patches = list(_read_mailbox(path, b"From mail Mon Sep 17 00:00:00 2001\n" + data, 0))
    else:
        patches = [_make_patch(path, path.name, _read_header(head), diff, text, 1)]
    if not any(patch.files for patch in patches):
        raise PatchError(f"{path} is not a patch: there is no diff in it.", hint=HINT)
    return patches


def _read_shown(path: Path, text: str) -> Iterator[ForeignPatch]:
    """Yield the patches of what `git show` or `git log -p` prints: commits, each with its message indented."""
    starts = [found.start() for found in _SHOWN.finditer(text)]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True), 1):
        head, diff = _split(text[start:end])
        message = "\n".join(line[4:] for line in head.split("\n") if not line or line.startswith("    "))
        title = path.name if len(starts) == 1 else f"{path.name} {number}/{len(starts)}"
        line = text.count("\n", 0, start) + 1
        yield _make_patch(path, title, _header_of(message), diff, text[start:end], line)


def _read_mailbox(path: Path, data: bytes, line: int) -> Iterator[ForeignPatch]:
    """Yield the patches of a mailbox, whose first line is `line`; git decodes them, as for `git am`."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mbox").write_bytes(data)
        _git(path, folder, ["mailsplit", "--keep-cr", f"-o{folder}", "mbox"])
        mails = sorted(mail for mail in folder.iterdir() if mail.name.isdigit())
        for mail in mails:
            text = mail.read_bytes().decode("utf-8", "surrogateescape")
            said = _git(path, folder, ["mailinfo", "message", "diff"], text)
            subject = next((line[9:] for line in said.splitlines() if line.startswith("Subject: ")), path.stem)
            message = (folder / "message").read_text(encoding="utf-8", errors="replace")
            diff = (folder / "diff").read_bytes().decode("utf-8", "surrogateescape")
            title = path.name if len(mails) == 1 else f"{path.name} {int(mail.name)}/{len(mails)}"
            header = _header_of(f"{subject}\n\n{message}")
            yield _make_patch(path, title, header, _split(diff)[1], text, line)
            line += text.count("\n")


def _git(path: Path, folder: Path, words: Sequence[str], stdin: str | None = None) -> str:
    done = git(words, cwd=folder, stdin=stdin)
    if done.returncode != 0:
        raise PatchError(f"{path}: git cannot read the mailbox: {done.stderr.strip()}", hint=HINT)
    return done.stdout


def _split(text: str) -> tuple[str, str]:
    """Return what stands before a diff, and the diff."""
    # What `diff -r` and quilt write above a file is no message.
    found = re.search(r"^(?:diff -|Index: .*\n====|--- \S.*\n\+\+\+ \S)", text, re.MULTILINE)
    return (text, "") if found is None else (text[: found.start()], text[found.start() :])


def _read_header(head: str) -> dict[str, str]:
    """Return what stands before a diff without a mail: fields as in patches/ or DEP-3, or a message."""
    fields = HeaderParser().parsestr(head.lstrip())
    if "Subject" in fields or "Description" in fields:
        known = dict(fields.items())
        subject, _, rest = known.get("Subject", known.get("Description", "")).partition("\n")
        rest = rest or str(fields.get_payload()).strip().removesuffix("---")
        return _clean({"Why": known.get("Description", rest) or rest, **known, "Subject": subject})
    return _header_of(head.strip())


def _header_of(message: str) -> dict[str, str]:
    message = message.strip()
    words = ["interpret-trailers", "--parse", "--no-divider"]
    trailers = read_trailers(git(words, cwd=Path.cwd(), stdin=f"{message}\n").stdout)
    subject, _, body = message.partition("\n")
    if trailers:
        body = "\n\n".join(re.split(r"\n\s*\n", body.strip())[:-1])
    return _clean({"Subject": subject, "Why": body.strip().removesuffix("---").strip(), **trailers})


def _clean(header: Mapping[str, str]) -> dict[str, str]:
    known = {name: " ".join(str(value).encode("utf-8", "replace").decode().split()) for name, value in header.items()}
    if not FORWARDED.match(known.get("Forwarded", "")):
        known.pop("Forwarded", None)
    kept = ("Subject", "Why", "Forwarded", "Remove-When", "Hook")
    return {name: value for name, value in known.items() if name in kept and value}


def _make_patch(path: Path, title: str, header: dict[str, str], diff: str, text: str, first: int) -> ForeignPatch:
    """Return the patch of a diff.

    Parameters: `text`, where that was found, perhaps encoded; `first`, the line on which this begins.
    """
    above = first - 1 + text.count("\n") - diff.count("\n")
    where, above = (path, above) if text.endswith(diff) else (f"{title} (its diff, decoded)", 0)
    if faults := [f"{where}:{above + number}: {fault}" for number, fault in find_left_over(diff, _SIGNS)]:
        raise PatchError(*faults, hint=HINT)
    named = re.sub(r"^\d+[-_]", "", path.stem)
    name = header.pop("Hook", "")
    if not HOOK_NAME.fullmatch(name):
        name = slug(name or header.get("Subject", named))
    try:
        of_clone = _OF_CLONE.search(diff) is not None
        files = [change for section in _sections(diff) for change in _read_section(section, of_clone=of_clone)]
    except UnidiffParseError as error:
        raise PatchError(f"{title}: the diff cannot be read: {error}.", hint=HINT) from None
    header.setdefault("Subject", named)
    # Where a link takes the place of files, upstream's stay: git deletes them first.
    links = tuple(f"{change.name}/" for change in files if change.left_out == _IS_LINK)
    files = [change for change in files if not (change.deleted and f"{change.name}/".startswith(links))]
    return ForeignPatch(title=title, path=path, name=name, header=header, files=_with_lines(files, text, first))


def _with_lines(files: Sequence[FileChange], text: str, first: int) -> list[FileChange]:
    """Return changes with the lines of their first @@ in a text that begins on line `first`; 0 if that is encoded."""
    found, at = [], 0
    for file in files:
        head = next((line for line in file.diff.split("\n") if line.startswith("@@ ")), "")
        # A length of 1 is left out where git writes it, and is there where it was parsed.
        pattern = re.sub(r",(\d+)", r"(?:,\1)?", re.escape(head.partition(" @@")[0]))
        place = re.compile(rf"\n{pattern} @@").search(text, at) if head else None
        if place is not None:
            at = place.start() + 1
            file = dataclasses.replace(file, line=first + text.count("\n", 0, at))
        found.append(file)
    return found


def _sections(diff: str) -> Iterator[str]:
    """Yield the parts of a diff, one a file: git's, each as it is, and between them what other programs wrote."""
    starts = [0, *(found.start() for found in _SECTION.finditer(diff)), len(diff)]
    for start, end in pairwise(starts):
        part = diff[start:end]
        files = PatchSet.from_string(part)
        if _SECTION.match(part) and len(files) < 2:
            yield part  # which may be a head alone, that of a rename
        else:
            yield from map(str, files)


def _read_section(section: str, *, of_clone: bool) -> Iterator[FileChange]:
    """Yield what one part of a diff does: to its file's lines, and what cannot be expressed.

    Parameters: `of_clone`, as that of `_name_in`.
    """
    head = section.partition("\n@@ ")[0]
    name = _name_in(head, of_clone=of_clone)
    old, mode = (re.search(rf"^{word} (.*)$", head, re.MULTILINE) for word in ("rename from", "new mode"))
    origin = _unquote(old[1]) if old else ""
    outside = not name.startswith("sglang/") or ".." in PurePosixPath(name).parts
    if outside or any(find_name_faults([name])):
        why = "it is outside the wheel" if outside else "no file of a wheel may have this name"
        yield FileChange(name=name, left_out=why)
        if origin.startswith("sglang/"):
            yield FileChange(name=origin, deleted=True, blob=_expected_blob(head, []))
        return
    if reason := next((reason for pattern, reason in _NOT_EXPRESSED if pattern.search(head)), ""):
        yield FileChange(name=name, left_out=reason)
        return
    hunks = list(PatchSet.from_string(section))
    if re.search(r"^(?:deleted file mode |\+\+\+ /dev/null)", head, re.MULTILINE) or any(
        file.is_removed_file and _is_absent(file.target_timestamp) for file in hunks
    ):
        yield FileChange(name=name, deleted=True, blob=_expected_blob(head, hunks))
        return
    target, executable = "", mode[1].endswith("755") if mode else None
    if origin:
        name, target = origin, name
        if not name.startswith("sglang/"):
            yield FileChange(name=target, left_out=f"it comes from {name}, which is outside the wheel")
            return
    if re.search(r"^(?:new file mode |--- /dev/null)", head, re.MULTILINE) or any(
        file.is_added_file and _is_absent(file.source_timestamp) for file in hunks
    ):
        executable = bool(re.search(r"^new file mode 100755", head, re.MULTILINE))
        yield new_file(name, with_mode(_content(hunks), executable=executable))
    else:
        lines = "".join(str(hunk) for hunk in hunks[0]) if hunks else ""
        diff = f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n{lines}" if lines else ""
        if diff or target or mode:
            yield FileChange(name=name, diff=diff, target=target, executable=executable)


def _is_absent(timestamp: str | None) -> bool:
    """Tell whether this is the time that `diff -N` gives to a file that is not there: the epoch, in any time zone."""
    return (timestamp or "").startswith(("1970-01-01 ", "1969-12-31 "))


def _expected_blob(head: str, files: Sequence[PatchedFile]) -> str:
    """Return how git's id of the content that a deletion expects begins, "" if nothing says it."""
    lines = [line for file in files for hunk in file for line in _side(hunk, "-")]
    if lines:
        return blob_id("".join(lines).encode("utf-8", "surrogateescape"))
    index = re.search(r"^index ([0-9a-f]+)\.\.", head, re.MULTILINE)
    return index[1] if index else ""


def _name_in(head: str, *, of_clone: bool) -> str:
    """Return the path of a diff's file, as in a wheel.

    Parameters: `of_clone`, whether the first folder of a path is a clone's, even if that is called sglang.
    """
    new, old = (re.search(rf"^{sign} ([^\t\n]+)", head, re.MULTILINE) for sign in (r"\+\+\+", "---"))
    below = _below(new[1]) if new and old and new[1] != old[1] else ""
    in_folders = old is not None and below == _below(old[1])  # two of them, as quilt's x.orig and x
    if below and in_folders and (of_clone or wheel_name(below).startswith("sglang/")):
        return wheel_name(below)
    found = old if new is None or new[1] == "/dev/null" else new
    if found is None or found[1] == "/dev/null":
        found = re.match(r"diff --git a/(.+) b/\1$", head, re.MULTILINE) or re.match(
            r"diff --(?:git \S+|cc|combined) (\S+)", head
        )
    renamed = re.search(r"^rename to (.*)$", head, re.MULTILINE)
    if renamed is not None:
        return _unquote(renamed[1])
    return _unquote(re.sub(r'^("?)[abciow]/', r"\1", found[1].strip() if found else head.partition("\n")[0]))


def _below(path: str) -> str:
    """Return a path without its first folder, unquoted."""
    return _unquoted(path.strip()).partition("/")[2]


def _unquote(path: str) -> str:
    """Return a path of a diff as in a wheel."""
    return wheel_name(_unquoted(path))


def _unquoted(path: str) -> str:
    if path.startswith('"'):  # git quotes what is not ASCII, as C does
        path = path.strip('"').encode("ascii", "replace").decode("unicode_escape")
        path = path.encode("latin-1", "replace").decode("utf-8", "replace")
    return path


def _content(files: Sequence[PatchedFile]) -> bytes:
    """Return the content of a new file, from the diff that adds it."""
    lines = [line for file in files for hunk in file for line in _side(hunk, "+")]
    return "".join(lines).encode("utf-8", "surrogateescape")
