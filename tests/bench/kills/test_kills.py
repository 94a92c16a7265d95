"""Each command killed at many moments: what it was to write is there whole or not at all, and nothing of it runs.

The signals and what they go to, the tool or nox above it, take turns.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
from overlay_tools.settings import load_project
from overlay_tools.subprocesses import _PATIENCE
from overlay_tools.upstream.lockfile import dump_lock, load_lock

from bench.kills.victims import COMMANDS, REPOSITORY, Victim, beneath_nox, make_stand_in
from bench.port.scratch_checkout import ScratchCheckout

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
TOOL = ("-m", "overlay_tools")


@pytest.fixture
def checkout(tmp_path: Path) -> ScratchCheckout:
    return ScratchCheckout(tmp_path / "checkout")


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of a checkout that a command may write to."""
    paths = (path for name in ("patches", "overlay", "upstream.lock", "pyproject.toml") for path in [folder / name])
    files = itertools.chain(*([path] if path.is_file() else path.rglob("*") for path in paths))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


def kill_at_moments(
    request: pytest.FixtureRequest,
    folder: Path,
    words: tuple[str, ...],
    prepare: Callable[[], None],
    check: Callable[[str], None],
    env: Mapping[str, str] | None = None,
    seconds: float = 0.0,
) -> None:
    """Start a command again and again, kill it later each time, and look at what it leaves.

    Parameters: `words`, the arguments of Python; `prepare` brings the checkout to where the command begins; `check`
    looks at it afterwards, and is given the moment in words; `seconds`, that the command takes, measured if 0.
    """
    moments = request.config.getoption("--moments")
    lengths = {}
    for above in ((), tuple(beneath_nox(folder))):
        prepare()
        began = time.monotonic()
        if not seconds:
            subprocess.run([sys.executable, *above, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        lengths[above] = seconds or time.monotonic() - began
    slowest, ended = 0.0, 0
    for number, (above, kind) in zip(
        range(moments), itertools.cycle(itertools.product(lengths, SIGNALS)), strict=False
    ):
        prepare()
        with Victim.start([sys.executable, *above, *words], folder, env or {}) as victim:
            moment = lengths[above] * (number + 0.5) / moments
            time.sleep(moment)
            ended += victim.process.poll() is not None
            what = f"{kind.name} to {'nox' if above else 'the tool'} after {moment:.2f} s"
            try:
                slowest = max(slowest, victim.kill(kind))
            except AssertionError as error:
                raise AssertionError(f"{what}: {error}") from None
            check(f"{what}, which said {victim.said()!r}")
    took = f"{max(lengths.values()):.1f} s"
    print(f"\n{moments} moments of {took}, {ended} of them after its end: slowest end {slowest:.1f} s")


def test_build(request: pytest.FixtureRequest, checkout: ScratchCheckout) -> None:
    assert not checkout.run("build").error
    wheels = {path.name: path.read_bytes() for path in (checkout.folder / "dist").iterdir()}
    before = content(checkout.folder)

    def prepare() -> None:
        shutil.rmtree(checkout.folder / "dist")

    def check(what: str) -> None:
        for path in (checkout.folder / "dist").glob("*.whl"):
            assert path.read_bytes() == wheels[path.name], what
        assert not checkout.run("build").error, what
        assert {path.name: path.read_bytes() for path in (checkout.folder / "dist").iterdir()} == wheels, what
        assert content(checkout.folder) == before, what

    kill_at_moments(request, checkout.folder, (*TOOL, "build"), prepare, check)


def test_export(request: pytest.FixtureRequest, checkout: ScratchCheckout, tmp_path: Path) -> None:
    """A change of a hook, one of an overlay file, and a new hook are exported."""
    version = checkout.project.default
    assert not checkout.run("edit", version).error
    tree = checkout.folder / ".nox" / "worktrees" / version
    commit_changes(tree)
    for name in ("patches", "overlay"):
        shutil.copytree(checkout.folder / name, tmp_path / name)
    shutil.copytree(tree, tmp_path / "tree", symlinks=True)
    words = ("export", version, "--yes")
    assert not checkout.run(*words).error
    after = content(checkout.folder)

    def prepare() -> None:
        for name in ("patches", "overlay"):
            shutil.rmtree(checkout.folder / name)
            shutil.copytree(tmp_path / name, checkout.folder / name)
        (tree / ".git" / "sglang-overlay.json").write_bytes((tmp_path / "tree/.git/sglang-overlay.json").read_bytes())

    def check(what: str) -> None:
        error = checkout.run(*words).error
        assert not error, f"{what}: {error}"
        assert content(checkout.folder) == after, what
        assert not list(checkout.folder.glob("*/**/.*.part")), what

    kill_at_moments(request, checkout.folder, (*TOOL, *words), prepare, check)


def commit_changes(tree: Path) -> None:
    """Change a file of the overlay, and a line of upstream's that no hook touches, each in a commit."""
    who = ("-c", "user.name=me", "-c", "user.email=me@here")
    trailers = "Hook: say-version\nForwarded: no: ours alone\nRemove-When: never"
    for name, message in {
        "sglang/srt/overlay_registry.py": "Say more",
        "sglang/version.py": f"Say the version\n\nIt is a test.\n\n{trailers}",
    }.items():
        path = tree / name
        path.write_text(path.read_text(encoding="utf-8") + "# A line more.\n", encoding="utf-8")
        subprocess.run(["git", *who, "commit", "--quiet", "--all", f"--message={message}"], cwd=tree, check=True)


def test_port(request: pytest.FixtureRequest, checkout: ScratchCheckout) -> None:
    """The default release is taken out of the lock, and ported to as if it were new."""
    version = checkout.project.default
    path = checkout.folder / "upstream.lock"
    lock = load_lock(path)
    path.write_text(dump_lock({name: release for name, release in lock.items() if name != version}))
    locked = path.read_bytes()
    assert not checkout.run("port", version).error
    after = content(checkout.folder)

    def prepare() -> None:
        path.write_bytes(locked)
        shutil.rmtree(checkout.folder / ".nox" / "porting", ignore_errors=True)

    def check(what: str) -> None:
        if path.read_bytes() == locked:
            if checkout.is_porting:
                assert not checkout.run("port", "--abort").error, what
            error = checkout.run("port", version).error
            assert not error, f"{what}: {error}"
        assert content(checkout.folder) == after, what

    kill_at_moments(request, checkout.folder, (*TOOL, "port", version), prepare, check)


@pytest.mark.parametrize("name", ["serve", "test-engine"])
def test_stand_ins(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    """The server does not end by itself, nor do its workers, in sessions of their own."""
    env = make_stand_in(tmp_path)
    shutil.copy(Path(__file__).parents[3] / "pyproject.toml", tmp_path)

    def check(what: str) -> None:
        assert what

    kill_at_moments(request, tmp_path, tuple(COMMANDS[name]), lambda: None, check, env, seconds=6.0)


@pytest.mark.parametrize("session", ["serve", "test"])
def test_real_servers(request: pytest.FixtureRequest, session: str) -> None:
    """The sessions of this checkout, killed while the server starts and while it answers, tool and nox in turns."""
    words = ["serve", "--", "--keep"]
    if session == "test":
        words = [f"test-{load_project(REPOSITORY).default}", "--", "tests/engine/serving/test_http.py"]
    for number in range(request.config.getoption("--servers")):
        phase, kind = number % 3, SIGNALS[(number + number // 3) % 3]
        with Victim.start([sys.executable, "-m", "nox", "-s", *words], REPOSITORY, {}) as victim:
            deadline = time.monotonic() + 600
            while not has_come_to(phase, victim):
                assert victim.process.poll() is None, victim.said()
                assert time.monotonic() < deadline, victim.running()
                time.sleep(0.5)
            running = victim.running()
            tool = victim.named("overlay-tools")[-1]
            beneath = bool(number // 3 % 2)
            # Asked to end, the tool lets pytest clear up: what that shows of where it was can take it a while.
            seconds = victim.kill(kind, pid=tool.pid if beneath else None, patience=_PATIENCE if beneath else 0)
            target = "the tool" if beneath else "nox"
            print(f"\n{kind.name} to {target}, {PHASES[phase]}: {len(running)} processes ended in {seconds:.1f} s")


PHASES = ("the server is there", "it has workers", "it listens")


def has_come_to(phase: int, victim: Victim) -> bool:
    """Tell whether the server of a command has come to one of PHASES."""
    victim.look()
    leaders = victim.named("sglang.launch_server")
    if not leaders:
        return False
    if phase < 2:
        return len(leaders[-1].children()) >= 2 * phase
    listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return any(each.pid in {leader.pid for leader in leaders} for each in listening)
