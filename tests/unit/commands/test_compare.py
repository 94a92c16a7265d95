"""`compare`, as it is called: what it refuses before anything is built."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from overlay_tools import cli
from overlay_tools.checkpoints.safetensors_header import Tensor, dump_shard
from overlay_tools.commands import compare, shared
from overlay_tools.commands.shared import Begun
from overlay_tools.engines.device import Device
from overlay_tools.engines.server import Server
from overlay_tools.errors import CompareError
from overlay_tools.proving import memory
from overlay_tools.proving.reference import Described, Prompt, Question, Reference

from unit.conftest import Miniature


@pytest.fixture
def checkpoint(mini_here: Miniature) -> Path:
    """Return a checkpoint that nothing is wrong with, in the working folder."""
    mini_here.write("model/config.json", json.dumps({"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}))
    shard = Path("model/model.safetensors")
    shard.write_bytes(dump_shard({"lm_head.weight": Tensor("BF16", [2, 3], bytes(12))}))
    Path("empty.txt").write_text("\n \n")
    Path("own.txt").write_text("One\n")
    return Path("model")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["overlay"], "overlay is not a checkpoint: it has no config.json."),
        (["model", "--prompts", "nothing.txt"], "nothing.txt: No such file or directory."),
        (["model", "--prompts", "empty.txt"], "empty.txt has no prompt."),
        (["model", "--reference", "my_model"], "--reference my_model is not MODULE:CLASS."),
        (["model", "--reference", "my-model:Model"], "--reference my-model:Model is not MODULE:CLASS."),
        (["model", "9.9"], "9.9"),
        (["model", "--", "--model-path=other"], "Give CHECKPOINT before the `--`."),
        (["model", "--", "--tp-size", "2", "--port", "1"], "--port cannot be passed on to the server."),
        (["model", "--", "--host", "0.0.0.0"], "--host cannot be passed on to the server."),
        (["model", "--tokens", "0"], "0 is not a number from 1 on"),
        (["model", "--json", "a", "--html", "./a"], "--json and --html both name a."),
        (
            ["model", "--prompts", "own.txt", "--html", "model/../own.txt"],
            "own.txt is read, and --html would",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_built(
    checkpoint: Path, mini_here: Miniature, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main(["compare", *words])
    except SystemExit as error:
        status = int(error.code or 0)
    assert status in (1, 2)
    assert said in capsys.readouterr().err
    assert not (mini_here.root / "dist").exists()


def test_a_checkpoint_that_memory_does_not_take_is_refused(
    checkpoint: Path, mini_here: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 1 << 30)
    assert cli.main(["compare", "model", "--", "--trust-remote-code"]) == 1
    assert "This needs about 3.0 GiB of memory (6 values in float32), and 1.0 GiB are free." in capsys.readouterr().err
    assert not (mini_here.root / "dist").exists()


def test_no_verdict_of_an_earlier_run_stays_after_an_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise CompareError("The engine cannot be asked.")

    monkeypatch.setattr(compare, "open_engine", fail)
    for name in ("out.json", "out.html"):
        Path(name).write_text('{"same": true}')
    words = ["compare", "model", "--json", "out.json", "--html", "out.html"]
    assert cli.main([*words, "--reference", "none"]) == 2
    assert Path("out.json").exists()
    assert Path("out.html").exists()
    assert cli.main(words) == 1
    assert not Path("out.json").exists()
    assert not Path("out.html").exists()


def test_a_server_is_given_the_time_that_is_said(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def start(self: Server) -> Server:
        given.append(self.timeout)
        raise CompareError("The engine cannot be asked.")

    described = Described(reference="", runs_in="", prompts=[Prompt(tokens=[1])])
    monkeypatch.setattr(compare, "_TEXT", "own.txt")
    monkeypatch.setattr(compare, "open_engine", lambda *arguments, **options: nullcontext(Path("python")))
    monkeypatch.setattr(Reference, "describe", lambda *arguments: described)
    monkeypatch.setattr(Server, "__enter__", start)
    assert cli.main(["compare", "model", "--timeout", "900"]) == 1
    assert given == [900.0]


@pytest.mark.parametrize(
    ("names", "drafts", "state"),
    [
        (["model.layers.1.linear_attn.A_log", "mtp.fc.weight"], True, True),
        (["model.layers.1.self_attn.q_proj.weight", "model.layers.2.eh_proj.weight"], True, False),
        (["model.layers.1.linear_attn.A_log"], False, True),
        (["model.layers.20.mlp.up_proj.weight"], False, False),
    ],
)
def test_a_head_for_drafts_is_found_by_what_its_tensors_are_named(
    checkpoint: Path, names: list[str], drafts: bool, state: bool
) -> None:
    """As of Qwen3-Next, or as the layer after the last that DeepSeek-V3 has; only the first has states to keep."""
    config = {"architectures": ["X"], "dtype": "bfloat16", "num_hidden_layers": 2}
    (checkpoint / "config.json").write_text(json.dumps(config))
    tensors = {name: Tensor("BF16", [1], bytes(2)) for name in names}
    (checkpoint / "model.safetensors").write_bytes(dump_shard(tensors))
    plan = Begun(version="", device=Device(gpu=False, why=""), flags=[], reference="exact").plan(checkpoint)
    assert (plan.drafts, plan.state) == (drafts, state)


@pytest.mark.parametrize(
    ("config", "flags", "gpu", "dtype"),
    [
        ({"dtype": "bfloat16"}, [], True, "bfloat16"),
        ({"text_config": {"torch_dtype": "bfloat16"}}, [], True, "bfloat16"),
        ({"dtype": "float32"}, [], True, "float16"),
        ({}, [], True, "float16"),
        ({"model_type": "gemma3"}, [], True, "bfloat16"),
        ({"dtype": "float32"}, ["--dtype", "float"], True, "float32"),
        ({"dtype": "bfloat16"}, [], False, "float32"),
    ],
)
def test_in_which_dtype_the_engine_computes(config: dict[str, object], flags: list[str], gpu: bool, dtype: str) -> None:
    """As upstream's `_get_and_verify_dtype` has it; on a CPU we say float32."""
    assert shared._engine_dtype(config, flags, gpu) == dtype


def test_a_prompt_is_a_line_whatever_else_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes('one\x0cpage\r\n\ntwo\u2028three\n{"a": 1}\n'.encode())
    assert [question.prompt for question in compare._read_prompts(path)] == [
        "one\x0cpage",
        "two\u2028three",
        '{"a": 1}',
    ]


def test_a_line_may_have_pictures(tmp_path: Path) -> None:
    """`accuracy` reads the same file."""
    path = tmp_path / "prompts.jsonl"
    (tmp_path / "a.png").touch()
    lines = [{"prompt": "<image>What?", "images": ["a.png"], "answer": "A cat."}, {"prompt": "One\ntwo"}]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert compare._read_prompts(path) == [
        Question(prompt="<image>What?", images=[str(tmp_path / "a.png")]),
        Question(prompt="One\ntwo", images=[]),
    ]


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        (
            "own.txt",
            '{"prompt": "<image>", "images": ["a.png"]}',
            "own.txt:2: this looks like JSON, and a file of",
        ),
        ("own.jsonl", '{"prompt": "<image>", "images": ["a.png"]}', "own.jsonl:2: there is no file /"),
        ("own.jsonl", '{"prompt": "a", "prompt": "b"}', "own.jsonl:2: this cannot be read as JSON: `prompt` is there"),
        ("own.jsonl", '{"prompt": "a", "image": "b.png"}', "own.jsonl:2: `image` is not known."),
        ("own.jsonl", '{"prompt": "<image>"}', ""),
        ("own.jsonl", "", "own.jsonl has no line."),
    ],
)
def test_what_is_wrong_with_a_line_is_said(name: str, line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(f"\n{line}\n")
    if not said:
        assert len(compare._read_prompts(path)) == 1
        return
    with pytest.raises(CompareError) as caught:
        compare._read_prompts(path)
    assert said in str(caught.value)
    assert ".jsonl" in caught.value.hint


@pytest.mark.parametrize("damaged", ["", "[]", "{"])
def test_a_configuration_that_cannot_be_read_is_named(
    checkpoint: Path, damaged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "config.json").write_text(damaged)
    assert cli.main(["compare", "model"]) == 1
    assert "model/config.json" in capsys.readouterr().err
