"""Which module is the first that differs, given how far all of them are apart."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from overlay_tools.proving.compare.modules import first_difference

ORDER = [
    "embed_tokens",
    *(
        f"layers.{n}{part}"
        for n in range(3)
        for part in (".input_layernorm", ".self_attn.o_proj", ".self_attn", ".mlp.gate", ".mlp.experts", ".mlp", "")
    ),
    "norm",
    "logits",
]


def rows(far: dict[str, float | None], own: float | None = None) -> list[dict[str, Any]]:
    """Return a row for each module, where those not named in `far` agree but for rounding."""
    return [{"name": name, "engine": name, "error": far.get(name, 1e-6), "own": own} for name in ORDER]


def since(name: str) -> dict[str, float | None]:
    """Let all modules from one on differ."""
    return dict.fromkeys(ORDER[ORDER.index(name) :], 0.1)


@pytest.mark.parametrize("name", ORDER)
def test_the_first_that_differs_is_named(name: str) -> None:
    found = first_difference(rows(since(name)))
    assert found.module is not None
    assert found.part is not None
    assert found.part.name == name
    assert found.module.name == re.sub(r"(mlp|self_attn)\..*", r"\1", name)
    assert found.layer == (".".join(name.split(".")[:2]) if name.startswith("layers") else "")
    assert found.module.name in found.words
    assert name.rpartition(".")[2] in found.words


def test_a_module_that_computes_the_same_in_another_way_is_passed_over() -> None:
    different: dict[str, float | None] = {"embed_tokens": 0.5, "layers.0.mlp.experts": 0.9, "layers.2.mlp.experts": 0.9}
    found = first_difference(rows(since("logits") | different))
    assert found.module is not None
    assert found.module.name == "logits"


def test_a_router_that_gives_something_else_in_every_layer_is_passed_over() -> None:
    different: dict[str, float | None] = {f"layers.{n}.mlp.gate": 1.0 for n in range(3)}
    found = first_difference(rows(since("layers.1.mlp.experts") | different))
    assert found.part is not None
    assert found.part.name == "layers.1.mlp.experts"


def test_a_layer_whose_modules_agree_is_named_itself() -> None:
    found = first_difference(rows(since("layers.1")))
    assert found.words.startswith("The first layer that differs is layers.1, and no module in it does")


def test_what_cannot_be_compared_is_passed_over() -> None:
    found = first_difference(rows(since("layers.1.self_attn") | {"layers.1.self_attn": None}))
    assert found.words.startswith("The first module that differs is layers.1.mlp, in it gate: by 0.1")


def test_nothing_is_named_where_nothing_differs() -> None:
    found = first_difference(rows({}))
    assert found.module is None
    assert "No module differs" in found.words


def test_no_number_differs() -> None:
    found = first_difference(rows({"logits": math.inf}))
    assert found.module is not None


def test_in_another_dtype_a_module_may_be_twice_as_far_as_transformers() -> None:
    assert first_difference(rows(dict.fromkeys(ORDER, 0.019), own=0.01)).module is None
    assert first_difference(rows(dict.fromkeys(ORDER, 0.021), own=0.01)).module is not None
