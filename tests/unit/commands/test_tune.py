"""`tune`, as it is called: the file that it writes, where, and what it refuses, of a kernel whose times are made up."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from overlay_tools import checkout, cli
from overlay_tools.commands import shared, tune
from overlay_tools.engines.device import Device
from overlay_tools.errors import BuildError
from overlay_tools.proving.tune.bench import Described
from overlay_tools.proving.tune.search import Choice, Progress, search
from overlay_tools.proving.tune.shape import Shape
from overlay_tools.proving.tune.tiles import Tile
from overlay_tools.wheels.manifest import MANIFEST
from overlay_tools.wheels.verify import verify_wheel

from unit.conftest import Miniature, upstream_files
from unit.proving.tune.made_up import LARGE, SHARED_MEMORY, SMALL, MadeUp

PLACE = "sglang/srt/layers/moe/moe_runner/triton_utils/configs"
FILE = "triton_3_6_0/E=64,N=256,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json"
SHIPPED = f"overlay/{PLACE}/{FILE}"
LAYER = {
    "num_experts": 64,
    "num_fused_shared_experts": 0,
    "top_k": 8,
    "hidden_size": 2048,
    "intermediate_size": 512,
    "activation": "silu",
    "is_gated": True,
}


@dataclass
class Machine:
    """A GPU, and what an engine's environment says on it."""

    experts: int | None = 64
    layer: dict[str, Any] = field(default_factory=lambda: dict(LAYER))
    server: dict[str, Any] = field(default_factory=lambda: {"tp_size": 2, "ep_size": 1, "chunked_prefill_size": 2048})
    found: dict[str, Any] = field(default_factory=dict)
    cost: float = 50.0
    flags: Sequence[str] = ()
    shape: Shape | None = None
    own: Sequence[str] = ()
    kernel: MadeUp = field(default_factory=lambda: MadeUp(lambda tokens, tile: 100.0))

    @property
    def facts(self) -> dict[str, Any]:
        read = {"dtype": "bfloat16", "quantization": "fp8", "block": [128, 128]}
        return {"experts": self.experts, "layer": self.layer, "problem": "", "server": self.server, **read}

    def open(self, shape: Shape, own: Sequence[str]) -> Described:
        self.shape, self.own = shape, own
        said: dict[str, Any] = {
            "release": "1.0",
            "triton": "3.6.0",
            "device": "NVIDIA H200",
            "place": PLACE,
            "file": FILE,
            "exact": False,
            "taken": False,
            "down": False,
            "defaults": [[1, SMALL_TILE], [65, LARGE_TILE]],
            "shared_memory": SHARED_MEMORY,
            "free": 1 << 40,
        }
        return Described(**{**said, **self.found})

    def compile(self, wanted: Sequence[tuple[Tile, Sequence[int]]], progress: Progress) -> None:
        self.kernel.compile(wanted, progress)

    def time(self, tokens: int, tiles: Sequence[Tile], rounds: int) -> tuple[list[float], list[list[float] | None]]:
        """Be faster up to 64 tokens alone."""
        self.kernel.cost = lambda tokens, tile: self.cost if tokens <= 64 else 100.0
        return self.kernel.time(tokens, tiles, rounds)


SMALL_TILE = {**SMALL, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 64}
LARGE_TILE = {**LARGE, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32}


@pytest.fixture
def machine(mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> Machine:
    mini_here.write("model/config.json", "{}")
    made = Machine()

    @contextmanager
    def processes(python: Path, folder: Path, checkpoint: Path, flags: Sequence[str]) -> Iterator[Machine]:
        made.flags = flags
        yield made

    monkeypatch.setattr(shared, "choose_device", lambda: Device(gpu=True, why=""))
    monkeypatch.setattr(tune, "open_engine", lambda *arguments, **options: nullcontext(Path("python")))
    monkeypatch.setattr(tune, "open_processes", processes)
    return made


def read(path: str) -> dict[str, Any]:
    return dict(json.loads(Path(path).read_text()))


def test_the_file_is_written_where_the_next_build_ships_it(
    machine: Machine, mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", "model", "1.0", "--batch", "1", "64", "128", "--", "--tp-size", "2"]) == 0
    written = read(SHIPPED)
    assert list(written) == ["1", "64", "65", "128"]
    assert [written[key] == LARGE_TILE for key in written] == [False, False, True, True]
    assert written["1"] != SMALL_TILE
    assert machine.flags == ["--tp-size", "2"]
    assert machine.shape == Shape(
        experts=64, all_experts=64, width=256, hidden=2048, topk=8, dtype="bfloat16", fp8=True, block=(128, 128)
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "64 experts of 2048 x 256, 8 a token, fp8, scales of blocks of 128 x 128; NVIDIA H200, Triton 3.6.0" in said
    assert " 64 100.0 µs 50.0 µs 2.00 times as fast " in said
    assert " 128 100.0 µs 100.0 µs upstream's own 64 x 64 x 32, groups of 8 " in said
    assert f"2 of 4 entries are other than upstream's. They are in {Path(SHIPPED).resolve()}" in said
    assert "`nox -s build -- 1.0` ships it." in said
    built = mini_here.build()
    assert f"{PLACE}/{FILE}" in built.added
    verify_wheel(built.path)
    with zipfile.ZipFile(built.path) as wheel:
        assert wheel.read(f"{PLACE}/{FILE}") == Path(SHIPPED).read_bytes()
        [manifest] = [name for name in wheel.namelist() if name.endswith(MANIFEST)]
        assert json.loads(wheel.read(manifest))["files"][f"{PLACE}/{FILE}"]


def test_the_default_numbers_of_tokens_are_a_file_s_usual_ones(machine: Machine) -> None:
    assert cli.main(["tune", "model"]) == 0
    usual = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096]
    assert [int(key) for key in read(SHIPPED)] == sorted([*usual, 65])


def test_the_last_entry_is_measured_at_the_largest_pass(machine: Machine) -> None:
    for size, most in ((None, 8192), (-1, 8192), (2048, 2048), (65536, 16384)):
        machine.server["chunked_prefill_size"] = size
        assert cli.main(["tune", "model", "--again", "--batch", "4"]) == 0
        assert most in {n for _, tokens in machine.kernel.compiled for n in tokens}
        machine.kernel.compiled.clear()


def test_it_can_be_written_for_upstream_s_variable(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "model", "--batch", "1", "--out", "tiles"]) == 0
    assert list(read(f"tiles/configs/{FILE}")) == ["1", "64", "65"]
    assert not Path(SHIPPED).exists()
    said = capsys.readouterr().out
    assert f"A server takes it with SGLANG_MOE_CONFIG_DIR={Path('tiles').resolve()}, and then none of the" in said
    assert "ships it" not in said


@pytest.mark.parametrize("out", [[], ["--out", "tiles"]])
def test_a_file_is_replaced_only_if_that_is_asked_for(
    machine: Machine, out: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(f"tiles/configs/{FILE}" if out else SHIPPED)
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert cli.main(["tune", "model", "--batch", "1", *out]) == 1
    assert path.read_text() == "mine"
    assert machine.kernel.asked == []
    assert f"{path.name} is there already.\n  --again tunes it anew, and replaces it." in capsys.readouterr().err
    assert cli.main(["tune", "model", "--batch", "1", "--again", *out]) == 0
    assert list(read(str(path))) == ["1", "64", "65"]


def kept(mini: Miniature, said: str) -> dict[str, Any]:
    """Return what was measured, which is below .nox/ where it could not go to its place, and named."""
    [path] = (mini.root / ".nox/tiles").iterdir()
    assert f"What was measured is in {path}" in said
    return read(str(path))


@pytest.mark.parametrize("out", [[], ["--out", "tiles"]])
def test_a_file_that_another_has_written_meanwhile_stays(
    machine: Machine,
    mini_here: Miniature,
    monkeypatch: pytest.MonkeyPatch,
    out: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = Path(f"tiles/configs/{FILE}" if out else SHIPPED)

    def slow(*arguments: Any) -> list[Choice]:  # noqa: ANN401
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        return search(*arguments)

    monkeypatch.setattr(tune, "search", slow)
    assert cli.main(["tune", "model", "--batch", "1", *out]) == 1
    assert path.read_text() == "mine"
    said = capsys.readouterr()
    assert f"{path.name} is there already." in said.err
    assert f"Its place is {path.resolve() if not out else path}." in said.out
    assert list(kept(mini_here, said.out)) == ["1", "64", "65"]


def test_what_was_measured_is_kept_where_another_command_does_not_end(
    machine: Machine, mini_here: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkout, "_PATIENCE", 0.1)
    with checkout.only_writer(mini_here.root):
        assert cli.main(["tune", "model", "--batch", "1"]) == 1
        said = capsys.readouterr()
        assert "Another command has held" in said.err
        assert list(kept(mini_here, said.out)) == ["1", "64", "65"]
        assert cli.main(["tune", "model", "--batch", "1", "--out", "tiles"]) == 0  # which is not in the checkout
    assert list(read(f"tiles/configs/{FILE}")) == ["1", "64", "65"]


def test_what_fails_leaves_nothing(machine: Machine, mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mini_here.content()

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(machine.kernel, "compile", fail)
    assert cli.main(["tune", "model"]) == 130
    assert mini_here.content() == before


def test_ours_are_not_taken_for_upstream_s(machine: Machine, mini_here: Miniature) -> None:
    other = f"{PLACE}/triton_3_5_1/E=1.json"
    mini_here.write(f"overlay/{other}", "{}")
    mini_here.write(SHIPPED, "{}")
    mini_here.write("overlay/sglang/srt/layers/moe/other.json", "{}")
    assert cli.main(["tune", "model", "--again"]) == 0
    assert sorted(machine.own) == sorted([other, f"{PLACE}/{FILE}"])


def test_a_shape_that_upstream_has_a_file_for_is_not_shadowed(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.found["exact"] = machine.found["taken"] = True
    assert cli.main(["tune", "model", "--again"]) == 1
    assert f"sglang 1.0 has a file for this shape: {PLACE}/{FILE}." in capsys.readouterr().err
    assert not Path(SHIPPED).exists()
    assert cli.main(["tune", "model", "--out", "tiles"]) == 0
    assert "Upstream's default is its own file for this shape.\n" in capsys.readouterr().out


def test_another_triton_s_file_is_named_as_what_is_to_be_beaten(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.found["taken"] = True
    assert cli.main(["tune", "model"]) == 0
    assert "its own file for this shape, made with another Triton." in capsys.readouterr().out


@pytest.mark.parametrize("out", [[], ["--out", "tiles"]])
def test_a_shape_with_a_file_for_the_second_half_is_refused(
    machine: Machine, out: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    machine.found["down"] = True
    assert cli.main(["tune", "model", *out]) == 1
    assert "ends with _down.json." in capsys.readouterr().err


def test_shared_experts_that_upstream_computes_with_the_others_are_measured_with_them(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.layer |= {"num_experts": 65, "num_fused_shared_experts": 1, "top_k": 9}
    assert cli.main(["tune", "model", "--batch", "1"]) == 0
    assert machine.shape is not None
    assert (machine.shape.experts, machine.shape.topk, machine.shape.shared) == (65, 9, 1)
    assert "65 experts of 2048 x 256 (1 of them shared), 9 a token, fp8" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "nothing is not a checkpoint"),
        (["model", "9.9"], "9.9"),
        (["model", "--batch", "0"], "0 is not a number from 1 on"),
        (["model", "--out", "overlay/sglang"], "--out overlay/sglang is in overlay/."),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_built(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tune, "open_engine", None)
    try:
        status = cli.main(["tune", *words])
    except SystemExit as error:
        status = int(error.code or 0)
    assert status in (1, 2)
    assert said in capsys.readouterr().err


def test_a_checkpoint_without_experts_is_one_error(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.experts = None
    assert cli.main(["tune", "model"]) == 1
    assert capsys.readouterr().err.startswith("error: model has no experts: ")


def test_a_build_does_not_take_it_in_the_place_of_upstream_s(machine: Machine, mini_here: Miniature) -> None:
    """For a release that has a file of its own by then, the build says so."""
    assert cli.main(["tune", "model", "--batch", "1"]) == 0
    mini_here.lock_release("1.1", {**upstream_files("1.1"), f"{PLACE}/{FILE}": b"{}"})
    assert mini_here.build("1.0").added
    with pytest.raises(BuildError, match=r"triton_3_6_0/E=64.*\.json exists upstream\."):
        mini_here.build("1.1")
