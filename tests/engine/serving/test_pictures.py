"""How requests' pictures are read: which files, how much of them, and how much is decoded at the same time."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from engine.harness import ours

pictures = ours("multimodal.pictures")
LARGE = (8192, 8192)  # as many pixels as a picture may have


@functools.cache
def png(size: tuple[int, int] = (8, 8)) -> bytes:
    """Write a red picture."""
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def size_of(source: object, folders: tuple[Path, ...] = ()) -> tuple[int, int]:
    """Read a picture that is alone in its request, and return its size."""
    with pictures.PictureReader(folders).decoded(source, "picture 1") as picture:
        size: tuple[int, int] = picture.size
    return size


def refusal(source: object, folders: tuple[Path, ...] = ()) -> str:
    """Return why a picture that is alone in its request is not read."""
    with pytest.raises(ValueError, match="picture 1") as caught:
        size_of(source, folders)
    assert len(str(caught.value)) < 300
    return str(caught.value)


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "a picture.png").write_bytes(png())
    (folder / "without").write_bytes(png())
    return folder


def test_files_below_an_allowed_folder_are_read(allowed: Path) -> None:
    path = allowed / "a picture.png"
    (allowed / "link.png").symlink_to(path)
    for source in (str(path), path.as_uri(), str(allowed / "without"), str(allowed / "link.png")):
        assert size_of(source, (allowed,)) == (8, 8)


def test_no_folder_is_allowed_by_itself(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pictures.ALLOWED_LOCAL_MEDIA_PATH, raising=False)
    assert pictures.allowed_folders() == ()
    assert pictures.ALLOWED_LOCAL_MEDIA_PATH in refusal(str(allowed / "a picture.png"))


def test_the_environment_names_the_folders(allowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(allowed)
    monkeypatch.setenv(pictures.ALLOWED_LOCAL_MEDIA_PATH, f"{tmp_path / 'link'}:/usr")
    assert pictures.allowed_folders() == (allowed, Path("/usr"))


@pytest.mark.parametrize("named", ["allowed", "/nowhere", "/etc/passwd"])
def test_a_folder_that_does_not_exist_is_named(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pictures.ALLOWED_LOCAL_MEDIA_PATH, f"/usr:{named}")
    with pytest.raises(ValueError, match=named):
        pictures.allowed_folders()


def test_what_is_elsewhere_is_refused_whether_or_not_it_exists(allowed: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    (allowed / "link.png").symlink_to(secret)
    (allowed / "broken.png").symlink_to(tmp_path / "absent.png")
    sources = [
        str(secret),
        str(tmp_path / "absent.png"),
        secret.as_uri(),
        "file:///etc/passwd",
        "file:///etc/absent",
        str(allowed / ".." / "secret.png"),
        str(allowed / ".." / "absent.png"),
        str(allowed / "link.png"),
        str(allowed / "broken.png"),
        f"{allowed}-beside/a.png",
        "picture.png",
    ]
    (said,) = {refusal(source, (allowed,)) for source in sources}
    assert said.endswith(f"not below a folder that the server's {pictures.ALLOWED_LOCAL_MEDIA_PATH} names")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "absent"])
def test_what_is_not_a_file_is_refused_at_once(allowed: Path, kind: str) -> None:
    path = allowed / "x.png"
    folders = (allowed,)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path, folders = Path("/dev/zero"), (Path("/dev"),)
    assert "cannot be read" in refusal(path.as_uri(), folders)


def test_a_large_file_is_not_read(allowed: Path) -> None:
    path = allowed / "large.png"
    with path.open("wb") as file:
        file.write(png())
        file.truncate(3 * 2**30)
    started = time.monotonic()
    assert f"more than {pictures.MAX_BYTES:,} bytes" in refusal(str(path), (allowed,))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", ["bytes", "base64", "data"])
def test_long_data_is_refused(kind: str) -> None:
    data = png() + bytes(pictures.MAX_BYTES)
    text = base64.b64encode(data).decode()
    source = {"bytes": data, "base64": text, "data": f"data:image/png;base64,{text}"}[kind]
    assert f"more than {pictures.MAX_BYTES:,} bytes" in refusal(source)


def test_the_bytes_of_a_request_are_limited() -> None:
    reader = pictures.PictureReader(())
    data = png() + bytes(pictures.MAX_BYTES - len(png()))
    for number in range(1, 5):
        with reader.decoded(data, f"picture {number}"):
            pass
    with pytest.raises(ValueError, match=r"picture 5 .* at most 134,217,728 bytes"), reader.decoded(png(), "picture 5"):
        pytest.fail("it was read")


def test_the_pixels_of_a_request_are_limited() -> None:
    reader, data = pictures.PictureReader(()), png(LARGE)
    for number in range(1, 5):
        with reader.decoded(data, f"picture {number}"):
            pass
    with (
        pytest.raises(ValueError, match=r"picture 5 .* at most 268,435,456 pixels"),
        reader.decoded(png(), "picture 5"),
    ):
        pytest.fail("it was read")


@pytest.mark.parametrize(("size", "at_once"), [(LARGE, 1), ((8192, 4096), 2), ((8, 8), 4)])
def test_large_pictures_wait_for_each_other(size: tuple[int, int], at_once: int) -> None:
    data, counting = png(size), threading.Lock()
    now = most = 0
    together = threading.Barrier(at_once)

    def read(number: int) -> None:
        nonlocal now, most
        with pictures.PictureReader(()).decoded(data, f"picture {number}"):  # each of a request of its own
            with counting:
                now += 1
                most = max(most, now)
            together.wait(timeout=60)
            time.sleep(0.05)
            with counting:
                now -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert most == at_once


def test_a_broken_picture_makes_no_other_wait() -> None:
    broken = png(LARGE)[:2000]
    for _ in range(3):
        assert "is broken" in refusal(broken)
    assert size_of(png(LARGE)) == LARGE


@pytest.fixture
def endless() -> Iterator[str]:
    """Serve a picture without an end."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(2**20))
            except OSError:
                pass

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/x.png"
    server.shutdown()
    server.server_close()


def test_an_endless_answer_is_given_up(endless: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    assert "picture 1 cannot be read" in refusal(endless)
    assert time.monotonic() - started < 30


def test_a_picture_is_turned_and_what_is_transparent_becomes_white() -> None:
    picture = Image.new("RGBA", (16, 8), (255, 0, 0, 0))
    picture.putpixel((15, 0), (255, 0, 0, 255))
    exif = picture.getexif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    for source in (file.getvalue(), Image.open(file)):
        with pictures.PictureReader(()).decoded(source, "picture 1") as read:
            assert (read.mode, read.size) == ("RGB", (8, 16))
            assert [read.getpixel(at) for at in ((7, 15), (0, 0))] == [(255, 0, 0), (255, 255, 255)]
    assert picture.mode == "RGBA"
