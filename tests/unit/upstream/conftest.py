"""A package index of the tests' own, served on this machine, and wheels that are files."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote, unquote

import pytest

from unit.conftest import upstream_files, write_wheel

TAGS = [f"cp3{minor}-cp3{minor}-manylinux_2_34_{machine}" for minor in (11, 12) for machine in ("x86_64", "aarch64")]
NOT_OURS = ["cp39-cp39-manylinux_2_34_x86_64", "cp312-cp312-macosx_11_0_arm64", "cp312-cp312-macosx_11_0_x86_64"]
PINS = "Requires-Dist: torch==2.0\nRequires-Dist: transformers==5.1\nRequires-Dist: sglang-kernel==0.4.2.post1\n"


def make_wheel(
    folder: Path, version: str, tag: str, pins: str = PINS, others: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Write a wheel of sglang, with `others` of its files, that requires Python 3.11 and pins what a lock needs."""
    files = upstream_files(version) | {name: text.encode() for name, text in others.items()}
    name = f"sglang-{version}.dist-info/METADATA"
    files[name] = files[name].replace(b"Requires-Dist", b"Requires-Python: >=3.11\n" + pins.encode() + b"Requires-Dist")
    folder.mkdir(parents=True, exist_ok=True)
    return write_wheel(folder / f"sglang-{version}-{tag}.whl", files)


class Index:
    """A folder of wheels behind an index's pages: PEP 691's JSON, or, without sizes, PEP 503's HTML at `html`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.yanked: str | bool = False  # of all releases
        self.withdrawn: set[str] = set()  # releases that are yanked, whatever the others are
        folder.mkdir()
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = unquote(self.path.rsplit("/", 1)[-1])
                if self.path.startswith("/simple/sglang/"):
                    self.answer(json.dumps(index.page()).encode(), "application/vnd.pypi.simple.v1+json")
                elif self.path.startswith("/html/sglang/"):
                    self.answer(index.html_page().encode(), "text/html")
                elif (index.folder / name).is_file():
                    self.answer((index.folder / name).read_bytes(), "application/octet-stream")
                else:
                    self.send_error(404)

            def do_HEAD(self) -> None:
                self.do_GET()

            def answer(self, body: bytes, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.host = f"http://127.0.0.1:{self.server.server_port}"
        self.url = f"{self.host}/simple"
        self.html = f"{self.host}/html"

    def page(self) -> dict[str, object]:
        return {
            "meta": {"api-version": "1.1"},
            "name": "sglang",
            "versions": sorted({path.name.split("-")[1] for path in self.folder.glob("*.whl")}),
            "files": [
                {
                    "filename": path.name,
                    "yanked": self.yanked or path.name.split("-")[1] in self.withdrawn,
                    "url": f"../../{quote(path.name)}",
                    "size": path.stat().st_size,
                    "hashes": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
                    "requires-python": ">=3.11",
                }
                for path in sorted(self.folder.glob("*.whl"))
            ],
        }

    def html_page(self) -> str:
        lines = []
        for path in sorted(self.folder.glob("*.whl")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f'<a href="../../{quote(path.name)}#sha256={digest}">{path.name}</a>')
        return "<!DOCTYPE html>\n" + "\n".join(lines)

    def publish(
        self,
        version: str,
        pins: str = PINS,
        tags: Sequence[str] = (*TAGS, *NOT_OURS),
        files: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        for tag in tags:
            make_wheel(self.folder, version, tag, pins, files)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def plain_installers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let uv and pip be as they are where nobody has configured them, and ask no proxy."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))


@pytest.fixture
def index(tmp_path: Path, plain_installers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """Return the index that uv and pip are configured for."""
    index = Index(tmp_path / "index")
    index.publish("2.0")
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
    yield index
    index.close()


@pytest.fixture
def other_index(tmp_path: Path, plain_installers: None) -> Iterator[Index]:
    """Return an index that uv and pip are not configured for."""
    index = Index(tmp_path / "other-index")
    yield index
    index.close()
