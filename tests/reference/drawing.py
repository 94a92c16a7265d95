"""Generated pictures with questions about them: name a colour and a shape, count squares.

Drawn with torch, many at once, so that training needs nothing else. Questions are written with the tokens that all
checkpoints with pictures have.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reference.checkpoints import PICTURE_TOKENS, SPECIAL_TOKENS, VOCAB_SIZE
from reference.greedy import encode

END, BEGIN, IM_START, IM_END = range(len(SPECIAL_TOKENS))
START, PICTURE, STOP = range(VOCAB_SIZE, VOCAB_SIZE + len(PICTURE_TOKENS))

KINDS = {"name": 0.15, "count": 0.4, "several": 0.4, "repeat": 0.05}  # of questions, and their share of the training
SIZES = ((64, 64), (80, 48), (48, 80), (96, 64), (64, 96), (57, 71), (90, 75), (48, 48), (112, 96))  # width, height
HELD_OUT_SEED = 1_000_000  # training draws from seeds below

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 60, 220),
    "yellow": (240, 215, 40),
    "purple": (140, 40, 170),
    "orange": (245, 135, 20),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
SHAPES = ("square", "circle", "triangle", "cross")
CELLS = 3  # a picture has this many times as many places for things
MOST_SQUARES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """What is drawn: in the middle of the picture if `cell` is None, else in one of its places. Sizes are relative."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A question, `pictures` (the things of each) and the answer. `first` tells whether the pictures come first."""

    question: str
    answer: str
    pictures: list[list[Thing]]
    first: bool


def make_task(stream: random.Random, kind: str) -> Task:
    """Draw up a task of `kind`: "name", "count", "several" (name one of some pictures) or "repeat" (no picture)."""
    first = stream.random() < 0.5
    if kind == "count":
        count = stream.randint(0, MOST_SQUARES)
        others = stream.randint(0 if count else 1, 2)
        cells = stream.sample(range(CELLS * CELLS), count + others)
        shapes = ["square"] * count + [stream.choice(SHAPES[1:]) for _ in range(others)]
        things = [_in_cell(stream, shape, cell) for shape, cell in zip(shapes, cells, strict=True)]
        return Task(question="How many squares?", answer=str(count), pictures=[things], first=first)
    if kind == "repeat":
        words = f"{stream.choice(list(COLOURS))} {stream.choice(SHAPES)}"
        return Task(question=f"Repeat: {words}", answer=words, pictures=[], first=first)
    number = stream.randint(2, 3) if kind == "several" else 1
    things = [_in_middle(stream) for _ in range(number)]
    asked = stream.randrange(number)
    question = "What is this?" if kind == "name" else f"What is picture {asked + 1}?"
    answer = f"{things[asked].colour} {things[asked].shape}"
    return Task(question=question, answer=answer, pictures=[[thing] for thing in things], first=first)


def make_tasks(seed: int, count: int, kinds: Sequence[str]) -> list[Task]:
    """Draw up tasks, the same for a seed on every run."""
    stream = random.Random(seed)
    weights = [KINDS[kind] for kind in kinds]
    return [make_task(stream, kind) for kind in stream.choices(kinds, weights, k=count)]


def prompt(task: Task, picture_tokens: int = 1) -> list[int]:
    """Give the tokens of a question as the chat template has them, each picture's token so many times."""
    pictures = [START, *[PICTURE] * picture_tokens, STOP] * len(task.pictures)
    question = encode(task.question)
    content = [*pictures, *question] if task.first else [*question, *pictures]
    return [IM_START, *encode("user\n"), *content, IM_END, *encode("\n"), IM_START, *encode("assistant\n")]


def _in_cell(stream: random.Random, shape: str, cell: int) -> Thing:
    x, y = ((place + 0.5 + stream.uniform(-0.08, 0.08)) / CELLS for place in (cell % CELLS, cell // CELLS))
    radius = stream.uniform(0.3, 0.4) / CELLS
    return Thing(shape=shape, colour=stream.choice(list(COLOURS)), x=x, y=y, radius=radius)


def _in_middle(stream: random.Random) -> Thing:
    radius = stream.uniform(0.15, 0.35)
    x, y = (0.5 + stream.uniform(-1, 1) * (0.45 - radius) for _ in range(2))
    return Thing(shape=stream.choice(SHAPES), colour=stream.choice(list(COLOURS)), x=x, y=y, radius=radius)


def draw(
    pictures: Sequence[Sequence[Thing]], width: int, height: int, generator: torch.Generator, device: str = "cpu"
) -> torch.Tensor:
    """Draw pictures on grounds of a middle grey with some noise: [pictures, 3, height, width], whole numbers to 255.

    Edges are smooth over about a pixel. A thing is as wide as high, whatever the sides of the picture.
    """
    count = len(pictures)
    ground = torch.randint(105, 185, (count, 1, 1, 1), generator=generator)
    noise = torch.randn(count, 3, height, width, generator=generator) * 6
    canvas = (ground + noise).to(device)
    ys = (torch.arange(height, device=device) + 0.5)[:, None]
    xs = torch.arange(width, device=device) + 0.5
    short = min(width, height)
    for layer in range(max((len(things) for things in pictures), default=0)):
        where = [i for i, things in enumerate(pictures) if layer < len(things)]
        things = [pictures[i][layer] for i in where]
        numbers = torch.tensor([[t.x * width, t.y * height, t.radius * short] for t in things], device=device)
        x, y, radius = numbers.T[:, :, None, None]
        dx, dy = xs - x, ys - y
        inside = torch.stack(
            [
                0.9 * radius - torch.maximum(dx.abs(), dy.abs()),
                radius - torch.hypot(dx, dy),
                torch.minimum(0.8 * radius - dy, (dy + radius) * 0.45 - dx.abs() * 0.9),
                torch.maximum(
                    torch.minimum(radius - dx.abs(), 0.3 * radius - dy.abs()),
                    torch.minimum(radius - dy.abs(), 0.3 * radius - dx.abs()),
                ),
            ]
        )
        kinds = torch.tensor([SHAPES.index(t.shape) for t in things], device=device)
        cover = (inside[kinds, torch.arange(len(things), device=device)] + 0.5).clamp(0, 1)[:, None]
        colours = torch.tensor([COLOURS[t.colour] for t in things], device=device)[:, :, None, None]
        rows = torch.tensor(where, device=device)
        canvas[rows] = canvas[rows] * (1 - cover) + colours * cover
    return canvas.round().clamp(0, 255)
