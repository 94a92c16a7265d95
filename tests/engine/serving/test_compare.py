"""`compare`, with an engine: the same model is the same, and a fault is found in the module that it is in."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from overlay_tools.errors import CompareError
from overlay_tools.proving.reference import Reference
from overlay_tools.proving.reference_script import ReferenceProblem  # type: ignore[attr-defined]  # of beside it
from PIL import Image
from reference.cases import ROOT, cases, make_checkpoint
from reference.checkpoints import write_tokenizer

from engine.harness import CHUNK
from engine.mutations import MUTATIONS, TOKENS, Models, Mutation, Served, serving

NAME = "qwen3-next-ext"
PICTURED = [name for name, case in cases().items() if case.pictures]
VECTORS = [name for name, case in cases().items() if case.vector is not None]
SOME = ("the rotary base", "a router's bias", "the adapter's sign")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run on some faults, or on all with `--whole`."""
    if "fault" in metafunc.fixturenames:
        metafunc.parametrize("fault", MUTATIONS if metafunc.config.getoption("--whole") else SOME)


@pytest.fixture(scope="module")
def models(reference_process: ProcessPoolExecutor) -> Models:
    return Models(reference_process)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(NAME, checkpoint)
    with serving(checkpoint, tmp_path_factory.mktemp("captured")) as running:
        yield running


def test_the_same_model_is_the_same(served: Served, models: Models) -> None:
    rows = models.rows(served, served.server.model)
    assert {way: row.problems for way, row in rows.items() if row.problems} == {}
    assert (rows["from the cache"].cached or 0) > 0
    assert rows["decode"].distance.same > 0
    found = models.locate(served, served.server.model, served.capture("prefill"))
    assert found.module is None
    compared = {module.name for module in found.modules if module.error is not None}
    assert compared >= {"embed_tokens", "norm", "logits"}
    assert compared >= {f"layers.{n}{part}" for n in range(6) for part in ("", ".input_layernorm", ".mlp")}


def test_a_fault_is_found_in_its_module(fault: str, served: Served, models: Models, tmp_path: Path) -> None:
    mutation = MUTATIONS[fault]
    checkpoint = mutation.apply(NAME, tmp_path)
    assert models.rows(served, checkpoint)["prefill"].problems
    found = models.locate(served, checkpoint, served.capture("prefill"))
    assert found.module is not None
    assert f"{found.module.name}.".startswith(f"{mutation.module}.")


@pytest.mark.parametrize("name", PICTURED)
def test_pictures_are_compared(name: str, models: Models, tmp_path: Path) -> None:
    """Those that are drawn where a person names none; a fault of what looks at them is found there."""
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "captured"
    folder.mkdir()
    make_checkpoint(name, checkpoint)
    prompts = models.describe(checkpoint, folder)
    assert [len(prompt.images) for prompt in prompts] == [1, 1, 2]
    assert max(len(prompt.places) for prompt in prompts) > CHUNK // 2
    with serving(checkpoint, folder, prompts=prompts) as running:
        rows = models.rows(running, checkpoint)
        assert {way: row.problems for way, row in rows.items() if row.problems} == {}
        assert (rows["from the cache"].cached or 0) > 0
        assert rows["decode"].distance.values == 3 * TOKENS
        said = sum(len(prompt.tokens) - 1 - len(prompt.places) for prompt in prompts)
        assert rows["prefill"].distance.values + rows["prefill"].left_out == said
        faulty = Mutation(module="visual", tensors="visual.merger", change=torch.neg).apply(name, tmp_path / "faulty")
        assert models.rows(running, faulty)["decode"].problems
        # What the tower made of a picture, an engine keeps: it looks at another one.
        with Image.open(prompts[1].images[0]) as picture:
            picture.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png")
        turned = replace(running, prompts=[replace(prompts[1], images=[str(tmp_path / "turned.png")])])
        found = models.locate(turned, faulty, turned.capture("prefill"))
        assert found.module is not None
        assert found.module.name == "visual"


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_the_same_model_are_the_same(name: str, models: Models, tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "captured"
    folder.mkdir()
    make_checkpoint(name, checkpoint)
    with serving(checkpoint, folder, vectors=True) as running:
        rows = models.rows(running, checkpoint)
        assert [*rows] == ["alone", "from the cache", "in a batch"]
        assert {way: row.problems for way, row in rows.items() if row.problems} == {}
        assert (rows["from the cache"].cached or 0) > 0
        found = models.locate(running, checkpoint, running.capture("alone"))
        assert found.module is None
        assert {module.name for module in found.modules if module.error is not None} >= {"embed_tokens", "norm"}
        faulty = Mutation(module="norm", tensors="model.norm").apply(name, tmp_path / "faulty")
        assert models.rows(running, faulty)["alone"].problems
        found = models.locate(running, faulty, running.capture("alone"))
        assert found.module is not None
        assert found.module.name == "norm"


@pytest.mark.parametrize("name", [name for name, case in cases().items() if case.ours])
def test_each_model_of_ours_can_be_compared(name: str, models: Models, tmp_path: Path) -> None:
    """Its prompts are read, whatever Transformers makes of a configuration that it does not know."""
    make_checkpoint(name, tmp_path)
    models.describe(tmp_path, tmp_path)


OWN = """
import torch
import transformers

class OwnTokenizer(transformers.PreTrainedTokenizerFast):
    pass

class OwnProcessor:
    image_processor = chat_template = "{{ messages }}"

    @classmethod
    def register_for_auto_class(cls):
        pass

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return cls()

    def apply_chat_template(self, *args, **kwargs):
        return {"input_ids": torch.tensor([[7, 5]])}
"""


def test_code_of_a_checkpoint_s_own_runs_if_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokenizer's and its processor's; and nothing waits for an answer that nobody can give."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_tokenizer(checkpoint)
    (checkpoint / "own.py").write_text(OWN)
    for name, changes in {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "own",
            "vision_config": {},
            "image_token_id": 5,
        },
        "processor_config.json": {
            "processor_class": "OwnProcessor",
            "auto_map": {"AutoProcessor": "own.OwnProcessor"},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
        },
    }.items():
        (checkpoint / name).write_text(json.dumps(changes))
    given = (Path(sys.executable), ROOT, tmp_path, checkpoint, None, "cpu")
    with pytest.raises(CompareError, match=f"{checkpoint} has code of its own, .* `-- --trust-remote-code`") as caught:
        Reference(*given).describe([], "")
    assert "--trust-remote-code" in caught.value.hint
    described = Reference(*given, flags=["--trust-remote-code"]).describe([], "")
    assert (described.unseen, [prompt.places for prompt in described.prompts]) == ("", [[1], [1], [1]])


@pytest.mark.parametrize("architecture", ["BertModel", "XLMRobertaForSequenceClassification", "Gemma3TextModel"])
def test_what_the_engine_pools_in_another_way_is_refused(architecture: str, models: Models, tmp_path: Path) -> None:
    """The last token's state, or its scores, are not what it gives for these."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with pytest.raises(ReferenceProblem, match=f"{architecture}, its .* is that of an encoder"):
        models.describe(tmp_path, tmp_path, embedding=True)
