"""The commands, one function each; noxfile.py calls them."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from overlay_tools import console
from overlay_tools.bench_port import bench_port, replay
from overlay_tools.checkpoints.adopt import KEYS, adopt, read_stock
from overlay_tools.downstream.export import edit, export, worktrees
from overlay_tools.downstream.port import Port
from overlay_tools.engines import engine_config
from overlay_tools.engines.environment import build_release, engine_environment, has_cuda
from overlay_tools.engines.server import Server
from overlay_tools.engines.smoke import ask, takes_pictures
from overlay_tools.errors import LockError, OverlayError, PatchError, PortError, ServeError, VerifyError, WorktreeError
from overlay_tools.patches.lint import lint
from overlay_tools.patches.series import load_series
from overlay_tools.proving.runner import plan_matrix, run_matrix
from overlay_tools.proving.stages import ENGINE_TESTS, GPU_TESTS, PLUGIN_TESTS
from overlay_tools.report.collect import collect_status
from overlay_tools.report.html import write_page
from overlay_tools.report.terminal import print_status
from overlay_tools.settings import Project, cache_dir, load_project
from overlay_tools.subprocesses import run
from overlay_tools.upstream.index import difference, query_release
from overlay_tools.upstream.lockfile import PLATFORMS, PYTHONS, Lock, Release, dump_lock, get_release, load_lock
from overlay_tools.upstream.source_tree import THIS_PYTHON
from overlay_tools.wheels.builder import BuiltWheel
from overlay_tools.wheels.plugin import build_plugin
from overlay_tools.wheels.verify import verify_environment, verify_wheel


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    arguments = _parser().parse_args(argv)
    # A build that is asked to end clears up as one that fails does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return int(arguments.command(load_project(Path.cwd()), arguments) or 0)
    except OverlayError as error:
        console.fail(error)
    except KeyboardInterrupt:
        console.fail(OverlayError("Interrupted."))
        return 130
    return 1


def lock_command(project: Project, arguments: argparse.Namespace) -> None:
    """Write releases into upstream.lock, or say what the index has otherwise."""
    lock = load_lock(project.lock) if project.lock.exists() else {}
    if arguments.check:
        return _check_lock(lock, arguments.versions or list(lock))
    if not arguments.versions:
        raise LockError("No release is named.", hint="`nox -s lock -- VERSION` adds one, `-- --check` compares all.")
    new: dict[str, Release] = dict(lock)
    for version in arguments.versions:
        with console.step(f"Ask the index for sglang {version}"):
            release = query_release(version)
        new[release.version] = release
    text = dump_lock(new)
    part = project.lock.with_name(".upstream.lock.part")
    part.write_text(text, encoding="utf-8")
    part.replace(project.lock)
    console.line(f"{project.lock.name} holds {len(new)} releases.")
    return None


def build_command(project: Project, arguments: argparse.Namespace) -> None:
    """Build drop-in wheels, and beside them the CPU kernel wheels."""
    lock, hooks = load_lock(project.lock), load_series(project.patches)
    versions = list(lock) if arguments.all else arguments.versions or [project.default]
    for release in [get_release(lock, version, project.lock) for version in versions]:
        for built in build_release(project, release, hooks, arguments.python, arguments.platform):
            _summary(project, built)


def plugin_command(project: Project, arguments: argparse.Namespace) -> None:
    """Build the plugin wheel."""
    _summary(project, build_plugin(project))


def verify_command(project: Project, arguments: argparse.Namespace) -> None:
    """Compare wheels or environments with their manifests."""
    if not arguments.wheels and not arguments.env:
        raise VerifyError("Nothing is named.", hint="`nox -s verify -- WHEEL` or `nox -s verify -- --env PYTHON`.")
    results = [verify_wheel(path) for path in arguments.wheels]
    for python in arguments.env:
        results += verify_environment(python)
    for result in results:
        console.line(f"{result.name}: {result.files} files, {len(result.differences) or 'no'} differences")
        for difference_ in result.differences:
            console.line(f"  {difference_}", style="red")
    different = [result.name for result in results if result.differences]
    if different:
        raise VerifyError(f"{', '.join(different)}: not as built.", hint="Install or build it anew.")


def lint_command(project: Project, arguments: argparse.Namespace) -> None:
    """Check patches/ against the lock."""
    lock, hooks = load_lock(project.lock), load_series(project.patches)
    faults = lint(hooks, list(lock))
    if faults:
        raise PatchError(*faults, hint="README.md, 'Patches', says what a patch must look like.")
    console.line(f"{sum(len(hook.variants) for hook in hooks)} patches of {len(hooks)} hooks: no fault.")


def serve_command(project: Project, arguments: argparse.Namespace) -> None:
    """Build, install, serve a model and ask it."""
    python, gpu = _engine(project, arguments.version or project.default, arguments.python)
    model = arguments.model or tiny_checkpoint(project, python)
    if not (model / "config.json").is_file():
        raise ServeError(f"{model} is no checkpoint: it has no config.json.", hint="Name a folder with --model.")
    if arguments.image is not None and not (arguments.image.is_file() and takes_pictures(model)):
        why = "is no file" if not arguments.image.is_file() else f"cannot be shown: {model} takes no pictures"
        raise ServeError(f"{arguments.image} {why}.", hint="Leave --image out, or name a picture and a model for it.")
    log = python.parent.parent / "server.log"
    server = Server(
        python,
        model,
        [] if gpu else engine_config.flags(engine_config.ARGS),
        env={} if gpu else engine_config.ENV,
        log=log,
        port=arguments.port,
        timeout=arguments.timeout,
        waiting=lambda seconds: console.line(f"  {seconds} s: {_last_line(log)}") if seconds % 5 == 0 else None,
    )
    console.line(f"Start sglang.launch_server on {model}")
    with server:
        console.line(f"Serving at {server.url}", style="green")
        ask(server, arguments.image)
        if arguments.keep:
            console.line("Serving until Ctrl-C.")
            while True:
                server.check()
                time.sleep(1)
    console.line("Stopped.")


def adopt_command(project: Project, arguments: argparse.Namespace) -> None:
    """Make a Qwen3-Next-Ext checkpoint of a stock Qwen3-Next one."""
    rank = [] if arguments.adapter_rank is None else [f"head_adapter_rank={arguments.adapter_rank}"]
    with console.step(f"Read {arguments.checkpoint}"):
        stock = read_stock(arguments.checkpoint)
    with console.step(f"Write {arguments.out}"):
        adopted = adopt(stock, arguments.out, [*arguments.set, *rank])
    rows = [("linked", f"{adopted.linked} files, {adopted.linked_bytes:,} bytes")]
    rows += [("written", f"{name}, {size:,} bytes") for name, size in adopted.written.items()]
    rows += [("new tensors", str(adopted.tensors)), ("copied", f"{sum(adopted.written.values()):,} bytes in all")]
    console.table(str(arguments.out), rows)
    console.line(f"Serve it: nox -s serve -- --model {shlex.quote(str(arguments.out))}")


def test_command(project: Project, arguments: argparse.Namespace) -> int:
    """Run the engine tests of one release in its environment."""
    if arguments.gpu:
        _check_cuda()
    python, _ = _engine(project, arguments.version, arguments.python, plugin=arguments.plugin)
    if not arguments.gpu:
        os.environ.update(engine_config.ENV)
    where = GPU_TESTS if arguments.gpu else PLUGIN_TESTS if arguments.plugin else ENGINE_TESTS
    if any(word.startswith("tests/") for word in arguments.pytest):
        where = ()
    words = [str(python), "-m", "pytest", "-W", "default", *where, *arguments.pytest]
    return os.spawnv(os.P_WAIT, words[0], words)


def bench_gpu_command(project: Project, arguments: argparse.Namespace) -> int:
    """Run the benchmarks on a GPU in the environment of a release."""
    _check_cuda()
    python, _ = _engine(project, arguments.release or project.default, arguments.python)
    os.environ["PYTHONPATH"] = os.pathsep.join(str(project.root / name) for name in ("ci", "tests"))
    words = [str(python), "-m", "gpu.bench", *arguments.parts]
    return os.spawnv(os.P_WAIT, words[0], words)


def _check_cuda() -> None:
    if not has_cuda():
        raise OverlayError("No CUDA GPU answers on this machine.", hint="`nox -s test` needs none.")


def port_command(project: Project, arguments: argparse.Namespace) -> None:
    """Carry the overlay to a release that is not locked yet."""
    port = Port(project, cache_dir())
    if arguments.abort:
        port.abort()
        return console.line("Given up; patches/ and upstream.lock are as they were.")
    if arguments.go_on:
        port.resume(arguments.drop)
    elif arguments.version is None:
        raise PortError("No release is named.", hint="`nox -s port -- VERSION`, or `-- --continue`, or `-- --abort`.")
    else:
        port.start(arguments.version, query_release)
    return None


def edit_command(project: Project, arguments: argparse.Namespace) -> None:
    """Open a release as a worktree."""
    tree = edit(project, cache_dir(), arguments.version or project.default, discard=arguments.discard)
    console.line(f"Change files in {tree.folder}, commit, then `nox -s export`.")
    console.line(f"Run from it: PYTHONPATH={tree.folder} before an interpreter of .nox/engines")


def export_command(project: Project, arguments: argparse.Namespace) -> None:
    """Write a worktree's commits back."""
    made = worktrees(project)
    if arguments.version is None and len(made) != 1:
        raise WorktreeError(
            f"There are {len(made)} worktrees: {', '.join(made) or 'none'}.",
            hint="`nox -s export -- VERSION` takes one.",
        )
    ask = _ask if sys.stdin.isatty() else None
    changed = export(project, cache_dir(), arguments.version or made[0], ask)
    for name in changed:
        console.line(name)
    console.line(f"{len(changed)} files written or removed." if changed else "Nothing has changed.")


def _ask(hook: str, field: str) -> str:
    return input(f"{field} of the new hook {hook}: ").strip()


def matrix_command(project: Project, arguments: argparse.Namespace) -> None:
    """Run every stage of every release that is not proven yet."""
    lock = load_lock(project.lock)
    for version in arguments.versions:
        get_release(lock, version, project.lock)
    plan = plan_matrix(project, arguments.versions or list(lock), again=arguments.again)
    if not plan:
        return console.line("Every stage is green for what this checkout builds.")
    peak = run_matrix(project, plan, arguments.python)
    return console.line(f"All green. At most {peak / 1e9:.1f} GB of disk were in use.")


def status_command(project: Project, arguments: argparse.Namespace) -> None:
    """Show what is known of every release, on the terminal and as a page."""
    lock, hooks = load_lock(project.lock), load_series(project.patches)
    with console.step(f"Read {len(lock)} releases"):
        status = collect_status(project, lock, hooks, cache_dir())
    # What is no terminal has no width to keep to.
    print_status(status, Console(highlight=False, width=None if sys.stdout.isatty() else 200))
    path = arguments.html or project.dist / "status.html"
    write_page(status, path)
    console.line(f"As a page: {path}")
    if arguments.check and status.not_green:
        raise OverlayError(*status.not_green, hint=f"{path} says why.")


def bench_port_command(project: Project, arguments: argparse.Namespace) -> None:
    """Port the series through all releases, and made-up insertions beside other tools."""
    lock = load_lock(project.lock)
    for version in (arguments.old, arguments.new or list(lock)[-1]):
        get_release(lock, version, project.lock)
    replay(project, lock, cache_dir())
    counts = bench_port(lock, cache_dir(), arguments.old, arguments.new or list(lock)[-1], arguments.count)
    if wrong := counts["port, applied"]["wrong"] + counts["port, proposed"]["wrong"]:
        raise PortError(f"{wrong} insertions came out at a wrong place.")


def _engine(project: Project, version: str, python: str | None, plugin: bool = False) -> tuple[Path, bool]:
    name = f"{version}-py{python or THIS_PYTHON}{'-plugin' if plugin else ''}"
    return engine_environment(project, version, python, project.root / ".nox" / "engines" / name, plugin)


def tiny_checkpoint(project: Project, python: Path) -> Path:
    """Make a tiny random Llama-logit-shaping checkpoint, once, and return its folder."""
    model = project.root / ".nox" / "checkpoints" / "llama-logit-shaping"
    if not (model / "config.json").is_file():
        with console.step("Make a tiny llama-logit-shaping checkpoint"):
            run([python, project.root / "tests/reference/checkpoints.py", "llama-logit-shaping", model])
    return model


def _check_lock(lock: Lock, versions: Sequence[str]) -> None:
    lines = []
    for version in versions:
        if version not in lock:
            raise LockError(f"{version} is not locked.", hint=f"These are: {', '.join(lock)}.")
        with console.step(f"Ask the index for sglang {version}"):
            lines += difference(lock[version], query_release(version))
    if lines:
        raise LockError(
            *lines, hint="`nox -s lock -- VERSION` writes what the index has now: ask why it changed first."
        )
    console.line("The index and the lock agree.")


def _summary(project: Project, built: BuiltWheel) -> None:
    rows = [("base", f"{built.base.name}, sha256 {built.base.sha256}")] if built.base else []
    rows += [
        (f"hook {patch.hook}", f"{patch.path.name}: +{patch.added}/-{patch.removed} lines") for patch in built.patches
    ]
    rows += [
        ("added", ", ".join(built.added)),
        ("size", f"{built.size:,} bytes"),
        ("sha256", built.sha256),
        ("took", f"{built.seconds:.2f} s"),
    ]
    console.table(str(built.path.relative_to(project.root)), rows)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="overlay-tools", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    lock = commands.add_parser("lock", help="write releases into upstream.lock, or compare it with the index")
    lock.add_argument("versions", nargs="*", metavar="VERSION")
    lock.add_argument("--check", action="store_true", help="write nothing; say what the index has otherwise")
    lock.set_defaults(command=lock_command)

    build = commands.add_parser("build", help="build drop-in wheels into dist/")
    build.add_argument(
        "versions", nargs="*", metavar="VERSION", help="locked releases (default: the project's default)"
    )
    build.add_argument("--all", action="store_true", help="every locked release")
    build.add_argument("--python", default=THIS_PYTHON, choices=PYTHONS, help="CPython to build for")
    build.add_argument("--platform", default=platform.machine(), choices=PLATFORMS, help="machine to build for")
    build.set_defaults(command=build_command)

    plugin = commands.add_parser("plugin", help="build the plugin wheel for an unmodified sglang into dist/")
    plugin.set_defaults(command=plugin_command)

    verify = commands.add_parser("verify", help="compare a wheel or an environment with its manifest")
    verify.add_argument("wheels", nargs="*", type=Path, metavar="WHEEL")
    verify.add_argument("--env", action="append", default=[], metavar="PYTHON", help="interpreter of an environment")
    verify.set_defaults(command=verify_command)

    lint_ = commands.add_parser("lint-patches", help="check patches/")
    lint_.set_defaults(command=lint_command)

    bench_port_ = commands.add_parser("bench-port", help="measure how hunks are carried to other releases")
    bench_port_.add_argument("old", nargs="?", default="0.5.16", metavar="OLD", help="release that insertions are for")
    bench_port_.add_argument("new", nargs="?", metavar="NEW", help="release that they go to (default: the newest)")
    bench_port_.add_argument("--count", type=int, default=240, help="how many insertions")
    bench_port_.set_defaults(command=bench_port_command)

    serve = commands.add_parser("serve", help="build, install and serve a model, and ask it something")
    serve.add_argument("version", nargs="?", metavar="VERSION")
    serve.add_argument(
        "--model", type=Path, metavar="PATH", help="checkpoint to serve (default: a tiny one, made here)"
    )
    serve.add_argument(
        "--image", type=Path, metavar="FILE", help="picture to show a model that takes some (default: a red square)"
    )
    serve.add_argument("--port", type=int, help="port to listen on (default: a free one)")
    serve.add_argument("--keep", action="store_true", help="keep serving until Ctrl-C")
    serve.add_argument("--timeout", type=float, default=600.0, help="seconds the server may take to come up")
    serve.add_argument("--python", choices=PYTHONS, help="CPython to serve with")
    serve.set_defaults(command=serve_command)

    adopt_ = commands.add_parser("adopt", help="make a Qwen3-Next-Ext checkpoint of a stock Qwen3-Next one")
    adopt_.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of the stock checkpoint")
    adopt_.add_argument("out", type=Path, metavar="OUT", help="folder to make; it links to CHECKPOINT's weights")
    adopt_.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help=f"what config.json is given; VALUE is JSON, or else a string; KEY is one of {', '.join(KEYS)}",
    )
    adopt_.add_argument("--adapter-rank", metavar="R", help="the same as --set head_adapter_rank=R")
    adopt_.set_defaults(command=adopt_command)

    port = commands.add_parser("port", help="carry the overlay to a release that is not locked yet")
    port.add_argument("version", nargs="?", metavar="VERSION")
    going = port.add_mutually_exclusive_group()
    going.add_argument(
        "--continue", action="store_true", dest="go_on", help="go on with what is settled in the worktree"
    )
    going.add_argument("--abort", action="store_true", help="give up, and leave everything as it was")
    port.add_argument("--drop", action="append", default=[], metavar="HOOK", help="with --continue: not due any more")
    port.set_defaults(command=port_command)

    edit_ = commands.add_parser("edit", help="open a release as a git worktree, one commit a hook")
    edit_.add_argument(
        "version", nargs="?", metavar="VERSION", help="a locked release (default: the project's default)"
    )
    edit_.add_argument("--discard", action="store_true", help="make it anew, whatever the one that is there holds")
    edit_.set_defaults(command=edit_command)

    export_ = commands.add_parser("export", help="write a worktree's commits back to patches/ and overlay/")
    export_.add_argument("version", nargs="?", metavar="VERSION", help="whose worktree (default: the only one)")
    export_.set_defaults(command=export_command)

    matrix = commands.add_parser("matrix", help="run every stage of every release that is not proven yet")
    matrix.add_argument("versions", nargs="*", metavar="VERSION", help="locked releases (default: all)")
    matrix.add_argument("--again", action="store_true", help="run what is proven as well")
    matrix.add_argument("--python", choices=PYTHONS, help="CPython to test with")
    matrix.set_defaults(command=matrix_command)

    status = commands.add_parser("status", help="show what is known of every release")
    status.add_argument("--html", type=Path, metavar="PATH", help="page to write (default: dist/status.html)")
    status.add_argument("--check", action="store_true", help="fail if anything that is shown is not green")
    status.set_defaults(command=status_command)

    test = commands.add_parser("test-engine", help="run the engine tests of one release in its environment")
    test.add_argument("version", metavar="VERSION")
    test.add_argument("--python", choices=PYTHONS, help="CPython to test with")
    test.add_argument("--plugin", action="store_true", help="with upstream's own wheel and the plugin")
    test.add_argument("--gpu", action="store_true", help="the tests that need a CUDA GPU, with upstream's kernels")
    test.add_argument("pytest", nargs="*", metavar="ARGUMENT", help="arguments for pytest, after --")
    test.set_defaults(command=test_command)

    bench_gpu = commands.add_parser("bench-gpu", help="measure kernels, overhead and speed on a CUDA GPU")
    bench_gpu.add_argument("parts", nargs="*", metavar="PART", help="layers, overhead, transformers, drafts (all)")
    bench_gpu.add_argument("--release", metavar="VERSION", help="a locked release (default: the project's default)")
    bench_gpu.add_argument("--python", choices=PYTHONS, help="CPython to measure with")
    bench_gpu.set_defaults(command=bench_gpu_command)
    return parser
