"""Runs a program, and ends all that it has started once it has ended, or once the process that asked for it has.

    python -IS supervisor.py PARENT attached|apart PROGRAM ARGUMENT ...

PARENT is the process that starts this. An attached program is in the group of the terminal's commands: it gets Ctrl-C
and may read what is typed. This process is not, so that what ends a whole group leaves it to end the rest.

It passes on the signals to end, and kills all on SIGUSR1. Where its parent has ended, however that came about, it asks
the program to end, and kills all five seconds later. It ends as the program has. Linux only; it imports nothing of
the tool, and next to nothing of Python, for it is started often.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

ATTACHED, APART = "attached", "apart"
END_NOW = signal.SIGUSR1
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_WATCHED = (*PASSED_ON, END_NOW, signal.SIGCHLD)
_TICK = 0.25  # seconds between two looks for the parent
_PATIENCE = 5.0  # seconds that the program has to end by itself where the parent has ended
_STRAYS = 1.0  # seconds that what outlives the program has
# From Linux's <sys/prctl.h>.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def end_with_parent() -> None:
    """Have Linux kill this process when its parent ends: the thread that has started it, to be exact."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def supervise(parent: int, mode: str, program: list[str]) -> int:
    """Run a program and return its exit status, a negative one where a signal ended it, once nothing of it runs."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the exit status away
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCHLD)  # which wakes _watch
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what has lost its parent becomes a child of this process, not of init
    group = os.getpgrp()
    if mode == ATTACHED:
        os.setpgid(0, 0)
    leader = os.fork()
    if leader == 0:
        _become(program, group if mode == ATTACHED else None)
    os.closerange(0, 3)  # who reads what the program writes, or feeds it, sees its end
    status = _watch(leader, parent)
    kill_at = time.monotonic()
    if status is not None and _signal_all(signal.SIGTERM):
        kill_at += _STRAYS  # git takes its locks away then, and uv what it has half installed
    while _signal_all(signal.SIGKILL if time.monotonic() >= kill_at else 0):
        ended = _reap(leader)
        status = ended if status is None else status
        time.sleep(0.01)
    return -signal.SIGKILL if status is None else status


def _become(program: list[str], group: int | None) -> None:
    """Turn this process, which has just been forked, into the program."""
    end_with_parent()
    if group is not None:
        try:  # noqa: SIM105  # contextlib takes long to import
            os.setpgid(0, group)
        except OSError:
            pass  # all of that group has ended
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python has it ignored
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # one that waits is for the program, not for Python
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    # Locks are for the supervisor to hold. The limit on open files can be so high that closing up to it takes minutes.
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)  # noqa: PTH208
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"{program[0]} cannot be run: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def _watch(leader: int, parent: int) -> int | None:
    """Return the status of the program once it has ended, or None if all is to be ended before it."""
    orphaned_at = 0.0
    while True:
        arrived = signal.sigtimedwait(_WATCHED, _TICK)
        if (status := _reap(leader)) is not None:
            return status
        number = arrived.si_signo if arrived else 0
        if os.getppid() != parent and not orphaned_at:
            orphaned_at, number = time.monotonic(), signal.SIGTERM
        if number == END_NOW or (orphaned_at and time.monotonic() - orphaned_at > _PATIENCE):
            return None
        if number in PASSED_ON:
            os.kill(leader, number)


def _reap(leader: int) -> int | None:
    """Take note of children that have ended; return the leader's status if it is among them."""
    status = None
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == leader:
            status = os.waitstatus_to_exitcode(code)


def _descendants() -> list[int]:
    """Return the processes that have come of this one, those too that have ended and that no one has taken note of."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208  # pathlib takes long to import
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(name))
    found, next_ = [], [os.getpid()]
    while next_:
        next_ = [child for pid in next_ for child in children.get(pid, [])]
        found += next_
    return found


def _signal_all(number: int) -> bool:
    """Send a signal to all that have come of this process; tell whether there are any that it reached."""
    reached = False
    for pid in _descendants():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            continue
        reached = True
    return reached


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value))


def _end_as(status: int) -> None:
    """End this process as another one has ended."""
    if status < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has left what it wanted to
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-status])
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    _end_as(supervise(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
