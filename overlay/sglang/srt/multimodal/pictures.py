"""Pictures of requests: read, checked and decoded, within limits on what a request and all of them together take.

Upstream's loader says of a picture that cannot be used now that the request, now that the server is at fault, and reads
any file that a request names, whatever its size. Here it is always the request: every error is a ValueError, which each
release answers with status 400 and its message.
"""

import base64
import io
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock
from urllib.parse import unquote, urlparse

import numpy
import requests
from PIL import ExifTags, Image, ImageOps
from sglang.srt.utils import ImageData, common, get_image_bytes

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")

MAX_SIDE = 16_384
MAX_PIXELS = 64 * 2**20  # of one picture, and of all that are decoded at the same time: 192 MiB, and copies of it
MAX_BYTES = 32 * 2**20  # of one file
MAX_REQUEST_PIXELS = 4 * MAX_PIXELS
MAX_REQUEST_BYTES = 4 * MAX_BYTES

# The folders, separated as in PATH, below which requests may name files.
ALLOWED_LOCAL_MEDIA_PATH = "SGLANG_OVERLAY_ALLOWED_LOCAL_MEDIA_PATH"


def allowed_folders() -> tuple[Path, ...]:
    """Return the folders below which requests may name files; none, unless the environment says otherwise.

    Raises ValueError for one that does not exist.
    """
    folders = [Path(name) for name in os.environ.get(ALLOWED_LOCAL_MEDIA_PATH, "").split(os.pathsep) if name]
    for folder in folders:
        if not folder.is_absolute() or not folder.is_dir():
            raise ValueError(f"{ALLOWED_LOCAL_MEDIA_PATH}: {folder} is not the absolute path of a folder")
    return tuple(folder.resolve() for folder in folders)


class _PixelBudget:
    """Lets pictures be decoded at the same time as long as they have so many pixels between them."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_DECODING = _PixelBudget(MAX_PIXELS)


class PictureReader:
    """Reads the pictures of one request, in any number of threads.

    `folders`: those below which it may name files.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._counting = Lock()
        self._bytes = self._pixels = 0

    @contextmanager
    def decoded(self, source: object, name: str) -> Iterator[Image.Image]:
        """Decode a picture: bytes, a path, a file:, data: or http(s): address, or base64.

        `name` stands for it in errors. Transparent parts become white, and it is turned as its metadata say. Let go of
        it when the block ends: other large ones wait until then. Raises ValueError, always short, whatever is wrong: it
        cannot be had, is not a picture, is empty or too large, or cannot be decoded.
        """
        try:
            picture = source if isinstance(source, Image.Image) else self._open(source)
        except Image.DecompressionBombError:
            raise ValueError(f"{name} is too large: at most {MAX_PIXELS:,} pixels are taken") from None
        except Image.UnidentifiedImageError:
            raise ValueError(f"{name} is not a picture in one of the formats {', '.join(FORMATS)}") from None
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror or type(error).__name__}") from None
        except Exception as error:  # libraries that fetch and decode raise anything
            raise ValueError(f"{name} cannot be read: {str(error)[:200] or type(error).__name__}") from None
        width, height = picture.size
        if not width or not height:
            raise ValueError(f"{name} has no pixels: it is {width} x {height}")
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise ValueError(
                f"{name} is too large: it is {width} x {height}; at most {MAX_SIDE:,} pixels a side and {MAX_PIXELS:,} "
                "in all are taken"
            )
        with self._counting:
            self._pixels += width * height
            if self._pixels > MAX_REQUEST_PIXELS:
                raise ValueError(
                    f"{name} is too much: the pictures of a request have at most {MAX_REQUEST_PIXELS:,} pixels"
                )
        with _DECODING.hold(width * height):
            try:
                picture = _flatten(picture)
            except Exception as error:  # a broken picture fails anywhere in its decoder
                raise ValueError(f"{name} is broken: {str(error)[:200] or type(error).__name__}") from None
            yield picture

    def _open(self, source: object) -> Image.Image:
        data = self._read(source.url if isinstance(source, ImageData) else source)
        with self._counting:
            self._bytes += len(data)
            if self._bytes > MAX_REQUEST_BYTES:
                raise ValueError(f"the pictures of a request have at most {MAX_REQUEST_BYTES:,} bytes")
        return Image.open(io.BytesIO(data), formats=FORMATS)

    def _read(self, source: object) -> bytes:
        if isinstance(source, bytes):
            return _limited(source)
        if not isinstance(source, str) or not source:
            raise ValueError(f"it must be a path, an address or base64, not {source and type(source).__name__!r}")
        if source.startswith(("http://", "https://")):
            return _limited(_download(source))
        if source.startswith("data:"):
            return _decode(source.partition(",")[2])
        if source.startswith("file://"):
            return self._read_file(unquote(urlparse(source).path))
        # Base64 of a JPEG begins with a slash too.
        if source.lower().endswith(SUFFIXES) or any(source.startswith(f"{folder}/") for folder in self.folders):
            return self._read_file(source)
        return _decode(source)

    def _read_file(self, name: str) -> bytes:
        """Read a file below the folders; of any other, it is not told whether it exists."""
        path = Path(name).resolve()
        if not any(path.is_relative_to(folder) for folder in self.folders):
            raise ValueError(f"it is not below a folder that the server's {ALLOWED_LOCAL_MEDIA_PATH} names")
        # A pipe or a device would not let go of a reader, and has no end.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is not a file")
            return _limited(file.read(MAX_BYTES + 1))


def _limited(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return data


def _decode(text: str) -> bytes:
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    return base64.b64decode(text, validate=True)


def _download(address: str) -> bytes:
    if hasattr(common, "download_remote_media"):
        return get_image_bytes(address)  # newer releases have rules for addresses, and limits, of their own
    timeout = int(os.environ.get("REQUEST_TIMEOUT", "3"))  # upstream's name for it
    deadline = time.monotonic() + timeout
    data = bytearray()
    with requests.get(address, stream=True, timeout=timeout) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_content(2**16):
            data += chunk
            if len(data) > MAX_BYTES:
                break
            if time.monotonic() > deadline:
                raise ValueError(f"it took more than {timeout} s")
    return bytes(data)


def _flatten(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB, upright and without transparent parts."""
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # each step makes a copy, so none is taken in vain
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # Pillow would cut off at 255
        picture = Image.fromarray((numpy.asarray(picture) // 257).astype(numpy.uint8))
    if picture.has_transparency_data:
        picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
