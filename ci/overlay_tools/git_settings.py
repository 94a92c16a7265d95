"""What git is told when the tool calls it: nothing of a user's settings has a say in what comes of that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from overlay_tools.user_files import file_in_memory

# Of the settings of a repository, which git reads whatever the environment is, these would change what a call does. The
# first two have a file of the user's as their default: it counts even where no configuration is read.
_SETTINGS = {
    "core.excludesFile": os.devnull,
    "core.attributesFile": os.devnull,
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "commit.gpgSign": "false",
    "log.showSignature": "false",
    "gc.auto": "0",  # it goes on in the background after git has ended
}
REFUSED = "detected dubious ownership"  # what git says of a repository of another user


def git_environment(cwd: Path, safe: Sequence[str] = ()) -> dict[str, str | None]:
    """Return what changes in the environment of git, None for what is taken away.

    Parameters: `cwd`, the folder that it runs in: no repository around it counts; `safe`, values of `safe.directory`.
    """
    # A hook of git's that calls nox has set GIT_DIR, GIT_INDEX_FILE and more, for its own repository.
    env: dict[str, str | None] = {name: None for name in os.environ if name.startswith("GIT_")}
    env |= {"GIT_CEILING_DIRECTORIES": str(cwd.resolve().parent), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    # No call needs another repository; where a part of one is to be fetched when it is missed, its settings say how.
    env |= {"GIT_ATTR_NOSYSTEM": "1", "GIT_ALLOW_PROTOCOL": ""}
    env |= {"GIT_TEMPLATE_DIR": "", "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_COUNT": str(len(_SETTINGS))}
    for number, (name, value) in enumerate(_SETTINGS.items()):
        env |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return {**env, "GIT_CONFIG_GLOBAL": _file_of(tuple(safe)) if safe else os.devnull}


def users_environment() -> dict[str, str | None]:
    """Return what changes in the environment of git where it is to read the user's configuration, and no other."""
    return {name: None for name in os.environ if name.startswith("GIT_") and not name.startswith("GIT_CONFIG")}


def _file_of(safe: tuple[str, ...]) -> str:
    """Return a configuration file with values of `safe.directory`: git before 2.38 takes them from a file only."""
    lines = [value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in safe]
    return file_in_memory("gitconfig", "".join(["[safe]\n", *(f'\tdirectory = "{line}"\n' for line in lines)]))
