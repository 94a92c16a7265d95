"""Changes to patches/: which variant of a hook each release takes, and the files that say so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from unidiff import PatchSet

from overlay_tools.patches.apply import find_block
from overlay_tools.patches.code_spans import scope_of
from overlay_tools.patches.model import CONTEXT, MOST_CONTEXT, sides
from overlay_tools.subprocesses import git


def make_diff(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """Return the diff between files by path: the same for the same content, whatever git and its configuration.

    Only files whose content differs are in it, sorted by path. A file's hunks have three lines of context, or as many
    more as it takes for each of them to fit the file at one place only.
    """
    diffs = []
    for name in sorted(before):
        if before[name] != after[name]:
            lines = before[name].decode("utf-8", "surrogateescape").split("\n")
            for context in range(CONTEXT, MOST_CONTEXT + 1):
                diff = _file_diff(name, before[name], after[name], context)
                hunks = [hunk for file in PatchSet.from_string(diff) for hunk in file]
                if all(len(find_block(lines, sides(hunk)[0])) == 1 for hunk in hunks):
                    break
            diffs.append(diff)
    return "".join(diffs)


def _file_diff(name: str, before: bytes, after: bytes, context: int) -> str:
    with TemporaryDirectory() as folder:
        for side, data in (("a", before), ("b", after)):
            path = Path(folder) / side / name
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        words = ["-c", "core.quotePath=false", "diff", "--no-index", "--no-prefix", "--no-renames", "--no-ext-diff"]
        words += ["--no-color", "--text", f"-U{context}", "--inter-hunk-context=0", "--minimal", "--indent-heuristic"]
        # To a file: what git prints, as text, has its line ends made alike.
        git([*words, "--output=diff", "a", "b"], cwd=Path(folder))
        text = (Path(folder) / "diff").read_bytes().decode("utf-8", "surrogateescape")
    text = re.sub(r"(?m)^index [0-9a-f]+\.\..*\n", "", text, count=1)
    # What git writes after the @@ depends on its configuration.
    return re.sub(
        r"(?m)^(@@ -\d+(?:,\d+)? \+(\d+)(?:,\d+)? @@).*$",
        lambda head: f"{head[1]} {scope_of(after, int(head[2]) + context)}".rstrip(),
        text,
    )
