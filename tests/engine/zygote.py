"""A process that has imported what a server imports, of which servers and engines are forked: it takes 15 s of CPU.

    python zygote.py SOCKET

Each connection to the socket is one of them. It sends a line of JSON: `program`, which is a module or a file, its
`arguments` and `environment`, the file `log`, and the code `changes`. The answers are two lines: the process, and how
it has ended, as of `subprocess.Popen.returncode`.
"""

from __future__ import annotations

import json
import os
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:1] = [str(TESTS), str(TESTS.parent / "ci")]
from overlay_tools.supervisor import end_with_parent  # noqa: E402

from engine.huge_pages import prepare_to_fork  # noqa: E402

sys.path[:2] = [""]  # as it is where a module is run


def import_all() -> None:
    """Import what the processes of a server import."""
    import sglang.launch_server
    import sglang.srt.entrypoints.http_server
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler
    import sglang.srt.models.registry  # noqa: F401  # which imports all models

    prepare_to_fork()


def serve(path: Path) -> None:
    """Fork a process for each connection, and tell how it ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                asked = json.loads(connection.makefile().readline())
                pid = os.fork()
                if pid == 0:
                    leave(listener, selector, connection)
                    become(asked)
                connection.sendall(f"{pid}\n".encode())
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
            else:
                handle = int(key.fd)
                selector.unregister(handle)
                os.close(handle)
                pid, connection = key.data
                tell(connection, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def leave(listener: socket.socket, selector: selectors.BaseSelector, connection: socket.socket) -> None:
    """Close what this process, which has just been forked, has no part in.

    Each by its owner, and no other: what modules have opened when they were imported they may close at any time, and by
    then its number must not be that of another file.
    """
    for key in [*selector.get_map().values()]:
        if key.fileobj is not listener:
            os.close(key.fd)
            key.data[1].close()
    for each in (selector, listener, connection):
        each.close()


def tell(connection: socket.socket, status: int) -> None:
    """Send how a process has ended to who asked for it, if it is still there."""
    try:
        connection.sendall(f"{status}\n".encode())
    except OSError:
        pass
    finally:
        connection.close()


def become(asked: dict[str, Any]) -> None:
    """Turn this process, which has just been forked, into what runs a program."""
    end_with_parent()
    os.setsid()
    with Path(asked["log"]).open("ab", buffering=0) as log, Path(os.devnull).open("rb") as nothing:
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), target)
    os.environ.clear()
    os.environ.update(asked["environment"])
    program = asked["program"]
    sys.argv = [program, *asked["arguments"]]
    change_modules(asked["changes"], asked["log"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 1
    try:
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def change_modules(code: str, log: str) -> None:
    """Run code of a test as if it had run before the modules were imported that it changes; `log` is its file."""
    changes: dict[str, Callable[[ModuleType], None]] = {}
    exec(code, {"CHANGES": changes, "__file__": log})
    for name, change in changes.items():
        if name not in sys.modules:
            sys.modules["sitecustomize"].CHANGES[name] = change
            continue
        module = sys.modules[name]
        before = dict(vars(module))
        change(module)
        changed = {id(old): vars(module)[key] for key, old in before.items() if vars(module)[key] is not old}
        for other in [*sys.modules.values()] if changed else []:  # what others have imported from it
            for key, value in [*getattr(other, "__dict__", {}).items()]:
                if id(value) in changed:
                    setattr(other, key, changed[id(value)])


if __name__ == "__main__":
    import_all()
    serve(Path(sys.argv[1]))
