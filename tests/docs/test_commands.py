"""Every block of commands in every page, run as it stands, in a copy of the checkout that is thrown away.

What a reader has at that point, and the test has not, is made first (`BEFORE`). Two kinds of commands are not run here:
those in `ELSEWHERE`, which another file of the project runs, and that file must name them; and the tests of a whole
release, of which one test is run.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from overlay_tools.settings import load_project
from overlay_tools.upstream.lockfile import load_lock

from docs.pages import ROOT, Block, command_blocks, pages

BLOCKS = [block for page in pages() for block in command_blocks(page)]
DEFAULT = load_project(ROOT).default
NEWEST = list(load_lock(ROOT / "upstream.lock"))[-1]
NEXT = "0.5.24"  # the release that the pages take as their example of one that is not locked yet
PREPARE = f"PYTHONPATH=ci:tests {shlex.quote(sys.executable)} tests/docs/prepare.py"
ELSEWHERE = {"nox -s test": ".ci/run"}
UPSTREAM = (  # upstream's own sglang of the default release, with the CPU kernels
    f"nox -s build; pip install --reinstall-package sglang sglang=={DEFAULT}"
    " $(ls -t dist/sglang_kernel-*.whl | head -1); export SGLANG_USE_CPU_ENGINE=1"
)
BEFORE = {
    f"nox -s port -- {NEXT}": f"{PREPARE} unlock {NEWEST}",
    "nox -s import -- fix.patch": (
        "printf '%s\\n' 'diff --git a/python/sglang/fix.py b/python/sglang/fix.py' 'new file mode 100644'"
        " '--- /dev/null' '+++ b/python/sglang/fix.py' '@@ -0,0 +1 @@' '+FIXED = True' >fix.patch"
    ),
    "git apply residual.diff": f"{PREPARE} diff overlay/README.md >residual.diff",
    "nox -s matrix": f"{PREPARE} prove",
    "nox -s verify -- --env": f"nox -s test-{DEFAULT} -- -k test_sglang_is_the_overlay_build",
    "nox -s watch": "git config user.name Reader; git config user.email reader@example.org",
    "python -m sglang_overlay_plugin doctor": UPSTREAM,
    "pip install '../acme-models": UPSTREAM,
}
PIP = """\
#!/bin/sh
# What `pip install` does, from uv's cache and with hard links: an installed release has eight gigabytes.
[ "$1" = install ] || exec false
shift
exec "{python}" -m uv pip install --quiet --prerelease=allow --python "{environment}" "$@"
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what git has or would have of the checkout.

    The first of several test processes shares the checkout's engine environments. Others have their own: commands that
    build from two overlays would wait for each other.
    """
    copy = tmp_path_factory.mktemp("docs") / "checkout"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, copy], check=True)
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).unlink(missing_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, copy / name)
    (ROOT / ".nox" / "engines").mkdir(parents=True, exist_ok=True)
    (copy / ".nox").mkdir()
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
        (copy / ".nox" / "engines").symlink_to(ROOT / ".nox" / "engines")
    return copy


@pytest.fixture(scope="module")
def env(checkout: Path) -> Mapping[str, str]:
    """Return the environment of a reader's shell: an empty virtual environment, whose `pip` is uv's."""
    environment = checkout.parent / "venv"
    subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, environment], check=True)
    pip = environment / "bin" / "pip"
    pip.write_text(PIP.format(python=sys.executable, environment=environment), encoding="utf-8")
    pip.chmod(0o755)
    path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    named = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**named, "PATH": path, "VIRTUAL_ENV": str(environment)}


def test_the_pages_have_commands() -> None:
    assert {block.page for block in BLOCKS} >= {
        "README.md", "ci/README.md", "overlay/README.md", "patches/README.md", "tests/README.md"
    }  # fmt: skip


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_run_elsewhere_is_run_there(command: str) -> None:
    *nox, session = command.split()
    script = (ROOT / ELSEWHERE[command]).read_text(encoding="utf-8")
    assert any(session in line.split() for line in script.splitlines() if " ".join(nox) in line)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_the_commands_do_what_the_page_says(block: Block, checkout: Path, env: Mapping[str, str]) -> None:
    lines = []
    for command in block.commands:
        lines += [before for begin, before in BEFORE.items() if command.startswith(begin)]
        if command not in ELSEWHERE:
            lines.append(as_run(command))
    script = "\n".join(["set -euxo pipefail", *lines])
    done = subprocess.run(["bash", "-c", script], cwd=checkout, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.page}:{block.line}\n{done.stdout}\n{done.stderr}"


def as_run(command: str) -> str:
    """Return a command as it is on this machine, with one test in place of all those of a release."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    command = command.replace("0.5.23-py3.11", f"{DEFAULT}-py{sys.version_info.major}.{sys.version_info.minor}")
    command = command.replace("cp311-cp311", f"{tag}-{tag}").replace("_x86_64", f"_{platform.machine()}")
    command = command.replace(NEXT, NEWEST)
    if re.fullmatch(r"nox -s test-[\d.]+", command):
        command += " -- -k test_sglang_is_the_overlay_build"
    return command
