"""Train a tiny byte-level Qwen3-Next-Ext checkpoint, with every extension on, on CPython's own documentation.

    python tests/models/qwen3_next_ext/train.py OUT_DIR --minutes 5 --device cuda
    python tests/models/qwen3_next_ext/train.py OUT_DIR --steps 300 --batch 8

The text is the running interpreter's: the language reference (`pydoc_data.topics`) and the docstrings of the standard
library's modules. OUT_DIR gets the checkpoint in the layout of the released ones, `heldout.txt`, the start of the part
of the reference that was not trained on, and a README.md with the origin of the data and the losses.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import platform
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "ci"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from reference.checkpoints import SPECIAL_TOKENS, changed, write_tokenizer
from reference.greedy import encode
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from models.qwen3_next.case import CONFIG as QWEN3_NEXT
from models.qwen3_next_ext.reference import Qwen3NextExt, Qwen3NextExtConfig, Qwen3NextExtMTP, Router

CONFIG = changed(
    QWEN3_NEXT,
    {
        "architectures": ["Qwen3NextExtForCausalLM"],
        "model_type": "qwen3_next_ext",
        "full_attention_interval": None,
        "layer_types": [
            "linear_attention",
            "linear_attention",
            "full_attention",
            "linear_attention",
            "linear_attention",
            "full_attention",
        ],
        "nope_layers": [5],
        "partial_rotary_factor": 0.5,
        "num_experts": 8,
        "moe_intermediate_size": 48,
        "scoring_func": "sigmoid",
        "n_group": 4,
        "topk_group": 2,
        "head_adapter_rank": 8,
        "logit_transform": "softcap",
        "logit_softcap": 15.0,
    },
)

END, BEGIN, IM_START, IM_END = range(len(SPECIAL_TOKENS))

HELD_OUT_SHARE = 0.08  # of the reference's topics, the last by name
HELD_OUT_BYTES = 20_000
ANSWER_BYTES = 300
NOT_DOCUMENTATION = {"site-packages", "dist-packages", "ensurepip", "idlelib", "lib2to3", "test", "tests", "turtledemo"}

PEAK_RATE, FINAL_RATE, WARMUP = 3e-3, 1e-4, 0.03
WEIGHT_DECAY = 0.1
MTP_LOSS_WEIGHT = 0.3
BIAS_SPEED = 1e-3


def training_data() -> tuple[torch.Tensor, str]:
    """Collect all the tokens to train on, one after another, int64, and the text held out.

    Each document comes whole, and its first lines once more as the answer to its name in a chat.
    """
    names = sorted(topics)
    cut = round(len(names) * (1 - HELD_OUT_SHARE))
    held_out = "\n\n".join(topics[name].strip() for name in names[cut:])
    documents = [(name, topics[name].strip()) for name in names[:cut]] + list(docstrings())
    tokens: list[int] = []
    for name, text in documents:
        tokens += [BEGIN, *encode(text), END, *chat(name, text)]
    return torch.tensor(tokens), first_lines(held_out, HELD_OUT_BYTES)


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield name and text of each docstring of the standard library, without repetitions."""
    library = Path(sysconfig.get_paths()["stdlib"])
    seen = set()
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if not NOT_DOCUMENTATION.isdisjoint(parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text and text not in seen:
                    seen.add(text)
                    yield ".".join(parts) if isinstance(node, ast.Module) else node.name, text


def chat(name: str, text: str) -> list[int]:
    """Give the tokens of a question and its answer, as the tokenizer's chat template has them."""
    question = [IM_START, *encode(f"user\n{name}"), IM_END, *encode("\n")]
    answer = [IM_START, *encode(f"assistant\n{first_lines(text, ANSWER_BYTES)}"), IM_END, *encode("\n")]
    return [*question, *answer, END]


def first_lines(text: str, size: int) -> str:
    """Cut text after the last line that ends within `size` bytes of UTF-8, or inside the first line if need be."""
    start = text.encode()[:size].decode(errors="ignore")
    return start if start == text else (start.rpartition("\n")[0] or start).rstrip()


def losses(model: Qwen3NextExt, draft: Qwen3NextExtMTP, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the mean cross entropies, in nats a token, of the model and of its draft.

    `tokens`, [batch, length + 2], are read at `length` positions: the model predicts each next token, the draft, which
    is told that one, the token after it.
    """
    hidden = model.model(tokens[:, :-2], use_cache=False).last_hidden_state
    ahead = draft(model, hidden, tokens[:, 1:-1])
    return (
        cross_entropy(model.head(hidden).flatten(0, 1), tokens[:, 1:-1].flatten()),
        cross_entropy(model.head(ahead).flatten(0, 1), tokens[:, 2:].flatten()),
    )


def held_out_losses(model: Qwen3NextExt, draft: Qwen3NextExtMTP, text: str, length: int) -> tuple[float, float]:
    """Give both losses on text, in windows of `length` positions."""
    device = next(model.parameters()).device
    windows = torch.tensor(encode(text), device=device).unfold(0, length + 2, length)
    with torch.no_grad():
        found = [torch.stack(losses(model, draft, part)) * len(part) for part in windows.split(16)]
    of_model, of_draft = (torch.stack(found).sum(0) / len(windows)).tolist()
    return of_model, of_draft


def learning_rate(progress: float) -> float:
    """Rise linearly over the share WARMUP of the run, then fall along a cosine. `progress` goes from 0 to 1."""
    if progress < WARMUP:
        return PEAK_RATE * progress / WARMUP
    fall = (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP))) / 2
    return FINAL_RATE + (PEAK_RATE - FINAL_RATE) * fall


class LoadBalancer:
    """Shifts each router's biases towards the experts that got too few tokens, without an auxiliary loss.

    Source: Wang et al., Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts (arXiv 2408.15664).
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.loads: dict[Router, torch.Tensor] = {}
        for router in (part for module in modules for part in module.modules() if isinstance(part, Router)):
            router.register_forward_hook(self._count)

    def _count(self, router: Router, _: object, weights: torch.Tensor) -> None:
        self.loads[router] = (weights > 0).sum(0).float()

    def step(self) -> None:
        """Use the loads of the last batch."""
        for router, load in self.loads.items():
            router.e_score_correction_bias += BIAS_SPEED * (load.mean() - load).sign()


def train(arguments: argparse.Namespace) -> None:
    """Train until the given number of steps or minutes is over, whichever comes first, and write the folder."""
    torch.manual_seed(arguments.seed)
    stream, held_out = training_data()
    model = Qwen3NextExt(Qwen3NextExtConfig.from_dict(CONFIG))
    draft = Qwen3NextExtMTP(model.config)
    both = nn.ModuleList([model, draft]).to(arguments.device)
    stream = stream.to(arguments.device)
    balancer = LoadBalancer(both)
    matrices = [weight for weight in both.parameters() if weight.ndim > 1]
    vectors = [weight for weight in both.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=arguments.device != "cpu",
    )
    print(f"{sum(weight.numel() for weight in both.parameters()):,} parameters, {len(stream):,} tokens", flush=True)

    window = torch.arange(arguments.length + 2, device=arguments.device)
    start = last_report = time.monotonic()
    step, progress = 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress)
        places = torch.randint(len(stream) - len(window), (arguments.batch, 1), device=arguments.device)
        of_model, of_draft = losses(model, draft, stream[places + window])
        optimizer.zero_grad()
        (of_model + MTP_LOSS_WEIGHT * of_draft).backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        balancer.step()
        step += 1
        now = time.monotonic()
        progress = max(step / (arguments.steps or math.inf), (now - start) / (60 * arguments.minutes))
        if now - last_report > 5 or progress >= 1:
            last_report = now
            print(f"{now - start:6.0f} s, step {step}: model {of_model:.3f}, MTP {of_draft:.3f}", flush=True)

    figures = (
        (of_model.item(), of_draft.item()),
        held_out_losses(model.eval(), draft.eval(), held_out, arguments.length),
    )
    for name, (a, b) in zip(("last batch", "held out"), figures, strict=True):
        print(f"{name}: model {a:.3f}, MTP {b:.3f} nats a byte")
    tensors = model.state_dict() | {f"mtp.{name}": tensor for name, tensor in draft.state_dict().items()}
    readme = _readme(arguments, step, time.monotonic() - start, figures)
    _write(arguments.out_dir, {name: tensor.cpu() for name, tensor in tensors.items()}, held_out, readme)


def _write(out: Path, tensors: dict[str, torch.Tensor], held_out: str, readme: str) -> None:
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    (partial / "heldout.txt").write_text(held_out, encoding="utf-8")
    (partial / "README.md").write_text(readme, encoding="utf-8")
    write_tokenizer(partial)
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: tuple[dict[str, torch.Tensor], ...] = ({}, {})
    for name, tensor in tensors.items():
        shards[sum(other.nbytes for other in shards[0].values()) > total / 2][name] = tensor.contiguous()
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, partial / file, metadata={"format": "pt"})
    places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    partial.rename(out)


def _readme(
    arguments: argparse.Namespace, steps: int, seconds: float, figures: tuple[tuple[float, float], tuple[float, float]]
) -> str:
    (model, mtp), (held_model, held_mtp) = figures
    options = {name: value for name, value in vars(arguments).items() if name != "out_dir" and value is not None}
    command = " ".join(
        ["python tests/models/qwen3_next_ext/train.py", arguments.out_dir.name]
        + [f"--{name} {value}" for name, value in options.items()]
    )
    return f"""# A tiny Qwen3-Next-Ext, trained

Byte-level, in float32, with every extension on: a layer without rotary, a sigmoid router with groups and biases, a head
adapter, a soft cap on the logits, and a multi-token-prediction head (`mtp.*`).

- Data: CPython {platform.python_version()}'s language reference (`pydoc_data.topics`), and the docstrings of its
  standard library. Copyright Python Software Foundation, licence PSF-2.0. The last {HELD_OUT_SHARE:.0%} of the
  reference's topics were not trained on; `heldout.txt` is the start of these.
- Command: `{command}`
- Versions: Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}
- Training: {steps} steps of {arguments.batch} x {arguments.length} bytes in {seconds:.0f} s

| cross entropy, nats a byte | next byte (model) | byte after next (MTP head, told the next) |
|---|---|---|
| last batch | {model:.3f} | {mtp:.3f} |
| `heldout.txt` | {held_model:.3f} | {held_mtp:.3f} |
"""


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a tiny Qwen3-Next-Ext checkpoint.")
    parser.add_argument("out_dir", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--minutes", type=float, default=5.0, help="training ends after so long (default 5)")
    parser.add_argument("--steps", type=int, help="training ends after so many (default: no limit)")
    parser.add_argument("--batch", type=int, default=96, help="sequences a step (default 96)")
    parser.add_argument("--length", type=int, default=256, help="bytes a sequence (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    arguments = parser.parse_args()
    if arguments.out_dir.exists():
        parser.error(f"{arguments.out_dir}: exists already; name another folder, or remove it")
    train(arguments)


if __name__ == "__main__":
    main()
