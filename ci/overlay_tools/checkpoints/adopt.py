"""Adopt a stock Qwen3-Next checkpoint as Qwen3-Next-Ext: its weights are linked, only what is new is written."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlay_tools.checkpoints.safetensors_header import INDEX, Tensor, dump_shard, read_shard, shards_of
from overlay_tools.errors import AdoptError
from overlay_tools.user_files import decode, naming, parse_json

KEYS = (
    "nope_layers",
    "layer_types",
    "scoring_func",
    "n_group",
    "topk_group",
    "head_adapter_rank",
    "logit_transform",
    "logit_softcap",
)
_RULES = ("sglang.srt.configs.config_keys", "sglang.srt.configs.qwen3_next_ext_keys")
_CONFIG = "config.json"
_SHARD = "model-extensions.safetensors"
# Transformers reads no index beside a file of the first name, and would leave the new tensors random.
_RENAMED = {"model.safetensors": "model-stock.safetensors"}
_OWN = {"architectures": ["Qwen3NextExtForCausalLM"], "model_type": "qwen3_next_ext"}
_STOCK = {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}
_MOST = 1 << 20  # of experts, and of hidden_size; a damaged number must not take all memory
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_GATE = re.compile(r"((?:model|mtp)\.layers\.\d+\.mlp\.gate)\.\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stock:
    """A stock checkpoint: its `config`, its `index` (None where there is none), its `files`, and its weights.

    `tensors` maps each tensor's name to its shard's; `size` is what they hold, in bytes.
    """

    folder: Path
    config: Mapping[str, Any]
    index: Mapping[str, Any] | None
    files: Sequence[Path]
    tensors: Mapping[str, str]
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Adopted:
    """What was made: the number of `linked` files and their bytes, the bytes of each file `written`, new `tensors`."""

    linked: int
    linked_bytes: int
    written: Mapping[str, int]
    tensors: int


@contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        words = [str(word) for word in (error.filename2 or error.filename, error.strerror) if word]
        hint = "CHECKPOINT must be readable, and the folder of OUT writable."
        raise AdoptError(f"{': '.join(words)}.", hint=hint) from None


@_os_errors()
def read_stock(folder: Path) -> Stock:
    """Read a stock checkpoint's config.json, index and shard headers.

    Hidden files and subfolders are left out.
    Raises AdoptError if it is not a Qwen3-Next checkpoint, or not a whole one.
    """
    if not folder.is_dir():
        raise AdoptError(f"There is no folder {folder}.", hint="Download the checkpoint, and name its folder.")
    folder = folder.resolve()
    paths = [path for path in sorted(folder.iterdir()) if path.name[0] != "." and not path.is_dir()]
    dangling = [f"{path} is a link to a file that is not there." for path in paths if not path.exists()]
    if dangling:
        raise AdoptError(*dangling, hint="Download the checkpoint again: it is not whole.")
    files = {path.name: path for path in paths}
    if _CONFIG not in files:
        raise AdoptError(f"{folder} is not a checkpoint: it has no {_CONFIG}.", hint="Name a checkpoint's folder.")
    config = _read_object(files[_CONFIG])
    _check_stock(files[_CONFIG], config)

    index, shards = None, [name for name in files if name.endswith(".safetensors")]
    if INDEX in files:
        index = _read_object(files[INDEX])
        try:
            shards = shards_of(index)
        except ValueError as error:
            raise AdoptError(f"{files[INDEX]}: {error}.", hint="Download it again.") from None
        if not isinstance(index.get("metadata", {}), dict):
            raise AdoptError(f"{files[INDEX]}: metadata must be an object.", hint="Download it again.")
    if not shards:
        raise AdoptError(f"{folder} has no weight shards (*.safetensors).", hint="Download or convert its weights.")
    absent = [f"{files[INDEX]} names {name}, which is not there." for name in shards if name not in files]
    if absent:
        raise AdoptError(*absent, hint="Download the checkpoint again: it is not whole.")

    tensors: dict[str, str] = {}
    size, problems = 0, []
    for name in shards:
        try:
            names, held = read_shard(files[name])
        except ValueError as error:
            problems.append(f"{files[name]} is not a whole safetensors file: {error}.")
        else:
            tensors.update(dict.fromkeys(names, name))
            size += held
    if problems:
        raise AdoptError(*problems, hint="Download it again.")
    return Stock(folder=folder, config=config, index=index, files=paths, tensors=tensors, size=size)


@_os_errors()
def adopt(stock: Stock, out: Path, settings: Sequence[str], overlay: Path) -> Adopted:
    """Write the folder `out`: a Qwen3-Next-Ext checkpoint that links to the files of `stock`.

    Parameters: `settings`, what config.json is given, each `KEY=VALUE` with a key of KEYS; a value is JSON if it
    parses, else a string. `overlay`, the folder of the overlay, which says what a config.json may hold.
    Raises AdoptError, before anything is written, if a setting is wrong, if the server would refuse the config.json, if
    `out` is not a new or empty folder outside of `stock`, or if `stock` already has a tensor or file that is to be
    added.
    """
    rules = _load_rules(overlay)
    config = {**stock.config, **_OWN, **_parse(settings)}
    if problems := rules.check(config):
        raise AdoptError(
            *(f"config.json would not be served: {problem}." for problem in problems),
            hint=f"It is made of {stock.folder / _CONFIG} and of --set.",
        )
    types, nope = rules.layers_of(config)
    if types != config.get("layer_types"):
        config |= {"layer_types": types, "nope_layers": nope}
    added = new_tensors(config, stock)
    out = out.resolve()
    _check_out(out, stock)

    written = {_CONFIG: _dump(config)}
    if added:
        taken = [f"{stock.folder} has {name} already." for name in added if name in stock.tensors]
        taken += [f"{path} is there already." for path in stock.files if path.name in (_SHARD, *_RENAMED.values())]
        if taken:
            raise AdoptError(*taken, hint="A stock checkpoint has none: name the one that this was made from.")
        written[INDEX] = _dump(_extend_index(stock, added))
        written[_SHARD] = dump_shard(added)
    renamed = _RENAMED if added else {}
    links = {renamed.get(path.name, path.name): path.resolve() for path in stock.files if path.name not in written}
    linked_bytes = sum(target.stat().st_size for target in links.values())

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".adopt-") as temporary:
        part = Path(temporary, "part")
        part.mkdir()
        for name, target in links.items():
            (part / name).symlink_to(target)
        for name, data in written.items():
            with naming(out / name):
                (part / name).write_bytes(data)
        part.rename(out)
    return Adopted(
        linked=len(links),
        linked_bytes=linked_bytes,
        written={name: len(data) for name, data in written.items()},
        tensors=len(added),
    )


def _load_rules(overlay: Path) -> Any:  # noqa: ANN401  # a module of the overlay, which the tool does not import
    held = {name: sys.modules.get(name) for name in _RULES}
    try:
        for name in _RULES:  # each imports those before it
            path = overlay / f"{name.replace('.', '/')}.py"
            spec = importlib.util.spec_from_file_location(name, path)
            if spec is None or spec.loader is None or not path.is_file():
                raise AdoptError(
                    f"There is no {path}, which says what a config.json may hold.", hint="Restore it from git."
                )
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
    finally:
        for name, before in held.items():
            sys.modules.pop(name, None)
            if before is not None:
                sys.modules[name] = before
    return module


def new_tensors(config: Mapping[str, Any], stock: Stock) -> dict[str, Tensor]:
    """Make the tensors that `config` needs beside those of `stock`, such that the answers change as little as they can.

    With `scoring_func` "sigmoid", the correction bias of each router, [num_experts] float32, is zero. With
    `head_adapter_rank` r, head_adapter.down.weight, [r, hidden_size], is drawn uniformly from +-1/sqrt(hidden_size)
    and head_adapter.up.weight, [hidden_size, r], is zero (Hu et al. 2021, "LoRA", section 4.1; the distribution is
    that of loralib's `Linear.reset_parameters`), both in the dtype of `config`; so their product is zero.
    Raises AdoptError if a value of `config` does not allow that.
    """
    path = stock.folder / _CONFIG
    tensors = {}
    # The widest type comes first, so that all are aligned.
    if config.get("scoring_func") == "sigmoid":
        experts = _positive(config, "num_experts", path)
        gates = sorted({match[1] for match in map(_GATE.fullmatch, stock.tensors) if match})
        if not gates:
            raise AdoptError(f"{stock.folder} has no router (…mlp.gate.weight).", hint="Leave out scoring_func.")
        for gate in gates:
            tensors[f"{gate}.e_score_correction_bias"] = Tensor("F32", [experts], bytes(4 * experts))
    if rank := config.get("head_adapter_rank"):
        hidden = _positive(config, "hidden_size", path)
        dtype = config.get("dtype") or config.get("torch_dtype")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise AdoptError(
                f"{path}: dtype must be one of {', '.join(_DTYPES)} for an adapter, not {json.dumps(dtype)}.",
                hint="Mend the file.",
            )
        generator, bound = random.Random(0), 1 / math.sqrt(hidden)
        down = _pack([bound * (2 * generator.random() - 1) for _ in range(rank * hidden)], dtype)
        tensors["head_adapter.down.weight"] = Tensor(_DTYPES[dtype], [rank, hidden], down)
        tensors["head_adapter.up.weight"] = Tensor(_DTYPES[dtype], [hidden, rank], bytes(len(down)))
    return tensors


def _check_stock(path: Path, config: Mapping[str, Any]) -> None:
    if any(config.get(key) == value for key, value in _OWN.items()):
        raise AdoptError(
            f"{path}: the checkpoint is adopted already ({_OWN['architectures'][0]}).",
            hint="Serve it as it is, edit its config.json, or adopt the stock checkpoint anew.",
        )
    wrong = [
        f"{path}: {key} must be {json.dumps(value)}, not {json.dumps(config.get(key))}."
        for key, value in _STOCK.items()
        if config.get(key) != value
    ]
    if wrong:
        raise AdoptError(*wrong, hint="Only a stock Qwen3-Next checkpoint can be adopted.")


def _extend_index(stock: Stock, added: Mapping[str, Tensor]) -> dict[str, Any]:
    index = stock.index or {"weight_map": stock.tensors}
    size = stock.size + sum(len(tensor.data) for tensor in added.values())
    weight_map = {name: _RENAMED.get(shard, shard) for name, shard in index["weight_map"].items()}
    return {
        **index,
        "metadata": {**index.get("metadata", {}), "total_size": size},
        "weight_map": weight_map | dict.fromkeys(added, _SHARD),
    }


def _check_out(out: Path, stock: Stock) -> None:
    if out == stock.folder or stock.folder in out.parents:
        raise AdoptError(f"{out} is in the checkpoint, {stock.folder}.", hint="Name an OUT outside of it.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise AdoptError(f"{out} exists, and is not an empty folder.", hint="Remove it, or name another OUT.")
    if not out.parent.is_dir():
        raise AdoptError(f"There is no folder {out.parent}.", hint="Make it, or name an OUT elsewhere.")


def _parse(settings: Sequence[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        try:
            value = parse_json(text)
        except json.JSONDecodeError:
            value = text
        except ValueError as error:
            problems.append(f"--set {setting}: {error}.")
            continue
        if not equals:
            problems.append(f"--set {setting}: there is no '='.")
        elif key not in KEYS:
            problems.append(f"--set {setting}: there is no key {key!r}.")
        elif parsed.setdefault(key, value) != value:
            problems.append(f"{key} is set to both {json.dumps(parsed[key])} and {json.dumps(value)}.")
    if problems:
        raise AdoptError(*problems, hint=f"Settings are KEY=VALUE, once a key; the keys are {', '.join(KEYS)}.")
    return parsed


def _read_object(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        value = parse_json(data)
    except UnicodeDecodeError:
        decode(data, path, AdoptError)
        raise
    except (ValueError, RecursionError) as error:
        raise AdoptError(f"{path} cannot be read as JSON: {error}.", hint="Mend it, or download it again.") from None
    if not isinstance(value, dict):
        raise AdoptError(f"{path} must hold a JSON object.", hint="Mend it, or download it again.")
    return value


def _positive(config: Mapping[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= _MOST:
        raise AdoptError(
            f"{path}: {key} must be a whole number from 1 to {_MOST:,}, not {json.dumps(value)}.", hint="Mend it."
        )
    return value


def _pack(values: Sequence[float], dtype: str) -> bytes:
    if dtype == "float16":
        return struct.pack(f"<{len(values)}e", *values)
    packed = struct.pack(f"<{len(values)}f", *values)
    if dtype == "float32":
        return packed
    half = bytearray(len(packed) // 2)  # bfloat16 is float32's upper half; a random draw need not be rounded
    half[0::2], half[1::2] = packed[2::4], packed[3::4]
    return bytes(half)


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
