"""The sessions of sglang-overlay. Arguments of one follow `--`: `nox -s build -- 0.5.17 --python 3.12`.

`nox -s build -- --help` says what a session does and takes, with examples; `--verbose` shows the programs it calls.
Releases are named as 0.5.17 is; each that is locked has a session `test-VERSION`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "ci"))
from overlay_tools.errors import OverlayError  # noqa: E402
from overlay_tools.surroundings import check_place, set_aside  # noqa: E402
from overlay_tools.upstream.installer_settings import foreign_variables  # noqa: E402

try:
    check_place(ROOT)
except OverlayError as _error:
    sys.exit(f"error: {_error}\n  {_error.hint}")
set_aside(os.environ)
for _name in foreign_variables(os.environ):  # an environment of a session holds what the session says, and nowhere else
    del os.environ[_name]

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "test"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"

VERSIONS = list(tomllib.loads((ROOT / "upstream.lock").read_text(encoding="utf-8"))["release"])
LINTERS = (
    ("ruff", "check"),
    ("ruff", "format", "--check"),
    ("mypy",),
    ("lint-imports",),
    ("overlay-tools", "lint-patches"),
)
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["sglang-overlay"]


def tool(session: nox.Session, command: str, *extras: str) -> None:
    """Install the tool and run one of its commands with the session's arguments."""
    session.install("-e", f".[{','.join(extras)}]" if extras else ".")
    run(session, "overlay-tools", command, *session.posargs)


def run(session: nox.Session, *words: str) -> None:
    """Run a program, which ends with all that it has started when nox does, in whatever way.

    After Ctrl-C it has a minute to clear up: a server and pytest take more than the half second that nox gives.
    """
    session.log(" ".join(words))
    supervised = ("python", "-IS", "ci/overlay_tools/supervisor.py", str(os.getpid()), "attached")
    session.run(*supervised, *words, log=False, interrupt_timeout=60, terminate_timeout=10)


@nox.session
def build(session: nox.Session) -> None:
    """Build the drop-in wheel of a release, and its CPU kernel wheel, into dist/."""
    tool(session, "build")


@nox.session
def plugin(session: nox.Session) -> None:
    """Build the plugin wheel, which brings the models to an unmodified SGLang."""
    tool(session, "plugin")


@nox.session
def verify(session: nox.Session) -> None:
    """Compare a wheel, or what an environment has of it, with its manifest."""
    tool(session, "verify", "sign")


@nox.session
def sign(session: nox.Session) -> None:
    """Sign wheels of dist/ with a key."""
    tool(session, "sign", "sign")


@nox.session
def serve(session: nox.Session) -> None:
    """Build, install and serve a model, and ask it a few questions."""
    tool(session, "serve", "serve")


@nox.session
def compare(session: nox.Session) -> None:
    """Compare what a checkpoint answers with what Transformers computes."""
    tool(session, "compare", "serve")


@nox.session
def accuracy(session: nox.Session) -> None:
    """Measure how well a checkpoint does on tasks, beside Transformers."""
    tool(session, "accuracy", "serve")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure how fast a checkpoint is served, beside Transformers."""
    tool(session, "bench", "serve")


@nox.session
def tune(session: nox.Session) -> None:
    """Find tiles of the fused MoE kernel for a checkpoint's shape, on a CUDA GPU."""
    tool(session, "tune", "serve")


@nox.session
def new(session: nox.Session) -> None:
    """Start a model of your own: its files, green as they are."""
    tool(session, "new", "new")


@nox.session
def adopt(session: nox.Session) -> None:
    """Make a Qwen3-Next-Ext checkpoint of a stock Qwen3-Next one."""
    tool(session, "adopt")


@nox.session
def lock(session: nox.Session) -> None:
    """Pin a release in upstream.lock, or compare the lock with the index."""
    tool(session, "lock")


@nox.session
def port(session: nox.Session) -> None:
    """Carry the overlay to a release that is not locked yet, and lock it."""
    tool(session, "port")


@nox.session
def edit(session: nox.Session) -> None:
    """Open a release as a git repository, one commit for each hook."""
    tool(session, "edit")


@nox.session
def export(session: nox.Session) -> None:
    """Write a worktree's commits back to patches/ and overlay/."""
    tool(session, "export")


@nox.session(name="import")
def import_(session: nox.Session) -> None:
    """Bring in patches or a fork: changed files as hooks, new ones to overlay/."""
    tool(session, "import")


@nox.session
def watch(session: nox.Session) -> None:
    """Carry the overlay to new releases and prove it: a branch or a report each."""
    tool(session, "watch", "test")


@nox.session
def changes(session: nox.Session) -> None:
    """Show what one release has otherwise than another, for the overlay."""
    tool(session, "changes")


@nox.session
def matrix(session: nox.Session) -> None:
    """Run every stage of every release that is not proven yet."""
    tool(session, "matrix", "test")


@nox.session
def status(session: nox.Session) -> None:
    """Show what is known of every release, here and as dist/status.html."""
    tool(session, "status")


@nox.session(name="bench-build")
def bench_build(session: nox.Session) -> None:
    """Time the build beside unpack, apply and pack, and beside the least that it could do."""
    session.install("-e", ".[bench]")
    run(session, "pytest", "-s", "tests/bench/test_build_speed.py", *session.posargs)


@nox.session(name="bench-port")
def bench_port(session: nox.Session) -> None:
    """Measure how hunks are carried to other releases, beside what git and patch do."""
    session.install("-e", ".[bench]")
    run(session, "pytest", "-s", "tests/bench/port", *session.posargs)


@nox.session(name="bench-kills")
def bench_kills(session: nox.Session) -> None:
    """Kill each command at many moments, and look at what is left of it and of its files."""
    session.install("-e", ".[test,serve,bench]")
    run(session, "pytest", "-s", "tests/bench/kills", *session.posargs)


@nox.session(name="bench-mutations")
def bench_mutations(session: nox.Session) -> None:
    """Break models that `new` has written in many ways, and see that their tests find it."""
    session.install("-e", ".[test,new,bench]")
    run(session, "pytest", "-s", "tests/bench/mutations", *session.posargs)


@nox.session(name="bench-gpu")
def bench_gpu(session: nox.Session) -> None:
    """Measure kernels, overhead and speed on a CUDA GPU."""
    tool(session, "bench-gpu", "test")


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff, mypy, the import linter and the patch linter, each whatever the others find; it takes no arguments."""
    if session.posargs:
        session.error(f"lint takes no arguments, but was given {' '.join(session.posargs)}")
    session.install("-e", ".[lint,test,browser]")
    failed = []
    for words in LINTERS:
        try:
            run(session, *words)
        except CommandFailed:
            failed.append(" ".join(words))
    if failed:
        session.error(f"{len(failed)} of {len(LINTERS)} found faults, shown above: {', '.join(failed)}")


@nox.session
def test(session: nox.Session) -> None:
    """Test the tool, every locked release statically, and the default release's engine."""
    session.install("-e", ".[test]")
    run(session, "pytest", "--numprocesses=auto", "--maxprocesses=8", *session.posargs)
    run(session, "overlay-tools", "test-engine", SETTINGS["default"])
    session.log("The status page was not tested in a browser: `nox -s test-page` does that.")


@nox.session(name="test-page")
def test_page(session: nox.Session) -> None:
    """Test the status page in a browser: the machine's own, or one that is downloaded (arguments go to pytest)."""
    session.install("-e", ".[test,browser]")
    run(session, "python", "tests/browser/browser.py")
    run(session, "pytest", "tests/browser", *session.posargs)


@nox.session(name="test-docs")
def test_docs(session: nox.Session) -> None:
    """Run every command of the pages, in a copy of this checkout."""
    session.install("-e", ".[test]")
    run(session, "pytest", "--numprocesses=2", "tests/docs", *session.posargs)


def add_test(version: str) -> None:
    """Add the session that tests one release."""

    def test_release(session: nox.Session) -> None:
        session.install("-e", ".[test]")
        run(session, "pytest", "tests/static", "-k", f"[{version}]")
        run(session, "overlay-tools", "test-engine", version, "--", *session.posargs)

    test_release.__doc__ = f"Test sglang {version}: statically, then its engine (arguments go to that pytest)."
    nox.session(name=f"test-{version}")(test_release)


def add_engine_test(kind: str, version: str, what: str) -> None:
    """Add the session that tests one release's engine in another way: `kind` is "gpu" or "plugin"."""

    def test_engine(session: nox.Session) -> None:
        session.install("-e", ".[test]")
        run(session, "overlay-tools", "test-engine", f"--{kind}", version, "--", *session.posargs)

    test_engine.__doc__ = f"Test {what} (arguments go to that pytest)."
    nox.session(name=f"test-{kind}-{version}")(test_engine)


for _version in VERSIONS:
    add_test(_version)
    add_engine_test("gpu", _version, f"sglang {_version} on a CUDA GPU, with upstream's kernels")
for _version in SETTINGS["plugin"]:
    add_engine_test("plugin", _version, f"the plugin beside upstream's own sglang {_version}")
