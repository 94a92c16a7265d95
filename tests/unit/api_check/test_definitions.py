"""Definitions that are parsed when they are asked for: the same names and nodes as in the whole file, or none of it."""

from __future__ import annotations

import ast
import textwrap

import pytest
from overlay_tools.api_check.bindings import Declared, Imported, collect_bindings
from overlay_tools.api_check.definitions import LazyBindings, bind_definitions, cut_module, parse_around

MODULE = '''\
"""A text
def of_no_module():
"""
import os
# def commented(): ...
@decorated(
    1,
)
@twice
class Late(
    Base,
):
    """A text

    of several lines.
    """

# at the margin
    x: int = 1

    def method(self):
        self.y = """
    def no_method(): ...
    """


if os.name:
    def either():
        return 1
else:
    either = None

def größe():
    return 1


async def later(a, *, b=1) -> int:
    return a
value = later
'''


def shown(binding: object) -> str:
    if isinstance(binding, Declared):
        binding = binding.annotation
    return ast.dump(binding, include_attributes=True) if isinstance(binding, ast.AST) else repr(binding)


def lazy(text: str) -> LazyBindings | None:
    data = text.encode()
    cut = cut_module(data)
    if cut is None:
        return None
    return bind_definitions(cut, collect_bindings(cut.rest.body, "p")[0], "p", lambda: ast.parse(data))


def test_the_names_and_nodes_are_those_of_the_whole_file() -> None:
    text = MODULE.replace('"""A text\ndef of_no_module():\n"""\n', "")
    found, (whole, _) = lazy(text), collect_bindings(ast.parse(text).body, "p")
    assert found is not None
    assert set(found) == set(whole) == {"os", "Late", "either", "größe", "later", "value"}
    for name, bindings in whole.items():
        assert [shown(item) for item in found[name]] == [shown(item) for item in bindings]
    assert found["os"] == [Imported(module="os", name=None)]
    assert found.get("Late") is found["Late"]
    assert found.get("of_no_module") is None
    assert "method" not in found


@pytest.mark.parametrize(
    "text",
    [
        MODULE,  # a definition in a text
        "def f():\n    pass\ndef f():\n    pass\n",
        "f = 1\ndef f():\n    pass\n",
        "if x:\n    def f(): ...\ndef f(): ...\n",
        "def f():\n    x = '''\nno_code\n    '''\n",
        "def f(\na):\n    pass\n",
        "@overload\ndef f(): ...\n",
        "def f():\r\n    pass\r\n",
        "x = (\ndef\n",
    ],
)
def test_what_is_not_certain_is_not_cut(text: str) -> None:
    assert lazy(text) is None


def test_a_definition_that_cannot_be_parsed_by_itself_is_taken_from_the_whole_file() -> None:
    text = "def f(): return g(\n    1)\nx = 1\n"
    found = lazy(text)
    assert found is not None
    broken = cut_module(text.encode())
    assert broken is not None
    cut = type(broken)(rest=broken.rest, definitions={"f": (0, b"def f(\n")})
    again = bind_definitions(cut, {}, "p", lambda: ast.parse(textwrap.dedent(text)))
    assert [shown(item) for item in again["f"]] == [shown(item) for item in found["f"]]


def expressions(tree: ast.AST, line: int) -> list[str]:
    found = (node for node in ast.walk(tree) if isinstance(node, ast.expr) and node.lineno == line)
    return sorted(ast.dump(node, include_attributes=True) for node in found)


def test_what_is_on_a_line_is_found_without_the_rest() -> None:
    text = MODULE.replace('"""A text\ndef of_no_module():\n"""\n', "")
    plain = text.replace(
        '"""\n    def no_method(): ...\n    """', "1\n\n    @twice\n    def other(self):\n        return 2"
    )
    for module in (MODULE, text, plain):
        whole = ast.parse(module)
        for line in range(1, module.count("\n") + 1):
            assert expressions(parse_around(module.encode(), {line}, "it"), line) == expressions(whole, line)
    left = ast.unparse(parse_around(plain.encode(), {plain[: plain.index("return 2")].count("\n") + 1}, "it"))
    assert "return 2" in left
    assert "self.y" not in left
    assert "return a" not in left


def test_a_text_that_reaches_over_a_definition_is_parsed_as_a_whole() -> None:
    text = 'class A:\n    x = """\n    def no_method(): ...\n    """\n    def method(self):\n        return 1\n'
    assert ast.unparse(parse_around(text.encode(), {6}, "it")) == ast.unparse(ast.parse(text))
    assert ast.unparse(parse_around(b"def f(): return 1\nx = 'def f(): y'\n", {2}, "it")) == "pass\nx = 'def f(): y'"
