"""What `adopt`, `serve`, `sign` and `verify` read, damaged, also by chance: one error, which names the file."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from overlay_tools import cli
from overlay_tools.commands import serve
from overlay_tools.wheels.provenance import statement_of
from overlay_tools.wheels.signature import envelope_of

from unit.checkpoints.test_adopt import CONFIG, FIRST, RULES, SECOND, shard
from unit.conftest import REPOSITORY, Miniature
from unit.test_damaged_files import DAMAGES
from unit.wheels.test_signature import make_key

TIMES = 15  # that each file is damaged by chance
DEEP = b"[" * 100_000
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, 10**30, "", "x", "../x", "/", "a\nb", "\ud800", [], [None], {}, {"x": 1}, [[[]]],
)  # fmt: skip
INFO = "sglang-1.0+overlay.3.dist-info"


@pytest.fixture
def inputs(mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> dict[str, Sequence[str]]:
    """Return files, each whole, and the command that reads it; of `serve`, all but the server itself runs."""
    monkeypatch.setattr(serve, "open_engine", lambda *_, **__: nullcontext(Path("python")))
    monkeypatch.setattr(serve, "_serve", lambda *_: None)
    for rule in RULES:
        path = mini_here.root / "overlay" / rule
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / "overlay" / rule, path)
    mini_here.write("stock/config.json", json.dumps(CONFIG))
    mini_here.write("served/config.json", json.dumps({"vision_config": {}}))
    names = {name: f"{number}.safetensors" for number, tensors in enumerate((FIRST, SECOND)) for name in tensors}
    mini_here.write("stock/model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": names}))
    for number, tensors in enumerate((FIRST, SECOND)):
        Path("stock", f"{number}.safetensors").write_bytes(shard(tensors))
    wheel = mini_here.build().path.relative_to(mini_here.root)
    private, public = (Path(key).name for key in make_key(mini_here.root, "ed25519"))
    assert cli.main(["sign", "--key", private]) == 0
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall("installed")
    adopt = ["adopt", "stock", "out", "--set", "scoring_func=sigmoid", "head_adapter_rank=2"]
    verify, signed = ["verify", str(wheel)], ["verify", str(wheel), "--key", public]
    sign, installed = ["sign", "--key", private], ["verify", "--path", "installed"]
    found: dict[str, Sequence[str]] = {
        **dict.fromkeys(["stock/config.json", "stock/model.safetensors.index.json", "stock/0.safetensors"], adopt),
        "served/config.json": ["serve", "1.0", "--model", "served"],
        str(wheel): verify,
        **dict.fromkeys([public, str(envelope_of(wheel))], signed),
        **dict.fromkeys([private, str(statement_of(wheel))], sign),
        **{f"installed/{INFO}/{name}": installed for name in ("RECORD", "METADATA", "sglang-overlay.json")},
        f"installed/{INFO}/entry_points.txt": installed,
    }
    for words in found.values():
        assert cli.main(list(words)) == 0, words
        shutil.rmtree("out", ignore_errors=True)
    return found


def by_chance(data: bytes, chance: random.Random) -> bytes:
    """Return a file with bytes changed, taken away or added, or as JSON with another value somewhere."""
    kind, at = chance.choice(["value"] * 4 + ["bytes", "cut", "more", "deep"]), chance.randrange(len(data) or 1)
    if kind == "value":
        try:
            return json.dumps(_other_value(json.loads(data), chance)).encode()
        except ValueError:
            length = int.from_bytes(data[:8], "little")  # of a shard's header, perhaps
            if 0 < length < len(data) and data[8:9] == b"{" and (header := by_chance(data[8 : 8 + length], chance)):
                return len(header).to_bytes(8, "little") + header + data[8 + length :]
    changed = data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at + chance.randrange(9) :]
    return {"cut": data[:at], "more": data + chance.randbytes(9), "deep": data[:at] + DEEP}.get(kind, changed)


def _other_value(value: Any, chance: random.Random) -> Any:  # noqa: ANN401  # of JSON
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return chance.choice(VALUES)
    if isinstance(value, list):
        at = chance.randrange(len(value))
        return [*value[:at], _other_value(value[at], chance), *value[at + 1 :]]
    key = chance.choice(list(value))
    return {**value, key: _other_value(value[key], chance)} if chance.random() < 0.8 else _without(value, key)


def _without(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: kept for name, kept in value.items() if name != key}


def check(name: str, words: Sequence[str], how: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command on a damaged file: it works, or says in one error which file it is."""
    capsys.readouterr()
    status = cli.main(list(words))
    said = capsys.readouterr()
    assert status in (0, 1), (how, said.err)
    if status == 1:
        assert said.err.startswith("error: "), (how, said.err)
        assert Path(name).name in said.out + said.err or "is not as it was built" in said.err, (how, said.err)
        assert not Path("out").exists(), how
    shutil.rmtree("out", ignore_errors=True)
    assert not [*Path.cwd().glob(".adopt-*"), *Path.cwd().glob("**/*.part")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_input_that_is_damaged_is_named(
    inputs: dict[str, Sequence[str]], damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in inputs.items():
        path = Path(name)
        before = path.read_bytes()
        damage(path)
        check(name, words, f"{damage.__name__} {name}", capsys)
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(before)


def test_an_input_that_chance_has_damaged_is_named(
    inputs: dict[str, Sequence[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in inputs.items():
        before = Path(name).read_bytes()
        for _ in range(TIMES):
            seed = random.randrange(2**32)
            Path(name).write_bytes(by_chance(before, random.Random(seed)))
            check(name, words, f"{name}, damaged with seed {seed}", capsys)
        Path(name).write_bytes(before)
