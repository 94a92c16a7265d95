"""A fork of the process that has imported all is as good as a process of its own."""

from __future__ import annotations

from pathlib import Path

from engine.forked import running

# As uvicorn does for a server: it closes the files that loggers have had until then.
PROGRAM = """\
import logging.config, os
opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(32)]
logging.config.dictConfig({"version": 1})
print("lost", [number for number in opened if not os.path.exists(f"/proc/self/fd/{number}")])
"""


def test_what_it_opens_is_not_closed_by_what_was_imported(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    with running([str(tmp_path / "program.py")], {}, tmp_path / "log") as process:
        assert process.wait(60) == 0
    assert (tmp_path / "log").read_text(encoding="utf-8").splitlines()[-1] == "lost []"
