"""Forks, patches and mails as others make them, for the tests of import."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

from overlay_tools.downstream.importer import ImportPlan, plan_import, write_import
from overlay_tools.patches.lint import lint
from overlay_tools.patches.series import load_series

from unit.conftest import ENGINE, LOADER, Miniature, upstream_files

FILE, ENGINE_FILE = "sglang/loader.py", "sglang/engine.py"
LAST = LOADER.replace("    return 3\n", "    return 4\n")
FASTER = ENGINE.replace("size = 4", "size = 8")


def upstream(version: str = "1.0") -> dict[str, bytes]:
    return upstream_files(version) | {ENGINE_FILE: ENGINE.encode()}


def git(folder: Path, *words: str | Path) -> str:
    who = ("-c", "user.name=Jürgen", "-c", "user.email=j@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, check=True)
    return done.stdout.decode()


def write(folder: Path, files: Mapping[str, bytes | str | None]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def checkout(folder: Path, version: str = "1.0") -> Path:
    """Make a checkout of upstream's, as git has it: sglang/ in python/, beside tests and documents."""
    fork = folder / "fork"
    fork.mkdir()
    git(fork, "init", "--quiet")
    files = {f"python/{name}": data for name, data in upstream(version).items() if "dist-info" not in name}
    write(fork, {**files, "README.md": "upstream\n", "test/test_loader.py": "def test(): pass\n"})
    commit(fork, "Upstream")
    return fork


def commit(fork: Path, message: str, files: Mapping[str, bytes | str | None] | None = None) -> None:
    write(fork, files or {})
    git(fork, "add", "--all")
    git(fork, "commit", "--quiet", "--allow-empty", f"--message={message}")


def mailed(fork: Path, count: int, *, one: bool = False) -> Path:
    """Return the last commits of a checkout as `git format-patch` writes them: a folder, or one mailbox."""
    if one:
        mailbox = fork.parent / "ours.mbox"
        mailbox.write_text(git(fork, "format-patch", "--stdout", f"-{count}"))
        return mailbox
    git(fork, "format-patch", "--quiet", "-o", fork.parent / "mails", f"-{count}")
    return fork.parent / "mails"


def difference(folder: Path, name: str, **files: tuple[str | None, str | None]) -> Path:
    """Write a diff without a message: loader, engine or new, before and after it."""
    fork = folder / f"{name} made"
    fork.mkdir()
    paths = {"loader": f"python/{FILE}", "engine": f"python/{ENGINE_FILE}", "new": "python/sglang/new.py"}
    git(fork, "init", "--quiet")
    commit(fork, "before", {paths[key]: before for key, (before, _) in files.items() if before is not None})
    write(fork, {paths[key]: after for key, (_, after) in files.items()})
    git(fork, "add", "--all")
    path = folder / f"{name}.patch"
    path.write_text(git(fork, "diff", "--cached"))
    return path


def planned(mini: Miniature, source: Path, base: str | None = "1.0", releases: str | None = None) -> ImportPlan:
    """Plan, and expect the checkout as it was."""
    before = mini.content()
    plan = plan_import(mini.project, mini.cache, source, base, releases, ())
    assert mini.content() == before
    return plan


def brought_in(mini: Miniature, source: Path, base: str | None = "1.0", releases: str | None = None) -> ImportPlan:
    """Plan and write, and expect a series without a fault, and wheels that build."""
    plan = planned(mini, source, base, releases)
    write_import(mini.project, mini.cache, plan, discard=False)
    assert lint(load_series(mini.root / "patches"), list(mini.lock)) == []
    for version in mini.lock:
        mini.build(version)
    return plan


def in_wheel(mini: Miniature, name: str, version: str = "1.0") -> str:
    with zipfile.ZipFile(mini.build(version).path) as archive:
        return archive.read(name).decode()


def outcomes(plan: ImportPlan) -> list[tuple[str, str, str]]:
    return [(row.title, row.outcome, row.hook) for row in plan.rows]


def notes(plan: ImportPlan) -> str:
    return "\n".join(note for row in plan.rows for note in row.notes)
