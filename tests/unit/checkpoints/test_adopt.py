from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from overlay_tools import cli
from overlay_tools.checkpoints.adopt import Adopted, adopt, read_stock
from overlay_tools.errors import AdoptError
from safetensors import deserialize

from unit.conftest import REPOSITORY, Miniature

OVERLAY = REPOSITORY / "overlay"
RULES = [f"sglang/srt/configs/{name}.py" for name in ("config_keys", "qwen3_next_ext_keys")]

CONFIG = {
    "hidden_size": 16,
    "architectures": ["Qwen3NextForCausalLM"],
    "rms_norm_eps": 1e-06,
    "model_type": "qwen3_next",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "torch_dtype": "bfloat16",
    "_author": "Ünal",
}
FIRST = {"model.layers.0.mlp.gate.weight": [4, 16], "model.layers.0.mlp.shared_expert_gate.weight": [1, 16]}
SECOND = {
    "model.layers.1.mlp.gate_proj.weight": [8, 16],
    "model.layers.10.mlp.gate.weight": [4, 16],
    "mtp.layers.0.mlp.gate.weight": [4, 16],
}
BIASES = {
    "model.layers.0.mlp.gate.e_score_correction_bias",
    "model.layers.10.mlp.gate.e_score_correction_bias",
    "mtp.layers.0.mlp.gate.e_score_correction_bias",
}


@dataclass
class Checkpoints:
    """A stock checkpoint laid out as the cache of a hub is, links into blobs/, and where it is to go."""

    blobs: Path
    stock: Path
    out: Path

    def write(self, name: str, data: bytes) -> Path:
        blob = self.blobs / f"blob-of-{name}"
        blob.write_bytes(data)
        path = self.stock / name
        path.unlink(missing_ok=True)
        path.symlink_to(Path("..", "blobs", blob.name))
        return blob

    def write_json(self, name: str, value: object) -> None:
        self.write(name, json.dumps(value).encode())

    def adopt(self, *settings: str) -> Adopted:
        return adopt(read_stock(self.stock), self.out, settings, OVERLAY)

    def read_json(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.out / name).read_text()))

    def extensions(self) -> dict[str, dict[str, Any]]:
        """Read what was written as the safetensors package does."""
        read: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = deserialize
        return dict(read((self.out / "model-extensions.safetensors").read_bytes()))


def shard(shapes: Mapping[str, Sequence[int]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(range(256)) * (end // 256) + bytes(end % 256)


@pytest.fixture
def mini_stock(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(blobs=tmp_path / "blobs", stock=tmp_path / "snap shot", out=tmp_path / "out" / "ext")
    for folder in (checkpoints.blobs, checkpoints.stock / "figures", checkpoints.out.parent):
        folder.mkdir(parents=True)
    (checkpoints.stock / ".gitattributes").write_text("")
    checkpoints.write("config.json", json.dumps(CONFIG, ensure_ascii=False).encode())
    checkpoints.write("tokenizer.json", b"{}")
    checkpoints.write("model-00001-of-00002.safetensors", shard(FIRST))
    checkpoints.write("model-00002-of-00002.safetensors", shard(SECOND))
    weight_map = dict.fromkeys(SECOND, "model-00002-of-00002.safetensors")
    weight_map |= dict.fromkeys(FIRST, "model-00001-of-00002.safetensors")
    index = {"metadata": {"total_size": total(FIRST) + total(SECOND), "by": "x"}, "weight_map": weight_map}
    checkpoints.write_json("model.safetensors.index.json", index)
    return checkpoints


def total(shapes: Mapping[str, Sequence[int]]) -> int:
    return sum(2 * math.prod(shape) for shape in shapes.values())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_without_new_tensors_only_config_json_is_a_file(mini_stock: Checkpoints) -> None:
    adopted = mini_stock.adopt("layer_types=null", "logit_transform=softcap", "logit_softcap=30.0")
    assert names(mini_stock.out) == sorted(set(names(mini_stock.stock)) - {".gitattributes", "figures"})
    assert [path.name for path in mini_stock.out.iterdir() if not path.is_symlink()] == ["config.json"]
    for path in mini_stock.out.iterdir():
        if path.is_symlink():
            assert path.readlink() == mini_stock.blobs / f"blob-of-{path.name}"
    assert (adopted.linked, adopted.tensors) == (4, 0)
    assert adopted.linked_bytes == sum(path.stat().st_size for path in mini_stock.out.iterdir() if path.is_symlink())
    assert adopted.written == {"config.json": (mini_stock.out / "config.json").stat().st_size}


def test_config_json_changes_by_its_name_and_the_settings_only(mini_stock: Checkpoints) -> None:
    layers = ["linear_attention", "full_attention"]
    mini_stock.write_json("config.json", {**CONFIG, "num_hidden_layers": 2, "layer_types": layers, "_last": 1})
    mini_stock.adopt("nope_layers=[1]", "scoring_func=sigmoid", "n_group=2")
    expected = {
        **CONFIG,
        "architectures": ["Qwen3NextExtForCausalLM"],
        "model_type": "qwen3_next_ext",
        "num_hidden_layers": 2,
        "layer_types": layers,
        "_last": 1,
        "nope_layers": [1],
        "scoring_func": "sigmoid",
        "n_group": 2,
    }
    assert list(mini_stock.read_json("config.json").items()) == list(expected.items())


def test_layers_without_positions_get_the_key_that_clients_of_the_checkpoint_do_not_read(
    mini_stock: Checkpoints,
) -> None:
    mini_stock.write_json("config.json", {**CONFIG, "num_hidden_layers": 2})
    mini_stock.adopt('layer_types=["linear_attention", "nope_attention"]')
    config = mini_stock.read_json("config.json")
    assert (config["layer_types"], config["nope_layers"]) == (["linear_attention", "full_attention"], [1])


def test_an_adapter_can_be_trained_and_changes_nothing_yet(mini_stock: Checkpoints) -> None:
    mini_stock.adopt("head_adapter_rank=8")
    found = mini_stock.extensions()
    assert {name: (tensor["dtype"], tensor["shape"]) for name, tensor in found.items()} == {
        "head_adapter.down.weight": ("BF16", [8, 16]),
        "head_adapter.up.weight": ("BF16", [16, 8]),
    }
    assert not any(found["head_adapter.up.weight"]["data"])
    down = halves(found["head_adapter.down.weight"]["data"])
    assert len(set(down)) > 100
    assert 0.2 < max(down) < 0.25
    assert -0.25 < min(down) < -0.2
    assert abs(sum(down) / len(down)) < 0.05
    assert mini_stock.read_json("config.json")["head_adapter_rank"] == 8


def halves(data: bytes) -> list[float]:
    return [struct.unpack("<f", b"\0\0" + data[at : at + 2])[0] for at in range(0, len(data), 2)]


@pytest.mark.parametrize(
    ("key", "dtype", "stored", "width"),
    [("dtype", "float32", "F32", "f"), ("torch_dtype", "float16", "F16", "e"), ("dtype", "bfloat16", "BF16", "")],
)
def test_an_adapter_has_the_dtype_of_the_checkpoint(
    mini_stock: Checkpoints, key: str, dtype: str, stored: str, width: str
) -> None:
    mini_stock.write_json("config.json", {**CONFIG, key: dtype})
    mini_stock.adopt("head_adapter_rank=1")
    tensor = mini_stock.extensions()["head_adapter.down.weight"]
    assert tensor["dtype"] == stored
    values = struct.unpack(f"<16{width}", tensor["data"]) if width else halves(tensor["data"])
    assert all(0 < abs(value) < 0.25 for value in values)


def test_sigmoid_gives_each_router_a_bias_of_zero(mini_stock: Checkpoints) -> None:
    adopted = mini_stock.adopt("scoring_func=sigmoid")
    found = mini_stock.extensions()
    assert found.keys() == BIASES
    assert all((tensor["dtype"], tensor["shape"]) == ("F32", [4]) for tensor in found.values())
    assert not any(any(tensor["data"]) for tensor in found.values())
    assert adopted.tensors == 3


def test_a_checkpoint_without_a_draft_gets_no_bias_for_one(mini_stock: Checkpoints) -> None:
    mini_stock.write("model-00002-of-00002.safetensors", shard({"model.layers.10.mlp.gate.weight": [4, 16]}))
    mini_stock.adopt("scoring_func=sigmoid")
    assert mini_stock.extensions().keys() == {name for name in BIASES if not name.startswith("mtp.")}


def test_the_index_keeps_its_map_and_adds_what_is_new(mini_stock: Checkpoints) -> None:
    mini_stock.adopt("scoring_func=sigmoid", "head_adapter_rank=2")
    stock = json.loads((mini_stock.stock / "model.safetensors.index.json").read_text())
    index = mini_stock.read_json("model.safetensors.index.json")
    new = dict.fromkeys(mini_stock.extensions(), "model-extensions.safetensors")
    assert len(new) == 5
    assert index["weight_map"] == stock["weight_map"] | new
    size = sum(len(tensor["data"]) for tensor in mini_stock.extensions().values())
    assert index["metadata"] == {"total_size": stock["metadata"]["total_size"] + size, "by": "x"}
    assert [path.name for path in mini_stock.out.iterdir() if path.is_symlink() and "model" in path.name] == [
        path.name for path in mini_stock.out.iterdir() if path.name.startswith("model-0")
    ]


def test_an_index_is_made_where_there_is_none(mini_stock: Checkpoints) -> None:
    (mini_stock.stock / "model.safetensors.index.json").unlink()
    mini_stock.adopt("head_adapter_rank=1")
    assert mini_stock.read_json("model.safetensors.index.json") == {
        "metadata": {"total_size": total(FIRST) + total(SECOND) + 2 * 2 * 16},
        "weight_map": dict.fromkeys(FIRST, "model-00001-of-00002.safetensors")
        | dict.fromkeys(SECOND, "model-00002-of-00002.safetensors")
        | dict.fromkeys(["head_adapter.down.weight", "head_adapter.up.weight"], "model-extensions.safetensors"),
    }


def test_a_lone_shard_does_not_hide_the_index_from_transformers(mini_stock: Checkpoints) -> None:
    remove("*.safetensors", INDEX)(mini_stock)
    blob = mini_stock.write("model.safetensors", shard(FIRST))
    mini_stock.adopt("head_adapter_rank=1")
    assert not (mini_stock.out / "model.safetensors").exists()
    shards = set(mini_stock.read_json(INDEX)["weight_map"].values())
    assert shards == {path.name for path in mini_stock.out.glob("*.safetensors")}
    assert blob in [path.resolve() for path in mini_stock.out.glob("*.safetensors")]


def test_the_same_checkpoint_gives_the_same_bytes(mini_stock: Checkpoints) -> None:
    mini_stock.adopt("head_adapter_rank=4", "scoring_func=sigmoid")
    first = {path.name: path.read_bytes() for path in mini_stock.out.iterdir()}
    mini_stock.out = mini_stock.out.with_name("again")
    mini_stock.out.mkdir()
    mini_stock.adopt("head_adapter_rank=4", "scoring_func=sigmoid")
    assert {path.name: path.read_bytes() for path in mini_stock.out.iterdir()} == first


def change_config(**changes: object) -> Callable[[Checkpoints], None]:
    return lambda checkpoints: checkpoints.write_json("config.json", {**CONFIG, **changes})


def remove(*patterns: str) -> Callable[[Checkpoints], None]:
    def change(checkpoints: Checkpoints) -> None:
        for pattern in patterns:
            for path in list(checkpoints.stock.glob(pattern)):
                path.unlink()

    return change


def write(name: str, data: bytes) -> Callable[[Checkpoints], object]:
    return lambda checkpoints: checkpoints.write(name, data)


INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
NO_MAP = json.dumps({"weight_map": {"a": 1}}).encode()
NO_METADATA = json.dumps({"weight_map": {"a": SHARD}, "metadata": []}).encode()
COLLISION = shard({**FIRST, "head_adapter.up.weight": [16, 2]})
BIASED = shard({**FIRST, "model.layers.0.mlp.gate.e_score_correction_bias": [4]})
ADAPTER = ("head_adapter_rank=2",)
SIGMOID = ("scoring_func=sigmoid",)


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (remove("config.json"), (), r"snap shot is not a checkpoint: it has no config\.json"),
        (write("config.json", b"{"), (), r"config\.json cannot be read as JSON"),
        (write("config.json", b"{\n\xff"), (), r"config\.json:2: byte 0xff is not UTF-8"),
        (write("config.json", b"[]"), (), r"config\.json must hold a JSON object"),
        (change_config(architectures=["LlamaForCausalLM"]), (), r'architectures must be \["Qwen3Next.*not \["Llama'),
        (change_config(model_type=None), (), r'config\.json: model_type must be "qwen3_next", not null'),
        (change_config(architectures=["Qwen3NextExtForCausalLM"]), (), r"config\.json: .* is adopted already"),
        (change_config(model_type="qwen3_next_ext"), (), "is adopted already"),
        (change_config(hidden_size="x"), (), r"config\.json would not be served: hidden_size must be .*, not 'x'"),
        (change_config(num_experts=None), (), "num_experts must be .*, not None"),
        (change_config(rope_tehta=1e7), (), "rope_tehta is not a key of this model; did you mean rope_theta"),
        (change_config(rope_parameters={"rope_theta": 1e7}, rope_theta=1e4), (), r"rope_theta is 10000\.0, and rope_p"),
        (change_config(rope_parameters={"rope_type": "dynamic"}), (), r"rope_parameters\.rope_type must be one of"),
        (change_config(torch_dtype="int8"), ADAPTER, r'dtype must be one of float32, .*, not "int8"'),
        (remove("*.safetensors", INDEX), (), r"snap shot has no weight shards"),
        (remove("*00002.safetensors"), (), r"index\.json names model-00002-of-00002\.safetensors, which is not there"),
        (lambda it: (it.blobs / f"blob-of-{SHARD}").unlink(), (), rf"{SHARD} is a link to a file that is not there"),
        (write(INDEX, b"{"), (), r"index\.json cannot be read as JSON"),
        (write(INDEX, b"{}"), (), r"index\.json: weight_map must map"),
        (write(INDEX, NO_MAP), (), r"index\.json: weight_map must map"),
        (write(INDEX, NO_METADATA), (), r"index\.json: metadata must be"),
        (write(INDEX, b'{"weight_map": {}}'), (), r"index\.json: weight_map must name a tensor"),
        (write(SHARD, b""), (), rf"{SHARD} is not a whole safetensors file: its header is broken"),
        (write(SHARD, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), (), rf"{SHARD} .* header is"),
        (write(SHARD, struct.pack("<Q", 2) + b"[]"), (), rf"{SHARD} .* header is broken"),
        (write(SHARD, struct.pack("<Q", 9) + b'{"a": {}}'), (), rf"{SHARD} .* header is broken"),
        (write(SHARD, shard(FIRST)[:-1]), (), rf"{SHARD} .* holds 159 bytes of tensors, and its header says 160"),
        (write(SHARD, COLLISION), ADAPTER, r"snap shot has head_adapter\.up\.weight already"),
        (write(SHARD, BIASED), SIGMOID, r"has model\.layers\.0\.mlp\.gate\.e_score_correction_bias already"),
        (write("model-stock.safetensors", b""), ADAPTER, r"model-stock\.safetensors is there already"),
        (write("model-extensions.safetensors", b""), ADAPTER, r"model-extensions\.safetensors is there already"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_adopted_is_refused(
    mini_stock: Checkpoints, change: Callable[[Checkpoints], object], settings: Sequence[str], said: str
) -> None:
    change(mini_stock)
    refused(mini_stock, settings, said)


def refused(checkpoints: Checkpoints, settings: Sequence[str], said: str) -> None:
    before = sorted(checkpoints.stock.parent.rglob("*"))
    with pytest.raises(AdoptError, match=said) as caught:
        checkpoints.adopt(*settings)
    assert caught.value.hint
    assert sorted(checkpoints.stock.parent.rglob("*")) == before


def test_sigmoid_without_a_router_is_refused(mini_stock: Checkpoints) -> None:
    remove(INDEX, "*.safetensors")(mini_stock)
    mini_stock.write("model.safetensors", shard({"model.layers.0.mlp.gate_proj.weight": [8, 16]}))
    refused(mini_stock, SIGMOID, "snap shot has no router")


def test_a_checkpoint_that_is_not_a_folder_is_refused(mini_stock: Checkpoints) -> None:
    mini_stock.stock = mini_stock.stock / "Qwen"
    with pytest.raises(AdoptError, match=r"There is no folder .*Qwen"):
        mini_stock.adopt()


@pytest.mark.parametrize("rank", ["-1", "17", "1.0", "true", "null", "many"])
def test_a_bad_rank_is_refused(mini_stock: Checkpoints, rank: str) -> None:
    refused(
        mini_stock, [f"head_adapter_rank={rank}"], r"head_adapter_rank must (be 0 to hidden_size \(16\)|not be null)"
    )


def test_a_rank_of_0_is_no_adapter(mini_stock: Checkpoints) -> None:
    assert mini_stock.adopt("head_adapter_rank=0").tensors == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["scoring_func"], "--set scoring_func: there is no '='"),
        (["hidden_size=4"], "--set hidden_size=4: there is no key 'hidden_size'"),
        (["=4"], "there is no key ''"),
        (["head_adapter_rank=2", "head_adapter_rank=4"], "head_adapter_rank is set to both 2 and 4"),
        (["logit_transform=softcap"], "logit_softcap must be a finite number above 0, not None"),
        (["logit_transform=softcap", "logit_softcap=null"], "logit_softcap must be a finite number above 0, not None"),
        (["logit_transform=sqroot"], "logit_transform must be 'none', 'softcap' or 'sqrt_positive', not 'sqroot'"),
        (["n_group=3"], "n_group and topk_group have no effect with scoring_func 'softmax'"),
        (["scoring_func=sigmoid", "n_group=3"], r"n_group must divide num_experts \(4\)"),
        (["scoring_func=tanh"], "scoring_func must be 'softmax' or 'sigmoid', not 'tanh'"),
        (['layer_types=["full"]'], "layer_types must list 48 layers"),
        (["nope_layers=[0]"], "nope_layers has 0, and layer_types has no full_attention there"),
    ],
)
def test_a_bad_setting_is_refused(mini_stock: Checkpoints, settings: list[str], said: str) -> None:
    refused(mini_stock, settings, said)


def test_all_bad_settings_are_told_at_once_with_the_keys(mini_stock: Checkpoints) -> None:
    with pytest.raises(AdoptError) as caught:
        mini_stock.adopt("colour=red", "scoring_func")
    assert len(caught.value.problems) == 2
    assert "nope_layers, layer_types, scoring_func, n_group, topk_group, head_adapter_rank" in caught.value.hint


def test_an_out_that_is_not_free_is_refused(mini_stock: Checkpoints) -> None:
    free = mini_stock.out
    (free.parent / "full").mkdir()
    (free.parent / "full" / "kept").write_text("kept")
    (free.parent / "link").symlink_to(mini_stock.stock)
    for out, said in [
        (free.parent / "full", "full exists, and is not an empty folder"),
        (free.parent / "full" / "kept", "kept exists, and is not an empty folder"),
        (mini_stock.stock, "is in the checkpoint"),
        (mini_stock.stock / "figures", "is in the checkpoint"),
        (free.parent / "link" / "new", "is in the checkpoint"),
        (free / "deeper", "There is no folder .*ext"),
    ]:
        mini_stock.out = out
        refused(mini_stock, ADAPTER, said)


def test_a_write_that_fails_leaves_nothing(mini_stock: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    stock = read_stock(mini_stock.stock)
    with pytest.raises(AdoptError, match=r"out/ext/config\.json: No space left on device\.$"):
        adopt(stock, mini_stock.out, ADAPTER, OVERLAY)
    assert names(mini_stock.out.parent) == []


def test_the_command_says_what_it_did_and_what_is_next(
    mini: Miniature, mini_stock: Checkpoints, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mini.root)
    for name in RULES:
        mini.write(f"overlay/{name}", (OVERLAY / name).read_text(encoding="utf-8"))
    words = ["adopt", str(mini_stock.stock), str(mini_stock.out)]
    assert (
        cli.main([*words, "--set", "scoring_func=sigmoid", "n_group=2", "--set", "topk_group=1", "--adapter-rank", "2"])
        == 0
    )
    said = capsys.readouterr().out
    copied = sum(path.stat().st_size for path in mini_stock.out.iterdir() if not path.is_symlink())
    assert "linked       3 files, " in said
    assert "written      model-extensions.safetensors, " in said
    assert "new tensors  5" in said
    assert f"copied       {copied:,} bytes in all" in said
    assert f"nox -s serve -- --model {mini_stock.out}\n" in said
    assert mini_stock.read_json("config.json")["topk_group"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adapter-rank", "2", "--set", "head_adapter_rank=3"], "head_adapter_rank is set to both 3 and 2"),
        (["--adapter-rank", "-1"], "head_adapter_rank must be 0 to hidden_size (16), not -1"),
        (["--adapter-rank", "few"], "not 'few'"),
    ],
)
def test_the_command_tells_errors(
    mini: Miniature,
    mini_stock: Checkpoints,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(mini.root)
    for name in RULES:
        mini.write(f"overlay/{name}", (OVERLAY / name).read_text(encoding="utf-8"))
    assert cli.main(["adopt", str(mini_stock.stock), str(mini_stock.out), *words]) == 1
    assert said in capsys.readouterr().err
    assert names(mini_stock.out.parent) == []
