"""Let a reference model generate, and tell how long it took. It runs by itself, in an engine's environment.

    python generate_script.py JOB

JOB is a file of JSON as reference_script.py reads it. The first line printed says what has been loaded, or the problem.
Then each line read, `prompts` of one length and a number of `tokens`, is answered by a line: the seconds to the `first`
token of all of them, in the mean `between` two, and in `total`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import torch
import transformers
from reference_script import ReferenceProblem, find  # type: ignore[import-not-found]  # sys.path has it

sys.path.pop()  # modules there have the names of others


class Clock:
    """Notes when each step has its logits."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take logits as they are, once they are there."""
        scores[:, 0].tolist()  # on a GPU they are only promised until somebody looks
        self.times.append(time.perf_counter())
        return scores


def generate(model: Any, prompts: list[list[int]], tokens: int) -> dict[str, float]:  # noqa: ANN401
    """Continue prompts of one length by so many tokens, all at once."""
    clock = Clock()
    ids = torch.tensor(prompts, device=model.device)
    started = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        logits_processor=transformers.LogitsProcessorList([clock]),
    )
    total = time.perf_counter() - started
    return {
        "first": clock.times[0] - started,
        "between": (clock.times[-1] - clock.times[0]) / max(tokens - 1, 1),
        "total": total,
    }


def load(job: dict[str, Any]) -> tuple[str, Any]:
    """Load the reference model, with the attention that Transformers takes by itself."""
    name, loaded, _ = find(job)
    model = loaded().eval().to(job["device"])
    if not hasattr(model, "generate"):
        raise ReferenceProblem(f"{name} has no `generate`")
    model.set_attn_implementation("sdpa")
    return name, model


def main() -> None:
    """Load, then answer lines until there are no more."""
    transformers.logging.set_verbosity_error()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path.extend(job["paths"])
    printed, sys.stdout = sys.stdout, sys.stderr  # what a model's own code prints is no answer
    try:
        name, model = load(job)
        said = {"reference": name, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    except ReferenceProblem as problem:
        said = {"problem": str(problem)}
    print(json.dumps(said), file=printed, flush=True)
    for line in [] if "problem" in said else sys.stdin:
        with torch.inference_mode():
            print(json.dumps(generate(model, **json.loads(line))), file=printed, flush=True)


if __name__ == "__main__":
    main()
