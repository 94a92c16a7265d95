"""Find tiles of upstream's fused MoE kernel for a checkpoint's shape."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

from overlay_tools import console
from overlay_tools.checkout import only_writer, own_folder
from overlay_tools.checkpoints import named
from overlay_tools.commands import DEFAULT, LOCKED, Command
from overlay_tools.commands.options import add_passed_on, add_python, count
from overlay_tools.commands.shared import new_file, open_engine, require_cuda
from overlay_tools.errors import TuneError, UsageError
from overlay_tools.proving.tune.bench import Described, open_processes
from overlay_tools.proving.tune.search import Choice, dump, search
from overlay_tools.proving.tune.shape import shape_of
from overlay_tools.proving.tune.tiles import points
from overlay_tools.report.html import write_text
from overlay_tools.settings import Project
from overlay_tools.upstream.lockfile import get_release, load_lock
from overlay_tools.wheels.overlay_files import is_tiles, names_of

_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
_PREFILL = 8192  # tokens that a server reads at once where its arguments do not say
_MOST = 16384  # tokens up to which it is measured: what is larger keeps a GPU as busy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=named.HELP)
    parser.add_argument("version", nargs="?", metavar="VERSION", help=f"{LOCKED} (default: {DEFAULT})")
    parser.add_argument(
        "--batch",
        type=count,
        nargs="+",
        default=_BATCHES,
        metavar="N",
        help=f"numbers of tokens to tune for (default: {' '.join(map(str, _BATCHES))})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder to write below, for upstream's variable SGLANG_MOE_CONFIG_DIR (default: overlay/, for the wheel)",
    )
    parser.add_argument(
        "--again", action="store_true", help="also tune a shape that has a file there, and replace it (default: no)"
    )
    add_python(parser, "run the kernel with")
    add_passed_on(parser, "of sglang.launch_server, of which --tp-size and --ep-size divide the shape")


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Measure, show the table, and write the file."""
    require_cuda()
    version = arguments.version or project.default
    get_release(load_lock(project.lock), version, project.lock)
    named.check_name(arguments.checkpoint)
    if arguments.out is not None and arguments.out.resolve().is_relative_to(project.overlay.resolve()):
        raise UsageError(
            f"--out {arguments.out} is in overlay/.", hint="Without --out, the file goes to its place there."
        )
    own = [name for name in names_of(project.overlay) if is_tiles(name) and name not in project.replaces]
    with (
        open_engine(project, version, arguments.python, gpu=True) as python,
        own_folder(project.root / ".nox" / "servers") as folder,
    ):
        checkpoint = named.open_checkpoint(arguments.checkpoint, python, arguments.passed_on)
        with open_processes(python, folder, checkpoint, arguments.passed_on) as processes:
            shape = shape_of(processes.facts, arguments.checkpoint)
            with console.step("Make weights of it"):
                described = processes.open(shape, own)
            path = _place(project, described, arguments.out)
            _check(path, described, arguments)
            console.line(f"{shape}; {described.device}, Triton {described.triton}, sglang {described.release}")
            if described.taken:
                other = "" if described.exact else ", made with another Triton"
                console.line(f"Upstream's default is its own file for this shape{other}.")
            prefill = processes.facts["server"].get("chunked_prefill_size") or 0
            most = min(_MOST, prefill if prefill > 0 else _PREFILL)
            grid = points(arguments.batch, described.defaults, most)
            choices = search(processes, shape, grid, described.shared_memory)
    console.grid(["tokens", "default", "tuned", "", "tile"], [_row(choice) for choice in choices])
    try:
        with only_writer(project.root) if arguments.out is None else nullcontext():
            _check_free(path, arguments.again)  # it may have been written meanwhile
            write_text(dump(choices), path)
    except BaseException:  # to measure it again could take hours
        kept = new_file(project, "tiles", path.stem)
        write_text(dump(choices), kept)
        console.line(f"What was measured is in {kept}. Its place is {path}.")
        raise
    won = sum(choice.faster > 1 for choice in choices)
    console.line(f"{won} of {len(choices)} entries are other than upstream's. They are in {path}.")
    console.line(_next(version, described, arguments.out))


def _place(project: Project, described: Described, out: Path | None) -> Path:
    return (project.overlay / described.place if out is None else out / "configs") / described.file


def _check(path: Path, described: Described, arguments: argparse.Namespace) -> None:
    """Raise TuneError if a file would not be taken as it is measured, or another would be lost or shadowed."""
    name = Path(described.file).name
    if described.down:
        raise TuneError(
            f"sglang {described.release} has a file for the second half of this shape's kernel: beside {name}, there"
            " is one that ends with _down.json.",
            hint="tune measures one tile for both halves: upstream's own files are better there.",
        )
    if described.exact and arguments.out is None:
        raise TuneError(
            f"sglang {described.release} has a file for this shape: {described.place}/{described.file}.",
            hint="--out FOLDER measures beside it, and leaves it as it is.",
        )
    _check_free(path, arguments.again)


def _check_free(path: Path, again: bool) -> None:
    if path.exists() and not again:
        raise TuneError(f"{path} is there already.", hint="--again tunes it anew, and replaces it.")


def _row(choice: Choice) -> list[str]:
    tile = choice.tile
    said = " x ".join(str(tile[f"BLOCK_SIZE_{side}"]) for side in "MNK") + f", groups of {tile['GROUP_SIZE_M']}"
    said += "".join(f", {tile[key]} {key[4:]}" for key in ("num_warps", "num_stages") if key in tile)
    gain = f"{choice.faster:.2f} times as fast" if choice.faster > 1 else "upstream's own"
    return [str(choice.point.tokens), f"{choice.default:.1f} µs", f"{choice.tuned:.1f} µs", gain, said]


def _next(version: str, described: Described, out: Path | None) -> str:
    if out is not None:
        return (
            f"A server takes it with SGLANG_MOE_CONFIG_DIR={out.resolve()}, and then none of the files that upstream"
            " ships."
        )
    return (
        f"`nox -s build -- {version}` ships it. Other releases take it too, those with another Triton for want of a"
        " file of their own: [tool.sglang-overlay.files] of pyproject.toml limits it to some."
    )


COMMAND = Command(
    about="Looks for tiles with which upstream's fused MoE kernel is faster than with those that it takes by itself,"
    " for the shape of a checkpoint's experts and this machine's GPU, and writes them as a file in upstream's own"
    " format to overlay/, where the next build ships it. Each entry is upstream's own unless another was at least 2%"
    " faster, and not slower at both ends of where it counts. What follows a second -- goes to the server: --tp-size"
    " and --ep-size divide the shape.",
    examples={
        "~/Qwen3-Next": "for one GPU",
        "~/Qwen3-Next 0.5.17 -- --tp-size 4": "a rank's share of four GPUs, measured on one",
        "~/My --batch 1 16 64 --out tiles": "some numbers of tokens, for SGLANG_MOE_CONFIG_DIR",
    },
    add_arguments=add_arguments,
    run=run,
)
