"""Whether a comparison fits into memory, from the headers of shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from overlay_tools.checkpoints.safetensors_header import Stored, Tensor, dump_shard
from overlay_tools.errors import CompareError
from overlay_tools.proving import memory
from overlay_tools.proving.memory import choose_reference_device, count_tensors, free_memory

GIB = 1 << 30


def floats(values: int) -> dict[str, Stored]:
    return {"t": Stored("BF16", values, 2 * values)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    for number in (1, 2):
        tensor = Tensor("BF16", [number, 5], bytes(2 * number * 5))
        (tmp_path / f"model-{number}.safetensors").write_bytes(dump_shard({f"t{number}": tensor}))
    return tmp_path


def test_the_values_of_all_shards_are_counted(checkpoint: Path) -> None:
    assert count_tensors(checkpoint) == {"t1": Stored("BF16", 5, 10), "t2": Stored("BF16", 10, 20)}


def test_shards_that_a_server_does_not_load_are_not_counted(checkpoint: Path) -> None:
    """Mistral's files in its own form, and what an index does not list."""
    shard = (checkpoint / "model-1.safetensors").rename(checkpoint / "consolidated.safetensors")
    assert set(count_tensors(checkpoint)) == {"t2"}
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"t1": shard.name}}))
    assert set(count_tensors(checkpoint)) == {"t1"}
    index.write_text("{}")
    with pytest.raises(CompareError, match=r"index\.json: weight_map must map tensors to shards") as caught:
        count_tensors(checkpoint)
    assert caught.value.hint == "Download it again."
    index.unlink()
    (checkpoint / "model-2.safetensors").unlink()
    assert set(count_tensors(checkpoint)) == {"t1"}


def test_a_checkpoint_without_whole_shards_is_refused(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(CompareError, match="has no weight shards"):
        count_tensors(tmp_path_factory.mktemp("empty"))
    shard = checkpoint / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CompareError, match=r"model-2\.safetensors is not a whole safetensors file: it holds 19 bytes"):
        count_tensors(checkpoint)


def test_what_does_not_fit_is_refused_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 7 * GIB)
    assert choose_reference_device(floats(GIB), "float32", gpus=0) == "cpu"
    with pytest.raises(CompareError, match=r"needs about 11\.0 GiB of memory .*, and 7\.0 GiB are free") as caught:
        choose_reference_device(floats(2 * GIB), "float32", gpus=0)
    assert "machine that has more" in caught.value.hint


def test_a_reference_model_that_a_gpu_does_not_take_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_gpu_memory", lambda gpus: 8 * GIB)
    monkeypatch.setattr(memory, "free_memory", lambda: 16 * GIB)
    assert choose_reference_device(floats(GIB), "bfloat16", gpus=1) == "cuda"
    assert choose_reference_device(floats(3 * GIB), "bfloat16", gpus=1) == "cpu"
    with pytest.raises(CompareError, match="of GPU memory"):
        choose_reference_device(floats(4 * GIB), "bfloat16", gpus=1)
    monkeypatch.setattr(memory, "free_memory", lambda: 14 * GIB)
    with pytest.raises(CompareError, match="more than the GPU takes"):
        choose_reference_device(floats(3 * GIB), "bfloat16", gpus=1)


def test_what_is_in_memory_at_once_must_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 12 * GIB)
    assert choose_reference_device(floats(GIB), "float32", 0, "float32", together=True) == "cpu"
    with pytest.raises(CompareError, match=r"needs about 20\.0 GiB of memory"):
        choose_reference_device(floats(2 * GIB), "float32", 0, "float32", together=True)
    assert choose_reference_device(floats(2 * GIB), "float32", 0, None, together=True) == "cpu"
    monkeypatch.setattr(memory, "_gpu_memory", lambda gpus: 8 * GIB)
    assert choose_reference_device(floats(GIB), "bfloat16", 1, "bfloat16", together=True) == "cuda"
    with pytest.raises(CompareError, match=r"needs about 8\.4 GiB of GPU memory"):
        choose_reference_device(floats(2 * GIB), "bfloat16", 1, "bfloat16", together=True)


def test_an_engine_on_several_gpus_needs_less_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free are 8 GiB of the one that takes less; GPU 1 is not seen."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\ncase $* in *--id=0,2) echo 16384; echo 8192;; *) echo 1;; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 2, 3")
    monkeypatch.setattr(memory, "free_memory", lambda: 99 * GIB)
    assert choose_reference_device(floats(7 * GIB), "bfloat16", 2) == "cpu"
    with pytest.raises(CompareError, match=r"8\.9 GiB of GPU memory .*, and 8\.0 GiB are free"):
        choose_reference_device(floats(8 * GIB), "bfloat16", 2)


def test_an_engine_keeps_quantised_weights_as_they_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_gpu_memory", lambda gpus: 8 * GIB)
    tensors = {"t": Stored("F8_E4M3", 7 * GIB, 7 * GIB)}
    assert choose_reference_device(tensors, "bfloat16", 1, None) == "cuda"
    tensors = {"t": Stored("F8_E4M3", 8 * GIB, 8 * GIB)}
    with pytest.raises(CompareError, match=r"needs about 8\.9 GiB .* in bfloat16 or as they are stored\)"):
        choose_reference_device(tensors, "bfloat16", 1, None)


@pytest.mark.parametrize(("dtype", "size", "needed"), [("I32", 4, 35), ("U8", 1, 11)])
def test_a_reference_model_unpacks_weights_of_four_bits(
    dtype: str, size: int, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: (needed - 1) * GIB)
    tensors = {"t": Stored(dtype, GIB, size * GIB)}
    with pytest.raises(CompareError, match=rf"needs about {needed}\.0 GiB of memory .* in float32\)"):
        choose_reference_device(tensors, "float32", gpus=0)


def test_a_gpu_that_shares_the_memory_of_the_machine_has_what_is_free_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '[N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(memory, "free_memory", lambda: 8 * GIB)
    with pytest.raises(CompareError, match=r"8\.9 GiB of GPU memory .*, and 8\.0 GiB are free"):
        choose_reference_device(floats(4 * GIB), "bfloat16", 1, None)


def test_a_container_has_the_memory_that_it_is_given(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    assert free_memory(meminfo, tmp_path) == 8 * GIB
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")  # caches, which make room
    assert free_memory(meminfo, tmp_path) == 2 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(meminfo, tmp_path) == 8 * GIB
