"""A config.json means the same to the engine as to Transformers, whichever version of transformers has written it.

`tests/data/written-configs.json` holds what three versions really write (`tests/reference/write_configs.py`). Each is
served, or refused by the name of the key. All versions' files must say the same to the engine; and of each model and
version one is served, and gives the reference model's logprobs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from reference.cases import DATA, cases, make_checkpoint
from reference.checkpoints import write_config
from reference.greedy import judge

from engine.harness import HELD_OUT, generate, ours, server, tokens_of

FILE = DATA / "written-configs.json"
WRITTEN: dict[str, dict[str, dict[str, dict[str, Any]]]] = json.loads(FILE.read_text(encoding="utf-8"))
OLDEST = min(WRITTEN, key=lambda version: int(version.split(".")[0]))
ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
REFUSED = ("dynamic",)
MODELS = tuple(name for name, case in cases().items() if case.written is not None)
ROPES = list(WRITTEN[OLDEST]["llama"])
CELLS = [(model, version, rope) for model in MODELS for version in WRITTEN for rope in ROPES]
# Which of a version's files is served: each version writes for each model, the kinds of positions in turn.
GOOD = [rope for rope in ROPES if rope not in REFUSED]
SERVED = dict(zip(itertools.product(MODELS, WRITTEN), itertools.cycle(GOOD), strict=False))
PROMPTS = [HELD_OUT[300 * i : 300 * i + length] for i, length in enumerate((40, 150, 250, 300))]


def config_of(model: str, version: str, rope: str) -> dict[str, Any]:
    """Give the config.json of one of MODELS as an adopted checkpoint has it that this version has written."""
    written = cases()[model].written
    assert written is not None
    return written({family: ropes[rope] for family, ropes in WRITTEN[version].items()})


def without_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the keys of rotary positions."""
    return {key: value for key, value in config.items() if key not in ROPE}


def read(folder: Path, overrides: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401  # a configuration
    """Read a config.json as a server does, up to where it would load the weights; give the text model's part."""
    from sglang.srt.configs.model_config import ModelConfig

    model_config = ModelConfig(str(folder), model_override_args=json.dumps(overrides or {}))
    ours("overlay_registry").resolve_model(model_config)
    return getattr(model_config.hf_config, "text_config", model_config.hf_config)


def positions(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """Give what upstream's layers read of a configuration to make rotary positions."""
    there = {key: getattr(config, key, None) for key in ROPE}
    return json.loads(json.dumps(there, sort_keys=True))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("model", "version", "rope"), CELLS)
def test_files_of_all_versions_say_the_same(model: str, version: str, rope: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "new", config_of(model, version, rope))
    if rope in REFUSED:
        with pytest.raises(
            (ValueError, RuntimeError), match=r"config\.json: .*rope_type must be one of default, linear"
        ):
            read(folder)
        return
    got = positions(read(folder))
    assert got == positions(read(write_config(tmp_path / "old", config_of(model, OLDEST, rope))))
    asked = WRITTEN[OLDEST]["qwen3_next"][rope]
    assert got["rope_theta"] == asked["rope_theta"]
    scaling = asked["rope_scaling"] or {"rope_type": "default"}
    wanted = {key: value for key, value in scaling.items() if key != "attn_factor"}
    assert wanted.items() <= {"rope_type": "default", **(got["rope_scaling"] or {})}.items()
    print(f"{model:20}{version:8}{rope:24}{json.dumps(got['rope_scaling'])}")


def test_a_contradiction_between_the_two_forms_names_both_keys(tmp_path: Path) -> None:
    for model in MODELS:
        config = config_of(model, "5.24.0", "default")
        config.get("text_config", config)["rope_theta"] = 10000.0
        with pytest.raises(
            (ValueError, RuntimeError), match=r"rope_theta is 10000\.0, and .*rope_parameters\.rope_theta"
        ):
            read(write_config(tmp_path / model, config))


@pytest.mark.parametrize("model", MODELS)
def test_a_key_that_nothing_reads_is_named(model: str, tmp_path: Path) -> None:
    config = config_of(model, OLDEST, "default")
    config.get("text_config", config)["rms_norm_epsilon"] = 1e-3
    with pytest.raises(
        (ValueError, RuntimeError), match=r"rms_norm_epsilon is not a key .* did you mean rms_norm_eps\?"
    ):
        read(write_config(tmp_path, config))


@pytest.mark.parametrize("model", [name for name in MODELS if "text_config" not in cases()[name].config])
@pytest.mark.parametrize("version", WRITTEN)
def test_overrides_of_either_form_count(model: str, version: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path, without_rope(config_of(model, version, "default")))
    for overrides in ({"rope_theta": 500000.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}):
        got = read(folder, overrides)
        assert got.rope_theta == 500000.0
        assert (getattr(got, "rope_parameters", None) or {}).get("rope_theta", 500000.0) == 500000.0
    with pytest.raises(RuntimeError, match="rope_thet is not a key of this model; did you mean rope_theta"):
        read(folder, {"rope_thet": 1e7})


def make(model: str, folder: Path, config: Mapping[str, Any]) -> Path:
    """Write a checkpoint of one of MODELS into a folder, with another config.json."""
    make_checkpoint(model, folder)
    return write_config(folder, config)


@pytest.fixture(scope="module", params=SERVED, ids=" ".join)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Serve a written config.json, and make the same checkpoint as the oldest version has written it."""
    model, version = request.param
    rope = SERVED[model, version]
    folder = tmp_path_factory.mktemp("written")
    checkpoint = make(model, folder / "new", config_of(model, version, rope))
    reference = make(model, folder / "old", config_of(model, OLDEST, rope))
    arguments = {"max_mamba_cache_size": 64} if cases()[model].state else {}
    with server(checkpoint, folder / "log", arguments) as running:
        yield SimpleNamespace(model=model, server=running, reference=reference)


def test_served_it_answers_as_transformers_does(
    served: SimpleNamespace, reference_process: ProcessPoolExecutor
) -> None:
    outputs = generate(served.server, PROMPTS, 8, logprob_start_len=0)
    runs = [(prompt, tokens_of(output)) for prompt, output in zip(PROMPTS, outputs, strict=True)]
    decided, largest = 0, 0.0
    verdicts = reference_process.submit(judge, served.model, served.reference, runs).result()
    for output, verdict in zip(outputs, verdicts, strict=True):
        if verdict.router_margin < 2e-6:
            continue  # rounding chooses an expert
        decided += 1
        meta = output["meta_info"]
        got = [logprob for logprob, *_ in meta["input_token_logprobs"][1:]]
        got += [logprob for logprob, *_ in meta["output_token_logprobs"]]
        wanted = [*verdict.prompt_logprobs, *verdict.logprobs]
        largest = max(largest, *(abs(a - b) for a, b in zip(got, wanted, strict=True)))
    print(f"largest difference of a logprob in {decided} prompts: {largest:.1e}")
    assert decided >= 2
    assert largest < 1e-3
