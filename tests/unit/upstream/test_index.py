"""The lock and the fetch against a package index of their own, served here, asked through the real uv and pip."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.errors import FetchError, LockError, ToolError
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.index import difference, query_release
from overlay_tools.upstream.lockfile import load_lock

from unit.conftest import Miniature, upstream_files, write_wheel

TAGS = [f"cp3{minor}-cp3{minor}-manylinux_2_34_{machine}" for minor in (11, 12) for machine in ("x86_64", "aarch64")]


class Index:
    """A folder of wheels behind PEP 691's JSON pages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.yanked: str | bool = False
        folder.mkdir()
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[-1]
                if self.path.startswith("/simple/sglang/"):
                    self.answer(json.dumps(index.page()).encode(), "application/vnd.pypi.simple.v1+json")
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
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def page(self) -> dict[str, object]:
        return {
            "meta": {"api-version": "1.1"},
            "name": "sglang",
            "versions": sorted({path.name.split("-")[1] for path in self.folder.glob("*.whl")}),
            "files": [
                {
                    "filename": path.name,
                    "yanked": self.yanked,
                    "url": f"../../{path.name}",
                    "size": path.stat().st_size,
                    "hashes": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
                    "requires-python": ">=3.11",
                }
                for path in sorted(self.folder.glob("*.whl"))
            ],
        }

    def publish(self, version: str, pins: str) -> None:
        files = upstream_files(version)
        name = f"sglang-{version}.dist-info/METADATA"
        metadata = files[name].replace(
            b"Requires-Dist", b"Requires-Python: >=3.11\n" + pins.encode() + b"Requires-Dist"
        )
        for tag in [*TAGS, "cp39-cp39-manylinux_2_34_x86_64", "cp312-cp312-macosx_11_0_arm64"]:
            write_wheel(self.folder / f"sglang-{version}-{tag}.whl", {**files, name: metadata})


PINS = "Requires-Dist: torch==2.0\nRequires-Dist: transformers==5.1\nRequires-Dist: sglang-kernel==0.4.2.post1\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    index = Index(tmp_path / "index")
    index.publish("2.0", PINS)
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    yield index
    index.server.shutdown()
    index.server.server_close()


def test_a_release_is_read_from_the_index(index: Index) -> None:
    release = query_release("2.0")
    assert (release.torch, release.transformers, release.requires_python) == ("2.0", "5.1", ">=3.11")
    assert str(release.kernel) == "sglang-kernel==0.4.2.post1"
    assert [wheel.name for wheel in release.wheels] == sorted(f"sglang-2.0-{tag}.whl" for tag in TAGS)
    for wheel in release.wheels:
        data = (index.folder / wheel.name).read_bytes()
        assert (wheel.size, wheel.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_lock_command_adds_a_release_and_only_that(
    index: Index, mini: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mini.root)
    before = (mini.root / "upstream.lock").read_text()
    assert cli.main(["lock", "2.0"]) == 0
    after = (mini.root / "upstream.lock").read_text()
    assert after.startswith(before)
    assert "127.0.0.1" not in after
    assert list(load_lock(mini.root / "upstream.lock")) == ["1.0", "1.1", "2.0"]
    assert cli.main(["lock", "--check", "2.0"]) == 0
    assert (mini.root / "upstream.lock").read_text() == after


def test_check_says_what_differs_and_writes_nothing(
    index: Index, mini: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mini.root)
    assert cli.main(["lock", "2.0"]) == 0
    locked = (mini.root / "upstream.lock").read_text()
    index.publish("2.0", PINS.replace("2.0", "2.1"))
    (index.folder / f"sglang-2.0-{TAGS[0]}.whl").unlink()
    assert cli.main(["lock", "--check", "2.0"]) == 1
    said = capsys.readouterr().err
    assert "2.0: torch is 2.0 in the lock, 2.1 on the index" in said
    assert f"2.0: sglang-2.0-{TAGS[0]}.whl is in the lock only" in said
    assert f"2.0: sglang-2.0-{TAGS[1]}.whl has sha256" in said
    assert (mini.root / "upstream.lock").read_text() == locked
    assert difference(query_release("2.0"), query_release("2.0")) == []


def test_a_release_that_does_not_exist_is_refused(
    index: Index, mini: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mini.root)
    before = (mini.root / "upstream.lock").read_text()
    with pytest.raises(LockError, match=r"no sglang 9\.9"):
        query_release("9.9")
    with pytest.raises(LockError, match="'newest' is not a version"):
        query_release("newest")
    assert cli.main(["lock", "2.0", "9.9"]) == 1
    assert (mini.root / "upstream.lock").read_text() == before


@pytest.mark.parametrize("reason", ['breaks (on "import")', True])
def test_a_yanked_release_is_refused_with_the_reason(index: Index, reason: str | bool) -> None:
    index.yanked = reason
    with pytest.raises(LockError, match=r"sglang 2\.0 was yanked: ") as caught:
        query_release("2.0")
    assert ("breaks (on" if reason != True else "no reason is given") in str(caught.value)  # noqa: E712


def test_a_release_that_does_not_pin_what_the_lock_records_is_refused(index: Index) -> None:
    index.publish("2.1", "Requires-Dist: torch==2.0\nRequires-Dist: transformers>=5\n")
    with pytest.raises(LockError, match="does not require sgl-kernel or sglang-kernel"):
        query_release("2.1")
    index.publish("2.2", PINS.replace("transformers==5.1", "transformers>=5"))
    with pytest.raises(LockError, match="does not pin transformers to one version"):
        query_release("2.2")


@pytest.mark.parametrize(("python", "platform"), [("3.11", "x86_64"), ("3.12", "aarch64")])
def test_the_wheel_of_any_python_and_machine_is_fetched_and_kept(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str, platform: str
) -> None:
    release = query_release("2.0")
    wheel = release.select(python, platform)
    path = fetch(release, wheel, tmp_path / "cache")
    assert path.read_bytes() == (index.folder / wheel.name).read_bytes()
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [wheel.sha256]
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PATH", "")
    assert fetch(release, wheel, tmp_path / "cache") == path


def test_a_file_with_another_hash_is_not_taken(index: Index, tmp_path: Path) -> None:
    release = query_release("2.0")
    wheel = release.select("3.11", "x86_64")
    with zipfile.ZipFile(index.folder / wheel.name, "a") as archive:
        archive.writestr("sglang/evil.py", "")
    with pytest.raises(FetchError, match=r"(?s)could not be fetched.*(HASHES|hashes)"):
        fetch(release, wheel, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_network_the_error_says_so(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = query_release("2.0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(FetchError, match="could not be fetched") as caught:
        fetch(release, release.select("3.11", "x86_64"), tmp_path / "cache")
    assert "network" in caught.value.hint
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(ToolError, match="could not be asked") as asked:
        query_release("2.0")
    assert "network" in asked.value.hint
