"""Find a seed for the random weights of a case with which rounding decides none of its reference model's answers.

    python tests/reference/seeds.py NAME

NAME is that of a case in `tests/models/`; all of its sets are tried. The seed is printed, for `seed` in the case, and a
matrix of the second layer's MLP, for its `updates`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import transformers

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("tests", "ci")]

from reference.cases import cases, make_checkpoint
from reference.greedy import PROMPTS, answers, is_decided

MOST = 200


def decides(name: str, seed: int) -> bool:
    """Tell whether a seed leaves no step of a case nearly a tie, in any of its sets."""
    for changes in cases()[name].sets.values():
        with TemporaryDirectory() as folder:
            make_checkpoint(name, Path(folder), changes, seed)
            if not all(is_decided([answer]) for answer in answers(name, Path(folder), PROMPTS)):
                return False
    return True


def matrix(name: str, seed: int) -> str:
    """Name the last matrix in a case's second layer that is not of attention: an expert's, if there are some."""
    case = cases()[name]
    assert case.weights is not None
    drawn = case.weights(case.config, seed)
    found = [key for key, value in drawn.items() if "attn" not in key and value.ndim == 2]
    second = [key for key in found if next(filter(str.isdigit, key.split(".")), "") == "1"]
    return max(second, key=lambda key: (".experts." in key, key))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Find a seed for a case's random weights.")
    parser.add_argument("name", choices=[name for name, case in cases().items() if case.weights is not None])
    name = parser.parse_args().name
    transformers.logging.disable_progress_bar()
    seed = next((seed for seed in range(MOST) if decides(name, seed)), None)
    if seed is None:
        sys.exit(f"{name}: each seed below {MOST} leaves a step nearly a tie; make its logits larger")
    print(seed, matrix(name, seed))


if __name__ == "__main__":
    main()
