"""A comparison with a reference model: on a terminal, and as an HTML page made from comparison.html.j2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from overlay_tools import console
from overlay_tools.proving.compare.comparison import Comparison
from overlay_tools.proving.compare.engine import TOP
from overlay_tools.proving.compare.modules import Module
from overlay_tools.proving.compare.statistics import Row
from overlay_tools.report.html import render

_HEADS = ("computed", "values", "mean", "p99", "max", "KL", "max KL", "same tokens", "decided", "tied", "notes")
_ABOUT = {
    False: f"Differences of logprobs and KL in nats; KL over the {TOP} likeliest tokens and all others as one.",
    True: "Differences of the values of vectors, as parts of the vectors' mean length.",
}


def print_comparison(comparison: Comparison) -> None:
    """Print what was compared, a line for each way of computing, and where the two part."""
    console.table(comparison.checkpoint, facts(comparison))
    console.grid(_HEADS, [line for row in comparison.rows for line in lines(row)])
    console.line(f"  {_ABOUT[comparison.described.vectors]}")
    for sentence in faults(comparison):
        console.line(sentence, style="red")
    console.line(verdict(comparison), style="green" if comparison.same else "bold red")


def render_comparison(comparison: Comparison) -> str:
    """Return the page."""
    return render(
        "comparison.html.j2",
        comparison=comparison,
        verdict=verdict(comparison),
        facts=facts(comparison),
        heads=_HEADS,
        about=_ABOUT[comparison.described.vectors],
        rows=[(bool(row.problems), lines(row)) for row in comparison.rows],
        faults=faults(comparison),
        modules=[(module, module_cells(module)) for module in _compared(comparison)],
    )


def verdict(comparison: Comparison) -> str:
    """Return the outcome in a sentence."""
    does = "serves" if comparison.same else "does not serve"
    return f"The engine {does} what the reference model computes."


def faults(comparison: Comparison) -> list[str]:
    """Return what is out of bounds and where the two part, a sentence each."""
    said = [f"{row.way}: {problem}." for row in comparison.rows for problem in row.problems]
    if comparison.difference is not None:
        said.append(comparison.difference.words)
    return [*said, *filter(None, [comparison.not_located])]


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what was compared with what."""
    described = comparison.described
    lengths = [len(prompt.tokens) for prompt in described.prompts]
    of = str(lengths[0]) if len({*lengths}) == 1 else f"{min(lengths)} to {max(lengths)}"
    pictures = sum(len(prompt.images) for prompt in described.prompts)
    seen = f"not compared: {described.unseen}" if described.unseen else str(pictures) if pictures else ""
    return [
        ("engine", f"sglang {comparison.release} on the {comparison.device}, {comparison.dtype}"),
        ("reference", f"{described.reference}, float32, {described.runs_in}"),
        ("prompts", f"{len(lengths)}, of {of} tokens"),
        *[("pictures", seen)] * bool(seen),
    ]


def lines(row: Row) -> list[list[str]]:
    """Return the cells of a way of computing, and below them those of Transformers in the engine's dtype."""
    own = [] if row.own is None else [[*_cells(replace(row, way="  Transformers", distance=row.own)), ""]]
    return [[*_cells(row), ", ".join(_notes(row))], *own]


def module_cells(module: Module) -> list[str]:
    """Return the cells of a module: its error, how large that may be, and what else to know."""
    if module.error is None:
        return ["", "", "the engine calls none of this name" if module.engine is None else "cannot be compared"]
    return [f"{module.error:.1e}", f"{module.limit:.1e}", ""]


def _compared(comparison: Comparison) -> Sequence[Module]:
    return comparison.difference.modules if comparison.difference is not None else ()


def _cells(row: Row) -> list[str]:
    of = row.distance
    values = (of.mean, of.p99, of.maximum, of.kl, of.most_kl)
    figures = ["" if value is None else f"{value:.1e}" for value in values]
    tokens = [f"{of.same} of {of.tokens}", str(of.decided), str(of.tied)] if of.tokens else ["", "", ""]
    return [row.way, str(of.values), *figures, *tokens]


def _notes(row: Row) -> list[str]:
    notes = [f"{row.cached} tokens cached"] if row.cached else []
    if not row.cached and row.way == "from the cache":
        notes = ["no token was cached" if row.cached == 0 else "the engine does not tell what was cached"]
    notes += [f"{row.drafted:.2f} tokens a step"] if row.drafted is not None else []
    return notes + ([f"{row.left_out} left out, where experts are tied"] if row.left_out else [])
