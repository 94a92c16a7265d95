"""The one way to call another program."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from overlay_tools.errors import ToolError


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output as text.

    Parameters: `env` is added to this process's own, a None in it takes the variable away; `stdin` is what the command
    reads; with `check`, a failure is an error that shows the whole of its output.
    Raises ToolError if the program is absent, or failed under `check`.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={name: value for name, value in {**os.environ, **(env or {})}.items() if value is not None},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except FileNotFoundError:
        raise ToolError(f"{words[0]} is not on this machine.", hint=f"Install {words[0]} and run this again.") from None
    if check and done.returncode != 0:
        output = (done.stdout + done.stderr).strip()
        raise ToolError(f"{' '.join(words)} failed with status {done.returncode}:\n{output}")
    return done


def run_logged(command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], log: Path) -> int:
    """Run a command to its end with its output in a file, and return its exit status.

    Where this is interrupted, the command is as if by Ctrl-C, and gets 30 seconds to clear up.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def git(arguments: Sequence[str | Path], *, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run git in a folder as if there were no repository around it and no configuration of the user's.

    Inside a repository that ignores the folder, `git apply` would change nothing and report success.
    Raises ToolError if there is no git.
    """
    env: dict[str, str | None] = {name: None for name in os.environ if name.startswith("GIT_")}
    env |= {"GIT_CEILING_DIRECTORIES": str(cwd.resolve().parent), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    return run(["git", *arguments], cwd=cwd, env={**env, "GIT_CONFIG_GLOBAL": os.devnull}, stdin=stdin, check=False)
