"""Memory in huge pages: a fork copies the table of all pages first, which takes 0.1 s of a process with SGLang."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

_COLLAPSE = 25  # MADV_COLLAPSE, from Linux 6.1 on
_HUGE = 2 << 20  # bytes


def prepare_to_fork() -> None:
    """Have this process's objects in few pages, and looked through for garbage by no fork, which would copy them.

    Where the kernel has no huge pages to give, forks are slower and the same.
    """
    gc.collect()
    gc.freeze()
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            span, rights, _, _, inode, *_ = line.split(maxsplit=5)
            first, end = (int(address, 16) for address in span.split("-"))
            if rights == "rw-p" and inode == "0":
                for page in range(-(-first // _HUGE) * _HUGE, end - _HUGE + 1, _HUGE):
                    madvise(page, _HUGE, _COLLAPSE)
