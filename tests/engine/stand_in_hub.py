"""A stand-in for the Hugging Face hub, on this machine: how it answers. What it has, its users say."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1

COMMIT = "a" * 40


class HubAnswers(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does; a class that derives from it says what."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.answer(self.path.partition("?")[0])

    def answer(self, path: str) -> None:
        """Send what is at a path, or `miss` it."""
        raise NotImplementedError

    def send(self, data: bytes) -> None:
        """Send a file, or JSON."""
        self.send_response(200)
        self.send_header("ETag", f'"{tag_of(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def miss(self, code: str) -> None:
        """Say that there is none, by the hub's own code."""
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def running_hub(answers: type[HubAnswers]) -> Iterator[str]:
    """Run a stand-in, and yield its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def tag_of(data: bytes) -> str:
    """Give the tag by which the hub knows a file."""
    return sha1(data, usedforsecurity=False).hexdigest()
