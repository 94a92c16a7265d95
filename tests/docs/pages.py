"""The project's pages: their command blocks, their links, and what they name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
TOPS = (".github", "ci", "overlay", "patches", "tests")
LANGUAGES = {"sh", "python", "toml", "text", "mermaid", "diff"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block of commands: its page, the line it begins on, and its commands."""

    page: str
    line: int
    commands: Sequence[str]


def pages() -> list[str]:
    """Return the paths of all pages; an environment in the checkout has pages of others."""
    pages = [*ROOT.glob("*.md"), *(page for top in TOPS for page in (ROOT / top).rglob("*.md"))]
    return sorted(page.relative_to(ROOT).as_posix() for page in pages)


def tokens(page: str) -> list[Token]:
    """Return a page's Markdown tokens."""
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))


def command_blocks(page: str) -> Iterator[Block]:
    """Yield a page's blocks of commands."""
    for token in tokens(page):
        if token.type == "fence" and token.info == "sh":
            assert token.map is not None
            yield Block(page=page, line=token.map[0] + 1, commands=token.content.splitlines())


def diff(page: str) -> str:
    """Return a page's only diff."""
    (block,) = (token.content for token in tokens(page) if token.type == "fence" and token.info == "diff")
    return block


def code_spans(page: str) -> Iterator[str]:
    """Yield what stands between backticks in a page's text."""
    for token in tokens(page):
        yield from (child.content for child in token.children or () if child.type == "code_inline")


def links(page: str) -> Iterator[str]:
    """Yield where a page's links lead."""
    for token in tokens(page):
        yield from (str(child.attrs["href"]) for child in token.children or () if child.type == "link_open")


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and GitLab make them."""
    found = tokens(page)
    headings = (found[n + 1].content for n, token in enumerate(found) if token.type == "heading_open")
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading, but for its head."""
    found = tokens(page)
    start = next(n for n, token in enumerate(found) if token.type == "inline" and token.content == heading)
    table: list[list[str]] = []
    for token in found[start:]:
        if token.type == "tr_open":
            table.append([])
        elif token.type == "inline" and table:
            table[-1].append(token.content)
        elif token.type == "table_close":
            break
    return table[1:]
