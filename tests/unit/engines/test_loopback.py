"""Programs of this machine are asked directly, whatever proxy the environment names."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import openai
import pytest
from overlay_tools.engines.loopback import open_directly, openai_client, without_proxy

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


class Asked(http.server.ThreadingHTTPServer):
    """A server that notes what it is asked for, and answers as one that lists models."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        asked = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.paths.append(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps({"object": "list", "data": []}).encode())

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def asked() -> Iterator[Asked]:
    server = Asked()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    proxy = Asked()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in PROXIES:
        monkeypatch.setenv(name, proxy.url)
    yield proxy
    proxy.shutdown()
    proxy.server_close()


def test_a_proxy_is_not_asked_for_this_machine(asked: Asked, proxy: Asked) -> None:
    with open_directly(f"{asked.url}/health", timeout=30) as answer:
        assert answer.status == 200
    with openai_client(asked.url, timeout=30) as client:
        assert list(client.models.list()) == []
    assert asked.paths == ["/health", "/v1/models"]
    assert proxy.paths == []


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "http_proxy"])
def test_a_proxy_that_httpx_cannot_use_is_no_obstacle(asked: Asked, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    with openai_client(asked.url, timeout=30) as client:
        client.models.list()
    assert asked.paths == ["/v1/models"]


def test_an_error_of_the_server_is_not_retried(proxy: Asked) -> None:
    with openai_client("http://127.0.0.1:9", timeout=30) as client, pytest.raises(openai.APIConnectionError):
        client.models.list()
    assert proxy.paths == []


def test_a_server_that_does_not_answer_is_not_waited_for_any_longer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TimeoutError):
            open_directly(url, timeout=0.1)
        with openai_client(url, timeout=0.1) as client, pytest.raises(openai.APITimeoutError):
            client.models.list()


@pytest.mark.parametrize("said", ["", "internal.example", "internal.example, 127.0.0.1"])
def test_programs_ask_this_machine_directly_and_others_as_before(
    asked: Asked, proxy: Asked, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("NO_PROXY", said)
    environment = without_proxy(os.environ)
    asks = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"
    for url in (asked.url, "http://elsewhere.example"):
        subprocess.run([sys.executable, "-c", asks, f"{url}/picture"], env=environment, check=True)
    assert asked.paths == ["/picture"]
    assert proxy.paths == ["http://elsewhere.example/picture"]
    assert environment["no_proxy"] == environment["NO_PROXY"]
    others = {host.strip() for host in said.split(",") if host}
    assert set(environment["no_proxy"].split(",")) == {*others, "127.0.0.1", "localhost"}
