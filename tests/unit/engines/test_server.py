"""The server's life, with a stand-in for `sglang.launch_server` that does as it is told."""

from __future__ import annotations

import http.server
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from overlay_tools.engines.server import Server
from overlay_tools.errors import ServeError

STAND_IN = """\
import http.server, os, signal, subprocess, sys, time
mode, port = os.environ["MODE"], int(sys.argv[sys.argv.index("--port") + 1])
if mode == "dies without a word":
    sys.exit(3)
if mode == "hangs without a word":
    time.sleep(600)
print("model is", sys.argv[sys.argv.index("--model-path") + 1], "mode is", mode, flush=True)
if mode == "dies":
    print("\\n".join(f"line {n}" for n in range(100)), "the reason", file=sys.stderr)
    sys.exit(3)
ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
sleep = (ignore if "stubborn" in mode else "") + "print(flush=True); import time; time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", sleep], stdout=subprocess.PIPE)
child.stdout.readline()
print("child", child.pid, flush=True)
if mode == "hangs":
    time.sleep(600)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def tidy_up(number, frame):
    time.sleep(0.5)
    print("tidied up", flush=True)
    os._exit(0)
if mode == "tidies up":
    signal.signal(signal.SIGTERM, tidy_up)
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


def wait_for_child(folder: Path) -> None:
    while "child " not in (folder / "log").read_text():
        time.sleep(0.01)


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


@pytest.mark.parametrize(
    ("mode", "timeout", "said"),
    [("dies without a word", 60, "ended with status 3"), ("hangs without a word", 1, "did not come up within 1 s")],
)
def test_a_server_without_a_last_line_says_so(tmp_path: Path, mode: str, timeout: float, said: str) -> None:
    with (
        pytest.raises(ServeError, match=rf"^The server {said}\. It printed nothing\.$") as caught,
        server(tmp_path, mode, timeout=timeout),
    ):
        pytest.fail("it came up")
    assert f"{sys.executable} -m sglang.launch_server --help" in caught.value.hint
    assert ("--timeout" in caught.value.hint) == ("come up" in said)


def test_a_server_that_does_not_come_up_is_ended(tmp_path: Path) -> None:
    with (
        pytest.raises(ServeError, match="did not come up within 1 s") as caught,
        server(tmp_path, "hangs", timeout=1, waiting=lambda seconds: wait_for_child(tmp_path)),
    ):
        pytest.fail("it came up")
    assert "mode is hangs" in str(caught.value)
    assert "--timeout" in caught.value.hint
    assert str(tmp_path / "log") in caught.value.hint
    assert ends(child_of(tmp_path))


def test_a_server_that_dies_later_is_noticed(tmp_path: Path) -> None:
    with server(tmp_path, "serves") as running:
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        with pytest.raises(ServeError, match="ended with status -9"):
            running.check()
    assert ends(child_of(tmp_path))


def test_an_error_inside_the_block_ends_the_server(tmp_path: Path) -> None:
    with pytest.raises(KeyError), server(tmp_path, "serves"):
        raise KeyError
    assert ends(child_of(tmp_path))


def test_a_server_has_time_to_tidy_up(tmp_path: Path) -> None:
    with server(tmp_path, "tidies up") as running:
        pass
    assert running.process.returncode == 0
    assert "tidied up" in (tmp_path / "log").read_text()


def test_a_server_that_ignores_the_request_to_end_is_killed_after_its_grace(tmp_path: Path) -> None:
    with server(tmp_path, "stubborn", grace=0.5) as running:
        child = child_of(tmp_path)
        stopped = time.monotonic()
    assert 0.5 <= time.monotonic() - stopped < 5
    assert running.process.returncode == -signal.SIGKILL
    assert ends(child)


def test_a_child_that_ignores_the_request_to_end_does_not_outlive_its_server(tmp_path: Path) -> None:
    with server(tmp_path, "serves with a stubborn child") as running:
        child = child_of(tmp_path)
    assert running.process.returncode == -signal.SIGTERM
    assert ends(child)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"Port {port} is in use"), server(tmp_path, "serves", port=port):
            pytest.fail("it came up")
    assert not (tmp_path / "log").exists()


def test_another_server_on_its_port_is_not_taken_for_it(tmp_path: Path) -> None:
    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    others: list[http.server.HTTPServer] = []

    def take_port(seconds: int) -> None:
        wait_for_child(tmp_path)
        if not others:
            others.append(http.server.HTTPServer(("127.0.0.1", one.port), Healthy))
            threading.Thread(target=others[0].serve_forever, daemon=True).start()

    one = server(tmp_path, "hangs", waiting=take_port, timeout=60)
    taken = rf"^Port {one.port} was taken by process {os.getpid()} while the server started"
    try:
        with pytest.raises(ServeError, match=taken), one:
            pytest.fail("it came up")
    finally:
        others[0].shutdown()
        others[0].server_close()
    assert ends(child_of(tmp_path))


def test_a_server_that_begins_to_listen_while_processes_are_looked_through_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = psutil.net_connections
    looks = itertools.cycle([False, True])

    def find_late(kind: str) -> list[Any]:
        found: list[Any] = find(kind)
        listens = any(each.laddr.port == one.port for each in found)
        return found if not listens or next(looks) else [each._replace(pid=None) for each in found]

    monkeypatch.setattr("psutil.net_connections", find_late)
    one = server(tmp_path, "serves")
    with one:
        one.check()


def test_a_server_of_another_user_on_its_port_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = psutil.net_connections
    monkeypatch.setattr("psutil.net_connections", lambda kind: [each._replace(pid=None) for each in find(kind)])
    one = server(tmp_path, "serves")
    with pytest.raises(ServeError, match=rf"Port {one.port} was taken by a process of another user"), one:
        pytest.fail("it came up")


def test_what_has_listened_on_its_port_and_has_ended_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = psutil.net_connections
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    def find_both(kind: str) -> list[Any]:
        found: list[Any] = find(kind)
        return [*found, *(each._replace(pid=ended.pid) for each in found if each.laddr.port == one.port)]

    monkeypatch.setattr("psutil.net_connections", find_both)
    one = server(tmp_path, "serves")
    with one:
        assert {each.pid for each in find_both("tcp") if each.laddr.port == one.port} >= {ended.pid}


def test_a_port_that_a_connection_has_just_closed_is_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            listening.accept()[0].close()  # the side that closes first keeps its address for a minute
            assert client.recv(1) == b""
    with server(tmp_path, "serves", port=port) as running:
        running.check()


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


def idle(folder: Path) -> Server:
    """Describe a server that is never started."""
    return Server(Path("python"), folder, [], env={}, log=folder / "log")


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try ports in their order, not at random."""
    monkeypatch.setattr("random.sample", lambda ports, count: list(ports)[:count])


@pytest.mark.usefixtures("in_order")
def test_a_port_that_something_listens_on_is_not_given(tmp_path: Path) -> None:
    given = idle(tmp_path).port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", given))
        taken.listen()
        assert idle(tmp_path).port > given


def test_where_no_port_is_free_it_says_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr("random.sample", lambda ports, count: [taken.getsockname()[1]])
        with pytest.raises(ServeError, match="No free port") as caught:
            idle(tmp_path)
    assert "--port" in caught.value.hint


@pytest.mark.usefixtures("in_order")
def test_a_free_port_is_given_once(tmp_path: Path) -> None:
    first, second = idle(tmp_path), idle(tmp_path)
    code = "import random; from pathlib import Path; from overlay_tools.engines.server import Server"
    code += "; random.sample = lambda ports, count: list(ports)[:count]"
    code += "; print(Server(Path(), Path(), [], env={}, log=Path()).port)"
    third = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len({first.port, second.port, int(third)}) == 3
    given = first.port
    del first
    assert idle(tmp_path).port == given
