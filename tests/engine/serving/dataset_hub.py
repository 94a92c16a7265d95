"""A stand-in for the Hugging Face hub, on this machine, that has data sets."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha1

COMMIT = "a" * 40
Files = Mapping[str, bytes]


def data_set(configurations: Sequence[str], splits: Files, ending: str) -> dict[str, bytes]:
    """Give the files of a data set whose configurations all have the same splits."""
    files = {f"{split}.{ending}": data for split, data in splits.items()}
    lines = ["---", "configs:"]
    for name in configurations:
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [f"  - split: {split}\n    path: {split}.{ending}" for split in splits]
    return {"README.md": "\n".join([*lines, "---", ""]).encode(), **files}


@contextmanager
def serving(data_sets: Mapping[str, Files]) -> Iterator[str]:
    """Serve data sets, by their names on the hub, and yield the address."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api").removeprefix("/datasets/")
            owner, name, *rest = path.split("/")
            files = data_sets.get(f"{owner}/{name}", {})
            if rest[:1] == ["resolve"] and (file := "/".join(rest[2:])) in files:
                self.send(files[file])
            elif files and rest[:1] in ([], ["revision"]):
                siblings = [{"rfilename": file} for file in files]
                self.send(json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}).encode())
            elif files and rest[:1] == ["tree"]:
                listed = [
                    {"type": "file", "path": file, "size": len(data), "oid": tag_of(data)}
                    for file, data in files.items()
                ]
                self.send(json.dumps(listed).encode())
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if files else "RepoNotFound")
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

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def tag_of(data: bytes) -> str:
    """Give the tag by which the hub knows a file."""
    return sha1(data, usedforsecurity=False).hexdigest()
