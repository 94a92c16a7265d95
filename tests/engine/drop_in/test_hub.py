"""A checkpoint of the hub is downloaded with the hub's own library, from a stand-in for it on this machine."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path

import pytest
from overlay_tools.checkpoints.hub import download
from overlay_tools.errors import CheckpointError

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"the same weights"}
COMMIT = "a" * 40


def tag_of(data: bytes) -> str:
    """Give the tag by which the hub knows a file."""
    return sha1(data, usedforsecurity=False).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """Has one checkpoint, owner/name."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/owner/name"):
            named = {name: {"rfilename": name, "path": name, "size": len(data)} for name, data in FILES.items()}
            listed = [{"type": "file", "oid": tag_of(FILES[name]), **of} for name, of in named.items()]
            whole = {"id": "owner/name", "sha": COMMIT, "siblings": listed}
            self.send(json.dumps(listed if "/tree/" in path else whole).encode())
        elif path.startswith("/owner/name/resolve/") and (name := path.rpartition("/")[2]) in FILES:
            self.send(FILES[name])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{tag_of(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run the stand-in, and let the hub's library ask it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield
    server.shutdown()
    server.server_close()


def test_what_a_server_reads_of_a_checkpoint_is_downloaded() -> None:
    folder = download("owner/name", Path(sys.executable))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: data for name, data in FILES.items() if name != "pytorch_model.bin"
    }


def test_what_the_hub_does_not_have_is_said() -> None:
    with pytest.raises(CheckpointError, match="There is no folder owner/other here, and it cannot") as caught:
        download("owner/other", Path(sys.executable))
    assert "404" in str(caught.value)
