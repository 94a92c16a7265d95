"""`new`: what it finds of a base, the files that it writes, and that it writes all of them or none."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from overlay_tools import cli
from overlay_tools.commands import new as command
from overlay_tools.scaffold import model
from overlay_tools.scaffold.describe_base import reads

from unit.conftest import Miniature, upstream_files

SRT = Path("overlay/sglang/srt")
UPSTREAM = """\
from sglang.srt.models.parent import Parent

class TinyForCausalLM(Parent):
    def __init__(self, config):
        self.size = config.num_experts + getattr(config, "head_dim", 0)

class Tiny2ForCausalLM(TinyForCausalLM):
    pass

EntryClass = [TinyForCausalLM, Tiny2ForCausalLM]
"""
CONFIGS = "class Tiny3Config:\n    model_type = 'tiny3'\n"
PARENT = "class Parent:\n    def norm(self, config):\n        return config.rms_norm_eps\n"
DESCRIBED: Mapping[str, Any] = {
    "transformers": "5.0",
    "taken": False,
    "config": "TinyConfig",
    "defaults": {
        "hidden_size": 4096,
        "layer_types": ["full_attention"],
        "mlp_bias": False,
        "num_local_experts": 64,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
    },
    "backbone": "TinyModel",
    "classifier": "TinyForSequenceClassification",
    "tied": False,
    "aliases": {"num_experts": "num_local_experts"},
    "reads": ["head_dim", "hidden_size", "layer_types", "mlp_bias", "num_local_experts", "rms_norm_eps"],
    "more": ["get", "head_dim"],
}


def lock_with_model(mini: Miniature, version: str) -> None:
    texts = {"models/tiny": UPSTREAM, "models/parent": PARENT, "configs/tiny": CONFIGS}
    files = {f"sglang/srt/{name}.py": text.encode() for name, text in texts.items()}
    mini.lock_release(version, upstream_files(version) | files)


@pytest.fixture
def mini_base(mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Return a project whose releases have a base, and whose engine's Python says what Transformers has of it."""
    for version in ("1.0", "1.1"):
        lock_with_model(mini_here, version)
    speak(mini_here, monkeypatch)
    return mini_here


def speak(
    mini: Miniature,
    monkeypatch: pytest.MonkeyPatch,
    described: Mapping[str, Any] = DESCRIBED,
    seed: str = "echo 7 a.1.b",
) -> None:
    python = mini.root / "python"
    described_as = json.dumps(described)
    python.write_text(f"#!/bin/sh\ncase \"$*\" in *describe_base*) echo '{described_as}';; *) {seed};; esac\n")
    python.chmod(0o755)
    monkeypatch.setattr(command, "open_engine", lambda *_, **__: nullcontext(python))


def written(mini: Miniature, before: Mapping[str, bytes]) -> dict[str, str]:
    return {name: data.decode() for name, data in mini.content().items() if before.get(name) != data}


def test_the_files_of_a_model_of_text(mini_base: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    before = mini_base.content()
    assert cli.main(["new", "my_model", "--from", "TinyForCausalLM"]) == 0
    files = written(mini_base, before)
    assert set(files) == {
        *(f"{SRT}/{folder}/my_model.py" for folder in ("models", "configs", "overlay_models")),
        *(f"tests/models/my_model/{name}" for name in ("__init__.py", "case.py", "reference.py", "README.md")),
    }
    shown = capsys.readouterr().out
    for name, text in files.items():
        assert name in shown
        if name.endswith(".py"):
            ast.parse(text)
    model, config = files[f"{SRT}/models/my_model.py"], files[f"{SRT}/configs/my_model.py"]
    assert "from sglang.srt.models.tiny import TinyForCausalLM" in model
    assert "class MyModelForCausalLM(TinyForCausalLM):" in model
    assert "class MyModelConfig(DerivedConfig, TinyConfig):" in config
    # What upstream does not read although Transformers does has one value; what it reads under another name has any.
    assert '"mlp_bias": (False,)' in config
    assert '"use_sliding_window": (False,)' in config
    assert 'layer_kinds = ("full_attention",)' in config
    assert 'read=("head_dim",)' in config
    case = files["tests/models/my_model/case.py"]
    assert "seed=7," in case
    assert 'updates=("model.norm.weight", "a.1.b"),' in case
    assert '"num_experts": 4' in case
    assert '"num_local_experts"' not in case
    assert 'base="TinyForCausalLM"' in files[f"{SRT}/overlay_models/my_model.py"]
    assert "draft" not in files[f"{SRT}/overlay_models/my_model.py"]


def test_the_files_of_a_derived_model(mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = b"class Qwen3NextForCausalLM:\n    pass\nEntryClass = Qwen3NextForCausalLM\n"
    for version in ("1.0", "1.1"):
        mini_here.lock_release(version, upstream_files(version) | {"sglang/srt/models/qwen3_next.py": upstream})
    speak(mini_here, monkeypatch, seed="exit 9")  # its weights are trained ones: there is no seed to look for
    before = mini_here.content()
    assert cli.main(["new", "my_next", "--kind", "derived"]) == 0
    files = written(mini_here, before)
    assert "class MyNextForCausalLMMTP(MyNextExtensions" in files[f"{SRT}/models/my_next_mtp.py"]
    assert "sglang.srt.models.my_next_mtp:MyNextForCausalLMMTP" in files[f"{SRT}/overlay_models/my_next.py"]
    assert all("{{" not in text and "{%" not in text for name, text in files.items() if name != "python")


def test_the_files_of_a_model_with_pictures(mini_here: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = b"class Qwen3NextForCausalLM:\n    pass\nEntryClass = Qwen3NextForCausalLM\n"
    for version in ("1.0", "1.1"):
        mini_here.lock_release(version, upstream_files(version) | {"sglang/srt/models/qwen3_next.py": upstream})
    speak(mini_here, monkeypatch, seed="exit 9")
    before = mini_here.content()
    assert cli.main(["new", "my_eyes", "--kind", "multimodal"]) == 0
    files = written(mini_here, before)
    assert "class MyEyesForConditionalGeneration(" in files[f"{SRT}/models/my_eyes.py"]
    assert "models = (MyEyesForConditionalGeneration,)" in files[f"{SRT}/multimodal/processors/my_eyes.py"]
    assert 'template.name = "my-eyes"' in files[f"{SRT}/configs/my_eyes.py"]
    row = files[f"{SRT}/overlay_models/my_eyes.py"]
    assert "multimodal=True" in row
    assert 'chat_template="sglang.srt.configs.my_eyes:chat_template"' in row
    assert "pictures=True" in files["tests/models/my_eyes/case.py"]


@pytest.mark.parametrize(
    ("kind", "architecture", "reference"),
    [("embedding", "MyModelEmbeddingModel", "TinyModel"), ("reward", "MyModelForSequenceClassification", None)],
)
def test_the_files_of_a_model_that_gives_vectors(
    mini_base: Miniature, kind: str, architecture: str, reference: str | None
) -> None:
    before = mini_base.content()
    assert cli.main(["new", "my_model", "--from", "TinyForCausalLM", "--kind", kind]) == 0
    files = written(mini_base, before)
    assert f"class {architecture}(TinyForCausalLM):" in files[f"{SRT}/models/my_model.py"]
    row = files[f"{SRT}/overlay_models/my_model.py"]
    assert "generates=False" in row
    assert '{"is_embedding": True}' in row
    reference = reference or "TinyForSequenceClassification"
    text = files["tests/models/my_model/reference.py"]
    assert f"class MyModel({reference}):" in text
    assert text.count("device=self.device") == text.count("torch.tensor(")
    assert "vector=MyModel.vector" in files["tests/models/my_model/case.py"]


def test_a_base_without_a_model_that_scores(
    mini_base: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speak(mini_base, monkeypatch, {**DESCRIBED, "classifier": None})
    before = mini_base.content()
    assert cli.main(["new", "my_model", "--from", "TinyForCausalLM", "--kind", "reward"]) == 2
    assert "Transformers has no TinyForCausalLM that scores" in capsys.readouterr().err
    assert mini_base.content() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["MyModel"], "'MyModel' cannot be the name of a module"),
        (["class"], "'class' cannot be the name of a module"),
        (["../x"], "'../x' cannot be the name of a module"),
        (["my_model", "--from", "NoForCausalLM"], "sglang 1.0 has no model NoForCausalLM"),
        (["my_model", "--from", "TinyForCausalLM", "--kind", "derived"], "cannot derive from TinyForCausalLM"),
        (["tiny", "--from", "TinyForCausalLM"], "sglang 1.0 has a sglang/srt/models/tiny.py"),
        (
            ["tiny_2", "--from", "TinyForCausalLM"],
            "has the architecture Tiny2ForCausalLM (sglang/srt/models/tiny.py:10)",
        ),
        (["ours_2", "--from", "TinyForCausalLM"], "ours.py has the architecture Ours2ForCausalLM"),
        (["tiny3", "--from", "TinyForCausalLM"], "has the model_type tiny3 (sglang/srt/configs/tiny.py:2)"),
        (["my_model", "--from", "Qwen3NextForCausalLM", "--kind", "reward"], "cannot derive from Qwen3NextForCausalLM"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    mini_base: Miniature, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mini_base.write(f"{SRT}/models/ours.py", "EntryClass = Ours2ForCausalLM\n")
    before = mini_base.content()
    assert cli.main(["new", *words]) == 2
    assert said in capsys.readouterr().err
    assert mini_base.content() == before


def test_a_model_type_that_transformers_has_is_refused_and_nothing_is_written(
    mini_base: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speak(mini_base, monkeypatch, {**DESCRIBED, "taken": True})
    before = mini_base.content()
    assert cli.main(["new", "smollm3", "--from", "TinyForCausalLM"]) == 2
    assert "transformers 5.0, which sglang 1.0 has, has a model_type smollm3." in capsys.readouterr().err
    assert mini_base.content() == before


def test_a_base_that_transformers_lacks_is_refused(
    mini_base: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speak(mini_base, monkeypatch, {"transformers": "5.0", "taken": False})
    assert cli.main(["new", "my_model", "--from", "TinyForCausalLM"]) == 2
    assert "transformers 5.0, which sglang 1.0 has, has no language model TinyForCausalLM" in capsys.readouterr().err


def test_a_model_that_is_there_stays_as_it_is(mini_base: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    mini_base.write("tests/models/my_model/case.py", "MINE = 1\n")
    before = mini_base.content()
    assert cli.main(["new", "my_model", "--from", "TinyForCausalLM"]) == 2
    assert "tests/models/my_model/case.py is there already" in capsys.readouterr().err
    assert mini_base.content() == before


def test_nothing_is_left_of_a_model_without_a_seed(mini_base: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_with_model(mini_base, "1.2")
    mini_base.lock_release("1.0")  # without the base: pyproject.toml would get a range
    mini_base.write("pyproject.toml", (mini_base.root / "pyproject.toml").read_text().replace('"1.0"', '"1.2"'))
    speak(mini_base, monkeypatch, seed="exit 3")
    before = mini_base.content()
    assert cli.main(["new", "my_model", "--from", "TinyForCausalLM"]) == 1
    assert mini_base.content() == before
    assert not (mini_base.root / "tests").exists()


def test_releases_without_the_base_do_not_take_the_model(mini_base: Miniature) -> None:
    mini_base.lock_release("1.0")
    mini_base.write("pyproject.toml", (mini_base.root / "pyproject.toml").read_text().replace('"1.0"', '"1.1"'))
    assert cli.main(["new", "my_model", "--from", "TinyForCausalLM"]) == 0
    takes = mini_base.project.takes
    for folder in ("models", "configs", "overlay_models"):
        assert [takes(version, f"sglang/srt/{folder}/my_model.py") for version in ("1.0", "1.1")] == [False, True]
    assert all(takes("1.0", name) for name in ("sglang/models/ours.py", "sglang/srt/models/other.py"))


def test_what_is_written_into_the_settings_meanwhile_stays(
    mini_base: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini_base.lock_release("1.0")
    settings = mini_base.root / "pyproject.toml"
    before = settings.read_text().replace('"1.0"', '"1.1"').replace("\n", "\r\n")
    settings.write_bytes(before.encode())
    later = "# written while the seed was looked for\r\n"
    find = model.find_seed

    def find_seed(*given: Any) -> None:  # noqa: ANN401
        find(*given)
        settings.write_bytes((later + before).encode())

    monkeypatch.setattr(model, "find_seed", find_seed)
    assert cli.main(["new", "my_model", "--from", "TinyForCausalLM"]) == 0
    text = settings.read_bytes().decode()
    assert text.startswith(later)
    assert "models/my_model.py" in text
    assert text.count("\n") == text.count("\r\n")


def test_ranges_of_files_that_are_not_python_stay(mini_base: Miniature) -> None:
    mini_base.lock_release("1.0")
    mini_base.write("pyproject.toml", (mini_base.root / "pyproject.toml").read_text().replace('"1.0"', '"1.1"'))
    mini_base.write("overlay/sglang/configs/tables.json", "{}\n")
    mini_base.limit({"sglang/configs/tables.json": ">=1.1"})
    assert cli.main(["new", "my_model", "--from", "TinyForCausalLM"]) == 0
    assert [mini_base.project.takes(v, "sglang/configs/tables.json") for v in ("1.0", "1.1")] == [False, True]


def test_the_keys_that_source_reads() -> None:
    text = 'x = config.a + self.config.b\ny = getattr(config, "c", 1)\nz = getattr(self.config, "d")\nconfiguration.e\n'
    assert reads(text) == {"a", "b", "c", "d"}
