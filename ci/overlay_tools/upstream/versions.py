"""Which releases a package index has."""

from __future__ import annotations

import re
from subprocess import CompletedProcess
from urllib.parse import unquote

from packaging.utils import parse_wheel_filename
from packaging.version import Version

from overlay_tools.errors import ToolError
from overlay_tools.subprocesses import run
from overlay_tools.upstream.installers import pip, pip_environment, pip_index
from overlay_tools.upstream.lockfile import PLATFORMS, PYTHONS

_GLIBC = (17, *range(24, 48))  # minor versions that a wheel may ask for; what this machine has does not matter

_YANKED = re.compile(r"Skipping link: yanked for reason: .*/(sglang-[^/\s#]+\.whl)")


def newer_versions(than: str, index: str = "", *, candidates: bool = False, posts: bool = False) -> list[str]:
    """Return the releases after another one that an index has wheels of for our Pythons, oldest first.

    Parameters: `index`, its URL, "" for the one that pip is configured for; `candidates`, whether pre-releases count;
    `posts`, whether post-releases do. What was yanked is among them.
    Raises ToolError if the index does not answer.
    """
    found = set[Version]()
    asked = [_ask_pip(python, index, candidates=candidates) for python in PYTHONS]
    for done in asked:
        listed = re.search(r"^Available versions: (.*)$", done.stdout, re.MULTILINE)
        found |= {Version(word) for word in listed[1].split(", ")} if listed else set()
        # pip does not list what was yanked, but says that it passes over it.
        found |= {parse_wheel_filename(unquote(name))[1] for name in _YANKED.findall(done.stdout)}
    if not found:
        said = asked[-1].stderr.strip()
        raise ToolError(
            f"{index or 'The index'} could not be asked which releases of sglang it has:\n{said}",
            hint="Check the network, and --index.",
        )
    newer = sorted(version for version in found if version > Version(than))
    return [
        str(version)
        for version in newer
        if (candidates or not version.is_prerelease) and (posts or not version.is_postrelease)
    ]


def _ask_pip(python: str, index: str, *, candidates: bool) -> CompletedProcess[str]:
    abi = f"cp{python.replace('.', '')}"
    options = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", f"--abi={abi}", "--abi=none"]
    options += [f"--platform=manylinux_2_{minor}_{machine}" for minor in _GLIBC for machine in PLATFORMS]
    words = [*pip(), "-vv", "index", "versions", "sglang", *pip_index(index), *options, *["--pre"] * candidates]
    return run(words, env=pip_environment("index", index), check=False)
