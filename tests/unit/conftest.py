"""Miniature real projects: an upstream wheel, a lock, a hook and an overlay, all small enough to read."""

from __future__ import annotations

import base64
import hashlib
import shutil
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from overlay_tools.archive.mode import is_executable
from overlay_tools.downstream.diff import make_diff
from overlay_tools.patches.series import load_series
from overlay_tools.settings import Project, load_project
from overlay_tools.upstream.download import fetch
from overlay_tools.upstream.lockfile import Lock, LockedWheel, Release, dump_lock, load_lock, tags_of
from overlay_tools.wheels.builder import BuiltWheel, build_sglang
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = ("overlay/README.md", "overlay/CHANGELOG.md", "patches/README.md")
TAG = "cp311-cp311-manylinux_2_34_x86_64"
LOADER = """\
def other():
    return 1


def get_model(config):
    name = config.name
    return name


def last():
    return 3
"""
HEADER = """\
Subject: Let the overlay choose
Why: because
Applies: >=1.0,<=1.1
Forwarded: no: ours alone
Remove-When: never

"""
DIFF = """\
diff --git a/sglang/loader.py b/sglang/loader.py
--- a/sglang/loader.py
+++ b/sglang/loader.py
@@ -3,5 +3,6 @@ def other():
{}
{}
 def get_model(config):
+    config = choose(config)
     name = config.name
     return name
""".replace("{}", " ")  # lines of context that are empty; an editor would take their blank away
PATCH = HEADER + DIFF
ENGINE = """\
import os


class Cache:
    size = 4

    def get(self, key):
        entry = self.table[key]
        self.hits += 1
        return entry

    def put(self, key, value):
        entry = self.make(key, value)
        self.table[key] = entry
        return entry


class Engine:
    @property
    def name(self):
        return "engine"

    def step(self, batch):
        out = self.model(batch)
        self.count += 1
        self.log(out)
        return out


def load(path, strict=True):
    config = read(path)
    model = build(config)
    check(model, strict)
    return model


def unload(model):
    model.close()
    return None
"""  # what a release may have besides: classes, methods, a decorator, functions


def upstream_files(version: str) -> dict[str, bytes]:
    """Return what a wheel of upstream holds, but for RECORD."""
    public, _, local = version.partition("+")
    parts = ", ".join(part if part.isdigit() else repr(part) for part in [*public.split("."), *filter(None, [local])])
    return {
        "sglang/__init__.py": b"from sglang.version import __version__\n",
        "sglang/version.py": b"from sglang._version import __version__\n",
        "sglang/_version.py": (
            f"__version__ = version = '{version}'\n__version_tuple__ = version_tuple = ({parts})\n"
        ).encode(),
        "sglang/loader.py": LOADER.encode(),
        "sglang/übersetzung.txt": "schön\n".encode(),
        "sglang/native.so": bytes(range(256)) * 40,
        f"sglang-{version}.dist-info/METADATA": (
            f"Metadata-Version: 2.4\nName: sglang\nVersion: {version}\nRequires-Dist: numpy ; extra == 'all'\n"
            f"Provides-Extra: all\n\nVersion: {version}\n"
        ).encode(),
        f"sglang-{version}.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {TAG}\n".encode(),
        f"sglang-{version}.dist-info/entry_points.txt": b"[console_scripts]\nsglang = sglang.loader:last\n",
        f"sglang-{version}.dist-info/licenses/LICENSE": b"terms\n",
    }


def write_wheel(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a wheel as upstream's build does: deflated, with a folder member and an executable."""
    dist_info = next(top for top in (name.partition("/")[0] for name in files) if top.endswith(".dist-info"))
    lines = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        folder = zipfile.ZipInfo("sglang/")
        folder.external_attr = 0o40755 << 16
        archive.writestr(folder, b"")
        for name, data in files.items():
            info = zipfile.ZipInfo(name, (2026, 1, 2, 3, 4, 6))
            info.external_attr = (0o100755 if name.endswith(".so") or is_executable(data) else 0o100664) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            entry = f'"{name}"' if "," in name else name
            lines.append(f"{entry},sha256={digest},{len(data)}\n")
        record = zipfile.ZipInfo(f"{dist_info}/RECORD", (2026, 1, 2, 3, 4, 6))
        archive.writestr(record, "".join([*lines, f"{dist_info}/RECORD,,\n"]))
    return path


@dataclass
class Miniature:
    """A project in a folder of its own, with a cache that already holds its base wheels."""

    root: Path
    cache: Path
    releases: dict[str, Release] = field(default_factory=dict)

    @property
    def project(self) -> Project:
        return load_project(self.root)

    @property
    def lock(self) -> Lock:
        return load_lock(self.root / "upstream.lock")

    @property
    def patch(self) -> Path:
        return self.root / "patches" / "choose" / "1.0.patch"

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def lock_release(self, version: str, files: Mapping[str, bytes] | None = None) -> Path:
        """Make upstream release `version`, put it into the cache and into the lock; return its wheel."""
        name = f"sglang-{version}-{TAG}.whl"
        made = write_wheel(self.root / name, files or upstream_files(version))
        return self.lock_wheel(version, made)

    def lock_wheel(self, version: str, made: Path) -> Path:
        """Put a wheel that has been made into the cache and the lock, whatever is in it."""
        data = made.read_bytes()
        wheel = LockedWheel(
            name=made.name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), tags=tuple(tags_of(made.name))
        )
        cached = self.cache / wheel.sha256 / made.name
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, cached)
        self.releases[version] = Release(
            version=version,
            requires_python=">=3.10",
            torch="2.0",
            transformers="5.0",
            kernel=Requirement("sglang-kernel==0.4"),
            wheels=(wheel,),
        )
        self.write("upstream.lock", dump_lock(self.releases))
        return cached

    def publish(self, version: str, files: Mapping[str, bytes] | None = None) -> Release:
        """Make an upstream release and put it into the cache, not into the lock; return what the index says of it."""
        lock = (self.root / "upstream.lock").read_bytes()
        self.lock_release(version, files)
        (self.root / "upstream.lock").write_bytes(lock)
        return self.releases.pop(version)

    def add_hook(self, name: str, before: Mapping[str, str], after: Mapping[str, str], applies: str = "") -> Path:
        """Add a hook to the end of the series that makes `after` of the files `before`, from release 1.0 on."""
        old, new = ({path: text.encode() for path, text in side.items()} for side in (before, after))
        header = HEADER.replace("Let the overlay choose", f"What {name} does")
        header = header.replace(">=1.0,<=1.1", applies) if applies else header
        series = (self.root / "patches" / "series").read_text()
        self.write("patches/series", f"{series}{name}\n")
        return self.write(f"patches/{name}/1.0.patch", header + make_diff(old, new))

    def limit(self, ranges: Mapping[str, str]) -> None:
        """Limit files of overlay/ to ranges of releases, and no others."""
        text = (self.root / "pyproject.toml").read_text().partition("\n[tool.sglang-overlay.files]")[0]
        rows = "".join(f'"{name}" = "{releases}"\n' for name, releases in ranges.items())
        self.write("pyproject.toml", f"{text}\n[tool.sglang-overlay.files]\n{rows}")

    def require(self, rules: str) -> None:
        """Change what releases require, by tables of dependencies in the place of those that there are."""
        table = "\n[[tool.sglang-overlay.dependencies]]\n"
        text = (self.root / "pyproject.toml").read_text().partition(table)[0]
        self.write("pyproject.toml", text + "".join(f"{table}{rule}\n" for rule in rules.split("---\n")))

    def content(self) -> dict[str, bytes]:
        """Return every file of the checkout that belongs in its repository."""
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and path.relative_to(self.root).parts[0] not in (".nox", "dist")
        }

    def build(self, version: str = "1.0") -> BuiltWheel:
        """Build one release from what the files of the project say now."""
        release = self.lock[version]
        wheel = release.select("3.11", "x86_64")
        return build_sglang(
            self.project, release, wheel, fetch(release, wheel, self.cache), load_series(self.root / "patches")
        )


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Return a project in a folder whose name has a space and letters that are not ASCII."""
    return make_miniature(tmp_path / "mein Überzug", monkeypatch)


@pytest.fixture
def mini_here(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Return such a project as the folder that this process is in, where `cli.main` looks for it."""
    monkeypatch.chdir(mini.root)
    return mini


def make_miniature(root: Path, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    root.mkdir()
    mini = Miniature(root=root, cache=root.parent / "cache")
    monkeypatch.setenv("SGLANG_OVERLAY_CACHE", str(mini.cache))
    mini.write(
        "pyproject.toml",
        textwrap.dedent(
            """\
            [tool.sglang-overlay]
            default = "1.0"
            revision = 3
            replaces = []
            plugin = []
            """
        ),
    )
    mini.write("LICENSE", "terms\n")
    mini.write("NOTICE", "notice\n")
    mini.write("overlay/sglang/models/ours.py", "OURS = 1\n")
    mini.write("overlay/sgl_kernel/__init__.py", "KERNEL = 1\n")
    mini.write("patches/series", "choose\n")
    mini.write("patches/choose/1.0.patch", PATCH)
    for name in DOCUMENTS:
        mini.write(name, "# For people\n")
    mini.lock_release("1.0")
    mini.lock_release("1.1")
    return mini
