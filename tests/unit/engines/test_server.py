"""The server's life, with a stand-in for `sglang.launch_server` that does as it is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from overlay_tools.engines.server import Server
from overlay_tools.errors import ServeError

STAND_IN = """\
import http.server, os, signal, subprocess, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
print("model is", sys.argv[sys.argv.index("--model-path") + 1], "mode is", os.environ["MODE"], flush=True)
if os.environ["MODE"] == "dies":
    print("\\n".join(f"line {n}" for n in range(100)), "the reason", file=sys.stderr)
    sys.exit(3)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
if os.environ["MODE"] == "hangs":
    time.sleep(600)
if os.environ["MODE"] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health_generate" else 404)
        self.end_headers()
    def log_message(self, *arguments): pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def server(folder: Path, mode: str, **options: object) -> Server:
    module = folder / "sglang" / "launch_server.py"
    module.parent.mkdir(exist_ok=True)
    module.write_text(STAND_IN)
    env = {"MODE": mode, "PYTHONPATH": str(folder)}
    return Server(Path(sys.executable), folder / "a model", [], env=env, log=folder / "log", **options)  # type: ignore[arg-type]


def child_of(folder: Path) -> int:
    return int((folder / "log").read_text().split("child ")[1].split()[0])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def ends(pid: int) -> bool:
    """Tell whether a process ends within a moment: a kill takes effect when the kernel comes round to it."""
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)


def test_it_comes_up_and_ends_with_its_children(tmp_path: Path) -> None:
    waits: list[int] = []
    with server(tmp_path, "serves", waiting=waits.append) as running:
        running.check()
        child = child_of(tmp_path)
        assert is_running(child)
    assert waits[0] == 0
    assert running.process.poll() is not None
    assert ends(child)
    assert f"model is {tmp_path / 'a model'}" in (tmp_path / "log").read_text()


def test_a_server_that_dies_shows_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="ended with status 3") as caught, server(tmp_path, "dies"):
        pytest.fail("it came up")
    said = str(caught.value)
    assert "the reason" in said
    assert "line 99" in said
    assert "line 10\n" not in said
    assert str(tmp_path / "log") in caught.value.hint


def test_a_server_that_does_not_come_up_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="did not come up within 2 s") as caught, server(tmp_path, "hangs", timeout=2):
        pytest.fail("it came up")
    assert "mode is hangs" in str(caught.value)
    assert ends(child_of(tmp_path))


def test_a_server_that_dies_later_is_noticed(tmp_path: Path) -> None:
    with server(tmp_path, "serves") as running:
        os.kill(running.process.pid, 9)
        running.process.wait()
        with pytest.raises(ServeError, match="ended with status -9"):
            running.check()


def test_an_error_inside_the_block_ends_the_server(tmp_path: Path) -> None:
    with pytest.raises(KeyError), server(tmp_path, "serves"):
        raise KeyError
    assert ends(child_of(tmp_path))


def test_a_server_that_ignores_the_request_to_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay_tools.engines.server._GRACE", 1.0)
    with server(tmp_path, "stubborn") as running:
        child = child_of(tmp_path)
    assert running.process.returncode == -9
    assert ends(child)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"Port {port} is in use"), server(tmp_path, "serves", port=port):
            pytest.fail("it came up")
    assert not (tmp_path / "log").exists()


def test_flags_reach_the_server(tmp_path: Path) -> None:
    script = "import sys; print(sys.argv[1:]); sys.exit(1)"
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "launch_server.py").write_text(script)
    one = Server(
        Path(sys.executable), tmp_path, ["--device", "cpu"], env={"PYTHONPATH": str(tmp_path)}, log=tmp_path / "log"
    )
    with pytest.raises(ServeError, match=r"'--host', '127\.0\.0\.1', '--port'") as caught, one:
        pytest.fail("it came up")
    assert "'--device', 'cpu'" in str(caught.value)
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout == b""


def test_free_port_leaves_room_above_it(tmp_path: Path) -> None:
    servers = [Server(Path("python"), tmp_path, [], env={}, log=tmp_path / "log") for _ in range(50)]
    # 0.5.12 listens for gRPC on the port 10,000 above, and there are 65,535.
    assert all(1024 < server.port < 65_535 - 10_000 for server in servers)
    assert len({server.port for server in servers}) > 1


def test_a_free_port_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.sample", lambda ports, count: list(ports)[:count])
    first, second = (Server(Path("python"), tmp_path, [], env={}, log=tmp_path / "log") for _ in range(2))
    code = "import random; from pathlib import Path; from overlay_tools.engines.server import Server"
    code += "; random.sample = lambda ports, count: list(ports)[:count]"
    code += "; print(Server(Path(), Path(), [], env={}, log=Path()).port)"
    third = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len({first.port, second.port, int(third)}) == 3
    given = first.port
    del first
    assert Server(Path("python"), tmp_path, [], env={}, log=tmp_path / "log").port == given
