"""Train a tiny byte-level Qwen3-Next-Ext-VL checkpoint on generated pictures (`tests/reference/drawing.py`).

    python tests/models/qwen3_next_ext_vl/train.py OUT_DIR --minutes 7 --device cuda
    python tests/models/qwen3_next_ext_vl/train.py OUT_DIR --steps 300 --batch 16 --kinds name

It learns to name a colour and a shape, to count squares, to name one of several pictures, and to repeat words. OUT_DIR
gets the checkpoint and a README.md with its origin and its accuracy on pictures that it was not trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "ci"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from reference.checkpoints import write_tokenizer
from reference.drawing import END, HELD_OUT_SEED, IM_END, KINDS, SIZES, Task, draw, make_tasks, prompt
from reference.greedy import encode
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, pad
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from models.qwen3_next_ext.train import LoadBalancer
from models.qwen3_next_ext_vl.case import CONFIG
from models.qwen3_next_ext_vl.reference import Qwen3NextExtVL, fitted

PEAK_RATE, FINAL_RATE, WARMUP = 2e-3, 2e-5, 0.05
WEIGHT_DECAY = 0.05


def render(tasks: Sequence[Task], size: tuple[int, int], seed: int) -> torch.Tensor:
    """Draw the pictures of tasks at one size and bring them to the size and range that the model takes."""
    generator = torch.Generator().manual_seed(seed)
    drawn = draw([things for task in tasks for things in task.pictures], *size, generator)
    width, height = fitted(*size, CONFIG["vision_config"])
    if drawn.shape[-2:] != (height, width):
        drawn = interpolate(drawn, (height, width), mode="bicubic", antialias=True).round().clamp(0, 255)
    return drawn / 127.5 - 1


def batch_of(tasks: Sequence[Task], size: tuple[int, int], seed: int) -> tuple[torch.Tensor, ...]:
    """Give tokens [tasks, length], which of them belong to answers, and the pictures."""
    pictures = render(tasks, size, seed)
    unit = CONFIG["vision_config"]["patch_size"] * CONFIG["vision_config"]["merge_size"]
    each = pictures.shape[-2] * pictures.shape[-1] // unit**2
    asked = [prompt(task, each) for task in tasks]
    answers = [[*encode(task.answer), IM_END] for task in tasks]
    length = max(len(a) + len(b) for a, b in zip(asked, answers, strict=True))
    tokens = torch.full((len(tasks), length), END)
    counted = torch.zeros(len(tasks), length, dtype=torch.bool)
    for i, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        end = len(question) + len(answer)
        tokens[i, :end] = torch.tensor(question + answer)
        counted[i, len(question) : end] = True
    return tokens, counted, pictures


class Batches(IterableDataset[tuple[torch.Tensor, ...]]):  # type: ignore[misc]
    """What is trained on, step by step, drawn by processes of their own: the model's leaves no time for it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        torch.set_num_threads(1)
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in count(first, stride):
            seed = self.arguments.seed * 100_000 + step
            tasks = make_tasks(seed, self.arguments.batch, self.arguments.kinds)
            yield batch_of(tasks, SIZES[step % len(SIZES)], seed)


def check(model: Qwen3NextExtVL, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the cross entropy of the answers, in nats a token, and which answers are right, every token of them.

    An answer is right if each of its tokens is the best after the right ones before it: then greedy decoding gives it.
    """
    tokens, counted, pictures = batch
    wanted, counted = tokens[:, 1:], counted[:, 1:]
    hidden = model(tokens, pictures)[:, :-1]
    logits = model.language_model.head(hidden[counted])
    loss = cross_entropy(logits, wanted[counted])
    wrong = torch.zeros_like(counted)
    wrong[counted] = logits.argmax(-1) != wanted[counted]
    return loss, ~wrong.any(1)


def held_out_accuracy(model: Qwen3NextExtVL, kinds: Sequence[str], device: str) -> dict[str, float]:
    """Give the share of right answers to 200 tasks of each kind that were not trained on."""
    found = {}
    with torch.no_grad():
        for kind in kinds:
            right = []
            for i in range(8):
                tasks = make_tasks(HELD_OUT_SEED + i, 25, [kind])
                batch = batch_of(tasks, SIZES[i % len(SIZES)], HELD_OUT_SEED + i)
                right.append(check(model, tuple(part.to(device) for part in batch))[1])
            found[kind] = torch.cat(right).float().mean().item()
    return found


def delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    g: torch.Tensor,
    beta: torch.Tensor,
    chunk_size: int = 64,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Compute transformers' `torch_chunk_gated_delta_rule` without its loop over the positions of a chunk.

    That loop solves a triangular system row by row, in so many small steps that they take most of the training's time.

    - `query`, `key`, `value`: [batch, length, heads, size]. `g`, `beta`: [batch, length, heads], the logarithm of what
      is kept of the state at a position, and how much of the value is written.

    Returns what is read, like `value`. Source: Yang et al., Gated Delta Networks (2024), section 3.3.
    """
    length = value.shape[1]
    unit = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (query, key))
    parts = (*unit, value, g[..., None], beta[..., None])
    q, k, v, g, beta = (
        pad(x.transpose(1, 2), (0, 0, 0, -length % chunk_size)).unflatten(2, (-1, chunk_size)) for x in parts
    )
    q = q * q.shape[-1] ** -0.5
    g = g.cumsum(-2)
    decay = (g - g.mT).tril().exp().tril()  # from a position's column to its row
    eye = torch.eye(chunk_size, device=v.device)
    solved = torch.linalg.solve_triangular(
        eye + (beta * (k @ k.mT) * decay).tril(-1), torch.cat([beta * v, beta * g.exp() * k], -1), upper=False
    )
    written, forgotten = solved.split([v.shape[-1], k.shape[-1]], -1)
    within = q @ k.mT * decay
    state = torch.zeros_like(k[:, :, 0].mT @ v[:, :, 0])
    out = []
    for i in range(v.shape[2]):
        new = written[:, :, i] - forgotten[:, :, i] @ state
        out.append((q[:, :, i] * g[:, :, i].exp()) @ state + within[:, :, i] @ new)
        last = g[:, :, i, -1:]
        state = state * last.exp() + (k[:, :, i] * (last - g[:, :, i]).exp()).mT @ new
    return torch.stack(out, 2).flatten(2, 3)[:, :, :length].transpose(1, 2).to(value.dtype), None


def learning_rate(progress: float) -> float:
    """Rise linearly over the share WARMUP of the run, then fall along a cosine. `progress` goes from 0 to 1."""
    if progress < WARMUP:
        return PEAK_RATE * progress / WARMUP
    fall = (1 + math.cos(math.pi * min(progress - WARMUP, 1 - WARMUP) / (1 - WARMUP))) / 2
    return FINAL_RATE + (PEAK_RATE - FINAL_RATE) * fall


def train(arguments: argparse.Namespace) -> None:
    """Train until the given number of steps or minutes is over, whichever comes first, and write the folder."""
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    device, kinds = arguments.device, arguments.kinds
    model = Qwen3NextExtVL(CONFIG) if arguments.start is None else Qwen3NextExtVL.load(arguments.start).train()
    for module in model.to(device).modules():
        if hasattr(module, "chunk_gated_delta_rule"):
            module.chunk_gated_delta_rule = delta_rule
    balancer = LoadBalancer([model])
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=device != "cpu",
    )
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters", flush=True)

    batches = iter(DataLoader(Batches(arguments), batch_size=None, num_workers=arguments.workers))
    start = last_report = time.monotonic()
    step, progress = 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress)
        loss, right = check(model, tuple(part.to(device) for part in next(batches)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        balancer.step()
        step += 1
        now = time.monotonic()
        progress = max(step / (arguments.steps or math.inf), (now - start) / (60 * arguments.minutes))
        if now - last_report > 5 or progress >= 1:
            last_report = now
            print(
                f"{now - start:6.0f} s, step {step}: {loss.item():.3f} nats, {right.float().mean():.0%} right",
                flush=True,
            )

    seconds = time.monotonic() - start
    accuracy = held_out_accuracy(model.eval(), kinds, device)
    print("held out:", ", ".join(f"{kind} {share:.1%}" for kind, share in accuracy.items()))
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    _write(arguments.out_dir, tensors, _readme(arguments, step, seconds, accuracy))


def _write(out: Path, tensors: dict[str, torch.Tensor], readme: str) -> None:
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(readme, encoding="utf-8")
    write_tokenizer(partial, pictures=True)
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    partial.rename(out)


def _readme(arguments: argparse.Namespace, steps: int, seconds: float, accuracy: dict[str, float]) -> str:
    options = {name: value for name, value in vars(arguments).items() if name != "out_dir" and value is not None}
    options["kinds"] = " ".join(options["kinds"])
    command = " ".join(
        ["python tests/models/qwen3_next_ext_vl/train.py", arguments.out_dir.name]
        + [f"--{name} {value}" for name, value in options.items()]
    )
    earlier = ""
    if arguments.start is not None:
        told = (arguments.start / "README.md").read_text(encoding="utf-8").splitlines(keepends=True)
        earlier = "".join(line for line in told if line.startswith(("- Command:", "- Versions:", "- Training:")))
    rows = "\n".join(f"| {kind} | {share:.1%} |" for kind, share in accuracy.items())
    return f"""# A tiny Qwen3-Next-Ext-VL, trained

Byte-level, in float32: a vision tower before Qwen3-Next-Ext with every extension on, without a draft.

- Data: pictures drawn by `tests/models/qwen3_next_ext_vl/drawing.py` and questions about them; nothing from elsewhere.
{earlier}- Command: `{command}`
- Versions: Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}
- Training: {steps} steps of {arguments.batch} questions in {seconds:.0f} s

| kind of question | right of 200 held out |
|---|---|
{rows}
"""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a tiny Qwen3-Next-Ext-VL checkpoint.")
    parser.add_argument("out_dir", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--minutes", type=float, default=7.0, help="training ends after so long (default 7)")
    parser.add_argument("--steps", type=int, help="training ends after so many (default: no limit)")
    parser.add_argument("--batch", type=int, default=256, help="questions a step (default 256)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of questions (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures (default: this one draws)")
    parser.add_argument("--start", type=Path, help="the folder of a checkpoint to train on (default: from nothing)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    arguments = parser.parse_args()
    if arguments.out_dir.exists():
        parser.error(f"{arguments.out_dir}: exists already; name another folder, or remove it")
    train(arguments)


if __name__ == "__main__":
    main()
