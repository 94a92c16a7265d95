"""`accuracy`, with an engine: lm-eval finds the scores that are known, here and in Transformers, and sees a damage."""

from __future__ import annotations

import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from overlay_tools.engines.server import Server
from overlay_tools.errors import AccuracyError
from overlay_tools.proving.accuracy.harness import Harness, open_harness, open_lm_eval
from overlay_tools.proving.accuracy.scores import Pair, Score
from overlay_tools.proving.accuracy.tasks import Task, open_tasks
from overlay_tools.proving.reference import Reference
from PIL import Image
from reference.cases import DATA, cases, make_checkpoint
from reference.checkpoints import COMMON, SPECIAL_TOKENS, write_checkpoint
from reference.drawing import HELD_OUT_SEED, draw, make_tasks

from engine.harness import server
from engine.mutations import MUTATIONS
from engine.serving.dataset_hub import data_set, serving

NAME, PICTURED = "qwen3-next-ext", "qwen3-next-ext-vl"
ROOT = Path(__file__).parents[3]
TASKS = {kind: str(DATA / f"heldout-{kind}.jsonl") for kind in ("choices", "lines")}
HUB = {"gsm8k": ("exact_match, strict-match", 1), "mmlu": ("acc", 57)}  # how many documents count, and by what
KNOWN = {"choices": 34, "lines": 30}  # of 40 documents, those that the trained checkpoint answers rightly


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    with open_lm_eval(Path(sys.executable), None) as found:
        yield found


@contextmanager
def asking(
    packages: Path, checkpoint: Path, folder: Path, tasks: list[Task], limit: int | None = None, dtype: str = "float32"
) -> Iterator[Harness]:
    """Open tasks for a checkpoint, whose reference model computes in a dtype."""
    reference = Reference(Path(sys.executable), ROOT, folder, checkpoint, None, "cpu")
    job = {**reference.job, "dtype": dtype, "beside": True}
    with open_harness(Path(sys.executable), packages, job, reference.env, folder, tasks, limit) as harness:
        yield harness


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(NAME, folder)
    return folder


@pytest.fixture(scope="module")
def harness(packages: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """Open files of one's own, and tasks of the hub: to import lm-eval takes longer than to ask it all."""
    folder = tmp_path_factory.mktemp("asking")
    with reaching({**gsm8k(), **mmlu(packages)}, folder):
        tasks = open_tasks([*TASKS.values(), *HUB])
        with asking(packages, checkpoint, folder, tasks) as opened:
            yield opened


@contextmanager
def reaching(data_sets: Mapping[str, Mapping[str, bytes]], folder: Path) -> Iterator[None]:
    """Let data sets be on the hub."""
    with pytest.MonkeyPatch.context() as patched, serving(data_sets) as address:
        patched.setenv("HF_HOME", str(folder / "home"))
        patched.setenv("HF_ENDPOINT", address)
        yield


@pytest.fixture(scope="module")
def engine(harness: Harness, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Score]:
    return served(harness, checkpoint, tmp_path_factory.mktemp("engine") / "log")


def served(harness: Harness, checkpoint: Path, log: Path, **arguments: object) -> Mapping[str, Score]:
    """Ask an engine."""
    with server(checkpoint, log, arguments) as running:
        return harness.ask_server(running, 8)


def test_the_score_is_what_is_known_and_what_transformers_has(harness: Harness, engine: Mapping[str, Score]) -> None:
    assert harness.ask_reference(engine) == engine  # right on the very same documents
    assert {kind: sum(engine[name].right) for kind, name in TASKS.items()} == KNOWN
    assert {name: (score.metric, len(score.right)) for name, score in engine.items()} == {
        TASKS["choices"]: ("acc", 40),
        TASKS["lines"]: ("exact_match", 40),
        **HUB,  # all of a group count together
    }


def test_a_damaged_checkpoint_is_worse(harness: Harness, engine: Mapping[str, Score], tmp_path: Path) -> None:
    damaged = MUTATIONS["the adapter's sign"].apply(NAME, tmp_path)
    found = served(harness, damaged, tmp_path / "log")
    assert all(found[name].matches(score) for name, score in engine.items())
    pairs = {kind: Pair(engine=found[name], other=engine[name]) for kind, name in TASKS.items()}
    assert {kind: pair.is_worse(0.0) for kind, pair in pairs.items()} == {"choices": True, "lines": True}
    assert not any(Pair(engine=pair.other, other=pair.engine).is_worse(0.0) for pair in pairs.values())


def test_pictures_are_seen_by_both(packages: Path, tmp_path: Path) -> None:
    """Those of a file, of which the first 12 are asked, and that of a task of the hub: one of the 30 of mmmu."""
    checkpoint = tmp_path / "checkpoint"
    make_checkpoint(PICTURED, checkpoint, {"eos_token_id": 0})
    # What ends an answer is often said here alone.
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 3]}))
    own, known = questions(tmp_path, 13), "mmmu_val_accounting"
    (tmp_path / "of the hub").mkdir()
    with (
        reaching(mmmu(packages, tmp_path / "of the hub"), tmp_path),
        asking(packages, checkpoint, tmp_path, open_tasks([own, known]), limit=12) as harness,
    ):
        # This parser takes a whole answer for reasoning. It is judged all the same, as that of Transformers is.
        found = served(harness, checkpoint, tmp_path / "log", reasoning_parser="deepseek-r1")
        assert harness.ask_reference(found) == found
    assert (sum(found[own].right), len(found[own].right)) == (12, 12)
    assert (found[known].metric, len(found[known].right)) == ("acc", 1)


def questions(folder: Path, count: int) -> str:
    """Draw pictures that the checkpoint was not trained on, and write questions about them."""
    lines = []
    for n, task in enumerate(make_tasks(HELD_OUT_SEED, count, ["name", "count", "several"])):
        drawn = draw(task.pictures, 64, 48, torch.Generator().manual_seed(HELD_OUT_SEED + n))
        files = [folder / f"{n}-{m}.png" for m in range(len(task.pictures))]
        for file, one in zip(files, drawn.permute(0, 2, 3, 1).to(torch.uint8), strict=True):
            Image.frombytes("RGB", (64, 48), bytes(one.flatten().tolist())).save(file)
        shown = "<image>" * len(files)
        prompt = shown + task.question if task.first else task.question + shown
        lines.append({"prompt": prompt, "images": [file.name for file in files], "answer": task.answer})
    (folder / "pictures.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(folder / "pictures.jsonl")


def test_a_prompt_that_is_too_long_is_not_cut(packages: Path, checkpoint: Path, tmp_path: Path) -> None:
    task = Task(name="long", documents=[{"prompt": "a" * 4090, "answer": "b"}])
    with (
        asking(packages, checkpoint, tmp_path, [task]) as harness,
        pytest.raises(AccuracyError, match="and its answer take 4107 tokens, and 4096 are too many"),
    ):
        harness.ask_reference({})


def test_transformers_adds_up_logprobs_in_float32(packages: Path, tmp_path: Path) -> None:
    """As the engine does, whatever both compute in: between 128 and 256, bfloat16 has integers alone."""
    config = {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1}
    shapes = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).state_dict()
    weights = {name: torch.zeros_like(each) for name, each in shapes.items()}
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        weights[name].fill_(1.0)
    # Everywhere "a" is likelier than any other token, by a quarter of a nat.
    weights["lm_head.weight"][len(SPECIAL_TOKENS) + ord("a")] = 0.25 / COMMON["hidden_size"]
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_checkpoint(checkpoint, config, weights)
    documents = [{"prompt": "b", "choices": ["b" + "a" * n, "a" + "a" * n], "answer": 1} for n in range(30, 40)]
    task = Task(name="long", documents=documents)
    with asking(packages, checkpoint, tmp_path, [task], dtype="bfloat16") as harness:
        [found] = harness._scores("The reference model cannot be asked").values()
    assert found.right == [1] * len(documents)


def of_lm_eval(packages: Path, task: str) -> list[str]:
    """Find the configurations of a data set that a group of lm-eval's asks for."""
    files = (packages / "lm_eval/tasks" / task).glob("*.yaml")
    found = re.findall(r'^"?dataset_name"?: *"?(\w+)', "\n".join(path.read_text() for path in files), re.MULTILINE)
    return sorted({*found})


def rows(*documents: Mapping[str, object]) -> bytes:
    return "\n".join(json.dumps(document) for document in documents).encode()


def gsm8k() -> dict[str, Mapping[str, bytes]]:
    sums = [{"question": f"What is {n} and {n}?", "answer": f"It is the sum.\n#### {2 * n}"} for n in range(9)]
    return {"openai/gsm8k": data_set(["main"], {"train": rows(*sums[:8]), "test": rows(*sums[8:])}, "jsonl")}


def mmlu(packages: Path) -> dict[str, Mapping[str, bytes]]:
    sums = [
        {"question": f"What is {n} and {n}?", "subject": "sums", "choices": ["0", "1", "2", str(n)], "answer": n % 4}
        for n in range(3, 9)
    ]
    splits = {"dev": rows(*sums[:5]), "test": rows(*sums[5:])}
    return {"cais/mmlu": data_set(of_lm_eval(packages, "mmlu/default"), splits, "jsonl")}


def mmmu(packages: Path, folder: Path) -> dict[str, Mapping[str, bytes]]:
    import datasets

    [first, *_] = [json.loads(line) for line in Path(questions(folder, 1)).read_text().splitlines()]
    whole = {
        "id": "1",
        "question": first["prompt"].replace("<image>", "<image 1>"),
        "options": "[]",
        "answer": first["answer"],
        "question_type": "open",
        **dict.fromkeys([f"image_{n}" for n in range(2, 8)]),
        "image_1": {"bytes": (folder / first["images"][0]).read_bytes(), "path": None},
    }
    features = datasets.Features(
        {key: datasets.Image() if "image" in key else datasets.Value("string") for key in whole}
    )
    datasets.Dataset.from_list([whole], features=features).to_parquet(folder / "mmmu.parquet")
    splits = {"validation": (folder / "mmmu.parquet").read_bytes()}
    return {"MMMU/MMMU": data_set(of_lm_eval(packages, "mmmu"), splits, "parquet")}


class Recorded(http.server.BaseHTTPRequestHandler):
    """Answers each question with a number, and keeps it."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = json.dumps({"choices": [{"index": 0, "text": " The answer is 16."}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def stand_in(checkpoint: Path, tmp_path: Path) -> Iterator[Server]:
    """Answer in place of a server."""
    Recorded.asked.clear()
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorded)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield Server(Path(sys.executable), checkpoint, [], env={}, log=tmp_path / "log", port=listening.server_port)
    listening.shutdown()
    listening.server_close()


def test_answers_are_greedy_whatever_a_task_says(
    packages: Path, checkpoint: Path, stand_in: Server, tmp_path: Path
) -> None:
    tasks = open_tasks(["gsm8k_cot_self_consistency"])  # it asks 64 times with a temperature of 0.2
    with reaching(gsm8k(), tmp_path), asking(packages, checkpoint, tmp_path, tasks) as harness:
        [found] = harness.ask_server(stand_in, 8).values()
    assert found.right == [1]
    assert {asked["temperature"] for asked in Recorded.asked} == {0.0}
    assert not any("top_p" in asked for asked in Recorded.asked)


@pytest.mark.parametrize(
    "name", [name for name, case in cases().items() if case.ours and "rope_scaling" in case.config]
)
def test_a_model_with_yarn_can_be_asked(name: str, packages: Path, stand_in: Server, tmp_path: Path) -> None:
    """In tokens, although some versions of Transformers fail on such a configuration if they have no class for it."""
    checkpoint = tmp_path / "checkpoint"
    make_checkpoint(name, checkpoint)
    task = Task(name="sums", documents=[{"prompt": "8 and 8?", "answer": "The answer is 16."}])
    with asking(packages, checkpoint, tmp_path, [task]) as harness:
        [found] = harness.ask_server(stand_in, 8).values()
    assert found.right == [1]
    assert [asked["prompt"] for asked in Recorded.asked] == [[[len(SPECIAL_TOKENS) + byte for byte in b"8 and 8?"]]]


def test_a_model_that_generates_nothing_is_refused_before_anything_is_asked(
    packages: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    with (
        pytest.raises(AccuracyError, match="gives a vector for each text, and generates none"),
        asking(packages, tmp_path, tmp_path, open_tasks([TASKS["lines"]])),
    ):
        pass


def test_what_cannot_be_had_is_said_before_anything_is_asked(
    packages: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # else it tries again and again
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "<image>", "images": ["a.png"], "answer": "a"}))
    tasks = open_tasks(["gsm8k", "gsm8q", str(tmp_path / "own.jsonl")])
    with pytest.raises(AccuracyError) as caught, asking(packages, checkpoint, tmp_path, tasks):
        pass
    unreached, unknown, picture = caught.value.problems
    assert re.fullmatch(r"gsm8k cannot be had from the Hugging Face hub: .* --task FILE, needs no hub\.", unreached)
    assert re.fullmatch(r"lm-eval .* does not know the task gsm8q, and there is no such file\.", unknown)
    assert re.match(rf"{tmp_path}/a\.png cannot be read as a picture: ", picture)
