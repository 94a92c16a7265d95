"""The processes that run the kernel, with a stand-in for their script."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from overlay_tools import console
from overlay_tools.errors import TuneError
from overlay_tools.proving.tune import bench
from overlay_tools.proving.tune.bench import Processes, open_processes

from unit.proving.tune.made_up import QWEN, tile

# Notes which process was asked what, and compiles or measures nothing.
SCRIPT = """
import json, os, pathlib, sys
job = json.loads(pathlib.Path(sys.argv[1]).read_text())
notes = pathlib.Path(sys.argv[1]).parents[1] / f"asked-{os.getpid()}"
print(json.dumps({"job": job} if job else {}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    with notes.open("a") as file:
        file.write(line)
    if asked["what"] == "open":
        said = {"release": "1.0", "triton": "3.6.0", "device": "GPU", "place": "sglang/configs", "file": "t/E.json",
                "exact": False, "taken": False, "down": False, "defaults": [[1, {}]], "shared_memory": 1, "free": FREE}
        said = said if asked["weighed"] else {}
    elif asked["what"] == "compile" and asked["tokens"] == [99]:
        sys.exit("out of memory")
    elif asked["what"] == "compile":
        said = {"problem": "out of registers"} if asked["tile"]["num_warps"] == 8 else {}
    elif asked["tokens"] == 99:
        sys.exit("an illegal memory access")
    elif asked["tokens"] == 98:
        said = {"problem": "sglang 1.0 has no kernel"}
    else:
        said = {"times": [[1.0] * asked["rounds"], *([0.5] if t["num_warps"] == 4 else "slow" for t in asked["tiles"])]}
    print(json.dumps(said), flush=True)
"""
ROOMY = 100 << 30


@contextmanager
def opened(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int = ROOMY) -> Iterator[Processes]:
    path = folder / "kernel_script.py"
    path.write_text(SCRIPT.replace("FREE", str(free)))
    monkeypatch.setattr(bench, "SCRIPT", path)
    with open_processes(Path(sys.executable), folder, Path("model"), ["--tp-size", "2"]) as processes:
        yield processes


def asked(folder: Path) -> list[list[dict[str, Any]]]:
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("asked-*"))]


def test_the_checkpoint_is_read_by_the_process_that_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, monkeypatch) as processes:
        job = processes.facts["job"]
    assert (job["checkpoint"], job["flags"]) == ("model", ["--tp-size", "2"])
    assert {"num_experts", "n_routed_experts"} <= set(job["keys"])


def test_compiling_is_shared_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(6))
    told: list[str] = []
    monkeypatch.setattr(console, "detail", told.append)
    shown: list[tuple[int, int]] = []
    wanted = [(tile(n=n, warps=warps), [1, 2]) for n in (32, 64, 128) for warps in (4, 8)]
    with opened(tmp_path, monkeypatch) as processes:
        assert processes.open(QWEN, ["sglang/configs/t/ours.json"]).triton == "3.6.0"
        for _ in range(2):  # the second time they are there
            processes.compile(wanted, lambda done, total: shown.append((done, total)))
        notes = asked(tmp_path)
    assert len(notes) == 1 + 3
    [measuring] = [note for note in notes if note[0]["weighed"]]
    assert measuring[0]["own"] == ["sglang/configs/t/ours.json"]
    assert [each["what"] for each in measuring] == ["open", "time"]
    compiled = Counter(json.dumps(each["tile"]) for note in notes for each in note if each["what"] == "compile")
    assert compiled == {json.dumps(each): 2 for each, _ in wanted}
    assert shown == [(n, 6) for n in range(6)] * 2
    assert len(told) == 6
    assert "out of registers" in told[0]


def test_processes_that_compile_leave_room_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16))
    free = 2 * 2 * (QWEN.bytes + (1 << 30))  # of which half is for two of them
    with opened(tmp_path, monkeypatch, free) as processes:
        processes.open(QWEN, [])
        processes.compile([(tile(n=n), [1]) for n in (32, 64, 128)], lambda done, total: None)
        assert len(asked(tmp_path)) == 1 + 2


def test_processes_that_have_ended_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))
    with opened(tmp_path, monkeypatch) as processes:
        processes.open(QWEN, [])
        with pytest.raises(TuneError, match=r"Its process ended: out of memory\."):
            processes.compile([(tile(n=n), [99]) for n in (16, 32, 64, 128, 256)], lambda done, total: None)


def test_a_tile_that_does_not_run_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, monkeypatch) as processes:
        processes.open(QWEN, [])
        assert processes.time(4, [tile(warps=8), tile()], 1) == ([1.0], [None, [0.5]])


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(99, r"Its process ended: an illegal memory access\."), (98, r"sglang 1\.0 has no kernel\.")],
)
def test_what_keeps_it_from_measuring_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, said: str
) -> None:
    with opened(tmp_path, monkeypatch) as processes:
        processes.open(QWEN, [])
        with pytest.raises(TuneError, match=said) as caught:
            processes.time(tokens, [tile()], 1)
    assert "measure/kernel_script.log" in caught.value.hint
