from __future__ import annotations

import textwrap

import pytest

from unit.api_check.derived import ROW_FILE, UPSTREAM, changed, check, misfits
from unit.conftest import Miniature

LAYERS = "sglang/srt/layers/__init__.py"
HEAD = "from sglang.srt.layers import head\n"
VERSION = "import sglang\nfrom packaging.version import Version\n"
INSPECT = "import inspect\nfrom sglang.srt.layers.head import make_head\n"


def test_each_reference_is_listed_with_its_line(ours: Miniature) -> None:
    found = check(ours)
    assert misfits(found) == []
    references = {(item.kind, item.what): item.where for item in found}
    file = "overlay/sglang/srt/models/ours.py"
    assert references["import", "sglang.srt.layers.router.Kind"] == f"{file}:3"
    assert references["override", "OursForCausalLM.forward"] == f"{file}:19"
    assert references["call", "route: Router()"] == f"{file}:8"
    assert references["call", "route: block.router.bind()"] == f"{file}:9"
    assert references["call", "OursForCausalLM.describe: Info()"] == f"{file}:28"
    assert references["attribute", "OursForCausalLM.__init__: layers.head.SCALE"] == f"{file}:17"
    assert references["attribute", "OursForCausalLM.__init__: self.processor ="] == f"{file}:17"
    assert references["row", "OursForCausalLM: base BaseForCausalLM"] == f"{ROW_FILE}:1"
    assert ("attribute", "OursForCausalLM.__init__: self.own =") not in references  # nothing else uses it


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        (
            changed("def make_head", "def build_head", "sglang/srt/layers/head.py"),
            "import sglang.srt.layers.make_head: sglang.srt.layers has no `make_head`",
        ),
        (
            changed("class Info", "class Details"),
            "import sglang.srt.models.base.Info: sglang.srt.models.base has no `Info`",
        ),
        (
            changed("class Kind", "class _K", "sglang/srt/layers/router.py")
            | {"sglang/srt/kinds.py": "class Kind:\n    SOFTMAX = 1\n"},
            "import sglang.srt.layers.router.Kind: sglang.srt.layers.router has no `Kind`; moved to sglang.srt.kinds?",
        ),
        (
            {"sglang/srt/layers/router.py": "", "sglang/srt/routing.py": UPSTREAM["sglang/srt/layers/router.py"]},
            "import sglang.srt.layers.router.Router: sglang.srt.layers.router has no `Router`; moved to sglang.srt.ro",
        ),
        (
            changed("SOFTMAX", "SOFT_MAX", "sglang/srt/layers/router.py"),
            "attribute route: Kind.SOFTMAX: Kind has no `SOFTMAX`; now `SOFT_MAX`?",
        ),
        (
            changed("SCALE =", "SCALES =", "sglang/srt/layers/head.py"),
            "attribute route: head.SCALE: sglang.srt.layers.head has no `SCALE`; now `SCALES`?",
        ),
        (
            changed("bias=None", "biases=None", "sglang/srt/layers/router.py"),
            "call route: Router(): sglang.srt.layers.router.Router: got an unexpected keyword",
        ),
        (
            changed("(self, backend)", "(self, backend, kind)", "sglang/srt/layers/router.py"),
            "call route: block.router.bind(): sglang.srt.layers.router.bind: missing a required argument: 'kind'",
        ),
        (
            changed("layers: int\n", "layers: int\n            groups: int\n"),
            "call OursForCausalLM.describe: Info(): sglang.srt.models.base.Info: missing a required",
        ),
        (
            changed("config, quant_config=None, prefix", "config, server, quant_config=None, prefix"),
            "call OursForCausalLM.__init__: super().__init__(): sglang.srt.models.base.__init__: "
            "`quant_config` is passed where it takes `server`; it takes (config, server, quant_config=, prefix=)",
        ),
        (
            changed('quant_config=None, prefix=""', 'prefix="", quant_config=None'),
            "override OursForCausalLM.__init__: upstream's argument 2 is `prefix`, here it is `quant_config`",
        ),
        (
            changed("input_ids, positions", "input_ids, positions, batch"),
            "override OursForCausalLM.forward: upstream also takes `batch`",
        ),
        (
            changed("input_ids, positions", "input_ids, positions=None"),
            "override OursForCausalLM.forward: `positions` is required here and optional upstream",
        ),
        (
            changed("input_ids, positions", "input_ids"),
            "override OursForCausalLM.forward: upstream does not pass `positions`",
        ),
        (
            changed("input_ids, positions", "input_ids, places"),
            "override OursForCausalLM.forward: upstream's argument 2 is `places`, here it is `positions`",
        ),
        (
            changed("def forward", "async def forward"),
            "override OursForCausalLM.forward: only one of ours and upstream's is async",
        ),
        (
            changed("def describe", "def describe_experts"),
            "override OursForCausalLM.describe: BaseForCausalLM has no `describe`; now `describe_experts`?",
        ),
        (
            changed("@classmethod", "@staticmethod"),
            "override OursForCausalLM.describe: it is a classmethod here and a staticmethod upstream",
        ),
        (
            changed("            @property\n", ""),
            "override OursForCausalLM.kinds: it is a property here and a method upstream",
        ),
        (
            changed("self.config", "self.settings"),
            "attribute OursForCausalLM.__init__: self.config: OursForCausalLM has no `config`",
        ),
        (
            changed("self.processor", "self.head"),
            "attribute OursForCausalLM.__init__: self.processor =: BaseForCausalLM has no `processor`",
        ),
        (changed("self.router", "self.gate"), "attribute route: block.router =: Block has no `router`"),
        (changed("def forward", "def run"), "override OursForCausalLM.forward: BaseForCausalLM has no `forward`"),
        (
            changed("experts: int = 0", "experts: int = 0\n            groups: int = field(repr=False)"),
            "call OursForCausalLM.describe: Info(): sglang.srt.models.base.Info: missing a required argument: 'groups'",
        ),
        (
            {LAYERS: "if x:\n    def make_head(x): ...\nelse:\n    from .head import make_head\n"},
            "call OursForCausalLM.__init__: make_head(): sglang.srt.layers.make_head: got an unexpected keyword",
        ),
        (
            changed("EntryClass =", "Entry ="),
            "row OursForCausalLM: base BaseForCausalLM: upstream has no model BaseForCausalLM",
        ),
    ],
)
def test_a_change_of_upstream_is_reported(ours: Miniature, upstream: dict[str, str], expected: str) -> None:
    assert any(text.startswith(expected) for text in misfits(check(ours, upstream)))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ('hasattr(model, "forward")', False),
        ("getattr(\n    model, 'forward', None\n)", False),
        ('hasattr(model, "forward_split")', True),
        ('print(model, "forward")', True),
    ],
)
def test_what_upstream_asks_any_model_for_need_not_be_its_base_s(ours: Miniature, asked: str, found: bool) -> None:
    upstream = changed("def forward", "def run") | {"sglang/srt/runner.py": f"{asked}\n"}
    misfit = "override OursForCausalLM.forward: BaseForCausalLM has no `forward`"
    assert any(text.startswith(misfit) for text in misfits(check(ours, upstream))) == found


@pytest.mark.parametrize(
    "layers",
    [
        "from sglang.srt.layers.head import make_head\n",
        "from .head import make_head\n",
        "from sglang.srt.layers.head import make_head as make_head\n",
        HEAD + "make_head = head.make_head\n",
        "try:\n    from fast import make_head\nexcept ImportError:\n    from sglang.srt.layers.head import make_head\n",
        "import sys\nif sys.argv:\n    from sglang.srt.layers.head import make_head\nelse:\n    make_head = None\n",
        "with open('x') as f:\n    def make_head(config, scale):\n        pass\n",
        "def make_head(config):\n    pass\ndef make_head(config, scale):\n    pass\n",
        "def make_head(config):\n    pass\nwith open('x'):\n    def make_head(config, scale):\n        pass\n",
        "from typing import overload\nfrom .head import make_head\n@overload\ndef make_head(config): ...\n",
        "def __getattr__(name):\n    return 1\n",
        "from fast import *\n",
    ],
)
def test_a_name_is_followed_to_where_it_is_defined(ours: Miniature, layers: str) -> None:
    assert misfits(check(ours, {LAYERS: layers})) == []


def test_a_star_import_takes_only_what_all_lists(ours: Miniature) -> None:
    listed = UPSTREAM["sglang/srt/layers/head.py"] + "\n\n        __all__ = ['SCALE']\n"
    assert misfits(check(ours, {"sglang/srt/layers/head.py": listed})) == [
        "import sglang.srt.layers.make_head: sglang.srt.layers has no `make_head`; moved to sglang.srt.layers.head?"
    ]


def test_a_name_imported_for_type_checkers_alone_is_missing(ours: Miniature) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sglang.srt.layers.head import make_head\n"
    assert misfits(check(ours, {LAYERS: text})) == [
        "import sglang.srt.layers.make_head: sglang.srt.layers has no `make_head`; moved to sglang.srt.layers.head?"
    ]


def test_a_folder_without_init_is_a_package(ours: Miniature) -> None:
    ours.write(
        "overlay/sglang/srt/models/other.py", "import sglang.srt.models.base\nfrom sglang.srt.models import base\n"
    )
    assert misfits(check(ours)) == []
    ours.write(
        "overlay/sglang/srt/models/other.py", "import sglang.srt.model.base\nfrom sglang.srt.models import bass\n"
    )
    assert misfits(check(ours)) == [
        "import sglang.srt.model.base: there is no module sglang.srt.model.base",
        "import sglang.srt.models.bass: sglang.srt.models has no `bass`",
    ]


def test_bases_are_followed_through_files_of_upstream_and_of_the_overlay(ours: Miniature) -> None:
    grandchild = """\
        from sglang.srt.models.ours import OursForCausalLM

        class Grandchild(OursForCausalLM):
            def forward(self, input_ids):
                return self.block.router.top_k
        """
    ours.write("overlay/sglang/srt/models/other.py", textwrap.dedent(grandchild))
    middle = """\
        from sglang.srt.models.deep import Deep

        class Block:
            pass

        class Info:
            def __init__(self, layers, experts): ...

        class BaseForCausalLM(Deep):
            def describe(cls, config): ...
            describe = classmethod(describe)

        EntryClass = [BaseForCausalLM]
        """
    upstream = {
        "sglang/srt/models/base.py": middle,
        "sglang/srt/models/deep.py": UPSTREAM["sglang/srt/models/base.py"].replace("BaseForCausalLM", "Deep"),
    }
    found = check(ours, upstream)
    assert "override Grandchild.forward: upstream also takes `positions`" in misfits(found)
    assert "override OursForCausalLM.forward" in [f"{item.kind} {item.what}" for item in found if not item.problem]
    assert ("attribute", "Grandchild.forward: self.block.router.top_k") in [(item.kind, item.what) for item in found]


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    from sglang.srt.new import thing\nexcept ImportError:\n    thing = None\n",
        "try:\n    from sglang.srt.layers.head import thing\nexcept (ImportError, AttributeError):\n    thing = None\n",
        HEAD + "if hasattr(head, 'thing'):\n    head.thing(1)\n",
        HEAD + "thing = head.thing if hasattr(head, 'thing') else head.SCALE\n",
        HEAD + "thing = hasattr(head, 'thing') and head.thing\n",
        HEAD + "thing = not hasattr(head, 'thing') or head.thing\n",
        HEAD + "if hasattr(head, 'SCALE'):\n    pass\nelse:\n    head.thing()\n",
        HEAD + "thing = getattr(head, 'thing', None)\n",
        "import importlib\nif hasattr(*'ab'):\n    getattr(*'ab')\nimportlib.import_module(name='a')\n",
        HEAD + "if hasattr(head, 'thing') and hasattr(head, 'SCALE'):\n    head.thing()\n",
        "from sglang.srt.layers.router import Router\nclass R(Router):\n    def f(self):\n        self.extra = 1\n"
        "R.f\ngetattr(R(1), 'extra', 0)\n",
        HEAD + "def f(heads):\n    return [head.thing for head in heads]\n",
        "from sglang.srt.layers.router import Router\nRouter.bind(Router(1), 2)\n",
        HEAD + "try:\n    head.thing()\nexcept AttributeError:\n    pass\n",
        VERSION + HEAD + "if Version(sglang.__version__) >= Version('2.0'):\n    head.thing()\n",
        VERSION + HEAD + "if Version(sglang.__version__) < Version('1.0'):\n    head.thing()\n",
        VERSION + HEAD + "if Version(sglang.__version__) == Version('2.0'):\n    head.thing()\n",
        INSPECT
        + "if 'out' in inspect.signature(make_head).parameters:\n    make_head(out=3)\nelse:\n    make_head(1, 2)\n",
        INSPECT + "make_head() if 'scale' not in inspect.signature(make_head).parameters else make_head(1, scale=2)\n",
        HEAD + "head = object()\nhead.thing\n",
        HEAD + "def f():\n    if not hasattr(head, 'thing'):\n        return None\n    return head.thing()\n",
        HEAD + "def f():\n    if hasattr(head, 'SCALE'):\n        print()\n        return\n    head.thing()\n",
        HEAD + "def f():\n    if hasattr(head, 'thing'):\n        pass\n    else:\n        return\n    head.thing()\n",
        HEAD + "for x in 'ab':\n    if not hasattr(head, 'thing'):\n        continue\n    head.thing()\n",
        HEAD + "while True:\n    if not hasattr(head, 'thing'):\n        break\n    head.thing()\n",
        HEAD + "def f(x):\n    if not hasattr(head, 'thing'):\n        if hasattr(head, 'SCALE'):\n            return\n"
        "    head.thing()\n",
        VERSION + HEAD + "if Version(sglang.__version__) < Version('2'):\n    raise ImportError\nhead.thing()\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sglang.srt.layers.head import thing\n",
        "import typing\nif typing.TYPE_CHECKING:\n    from sglang.srt.layers.head import thing\n",
        "from sglang.srt.layers.head import make_head\ndef call(make_head):\n    make_head(1, 2, 3)\n",
    ],
)
def test_code_that_a_release_does_not_run_needs_nothing(ours: Miniature, code: str) -> None:
    ours.write("overlay/sglang/srt/layers/own.py", code)
    assert misfits(check(ours)) == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "try:\n    from sglang.srt.new import thing\nexcept ImportError as e:\n    raise ValueError from e\n",
            "there is no module sglang.srt.new",
        ),
        (
            "try:\n    from sglang.srt.new import thing\nexcept KeyError:\n    pass\n",
            "there is no module sglang.srt.new",
        ),
        (
            HEAD + "if not hasattr(head, 'thing'):\n    head.thing(1)\n",
            "sglang.srt.layers.head has no `thing`",
        ),
        (HEAD + "getattr(head, 'thing')\n", "sglang.srt.layers.head has no `thing`"),
        (
            HEAD + "def f():\n    if not hasattr(head, 'SCALE'):\n        return\n    head.thing()\n",
            "sglang.srt.layers.head has no `thing`",
        ),
        (
            HEAD + "def f(x):\n    if x:\n        return\n    else:\n        head.thing()\n",
            "sglang.srt.layers.head has no `thing`",
        ),
        (HEAD + "def f(x):\n    if x:\n        return\n    head.thing()\n", "sglang.srt.layers.head has no `thing`"),
        (
            HEAD + "for x in 'ab':\n    if not hasattr(head, 'other'):\n        continue\nhead.thing()\n",
            "sglang.srt.layers.head has no `thing`",
        ),
        (
            HEAD
            + "def f(x):\n    if not hasattr(head, 'other'):\n        if x:\n            return\n    head.thing()\n",
            "sglang.srt.layers.head has no `thing`",
        ),
        (
            HEAD + "def f():\n    try:\n        pass\n    except OSError:\n        pass\n    else:\n        return\n"
            "    finally:\n        head.thing()\n",
            "sglang.srt.layers.head has no `thing`",
        ),
        (
            "from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    from .head import thing\n",
            "sglang.srt.layers.head has no `thing`",
        ),
        (
            VERSION + HEAD + "if Version(sglang.__version__) < Version('2'):\n    head.thing()\n",
            "sglang.srt.layers.head has no `thing`",
        ),
        (
            INSPECT + "if 'scale' in inspect.signature(make_head).parameters:\n    make_head(1)\n",
            "missing a required argument: 'scale'",
        ),
        (
            "from sglang.srt.layers.head import make_head\nmake_head(*[1], scales=2)\n",
            "got an unexpected keyword argument 'scales'",
        ),
        ("from sglang.srt.layers.head import make_head\nmake_head(1, 2, 3)\n", "too many positional arguments"),
        (
            "import importlib\nimportlib.import_module('sglang.srt.layers.head').thing\n",
            "sglang.srt.layers.head has no `thing`",
        ),
        (
            HEAD + "if hasattr(head, 'SCALE') or hasattr(head, 'thing'):\n    head.thing()\n",
            "sglang.srt.layers.head has no `thing`",
        ),
        (
            "try:\n    import new\nexcept ImportError:\n    pass\nfrom sglang.srt.new import thing\n",
            "there is no module sglang.srt.new",
        ),
        ("from .head import thing\n", "sglang.srt.layers.head has no `thing`"),
        ("from ..layers import thing\n", "sglang.srt.layers has no `thing`"),
        ("from sglang.srt.layers.router import Router\nRouter.bind(2)\n", "missing a required argument: 'backend'"),
        (
            "from sglang.srt.layers.router import Router\nclass R(Router):\n    @classmethod\n    def make(cls):\n"
            "        return cls()\nR.make()\n",
            "missing a required argument: 'top_k'",
        ),
        ("import sglang\nsglang.__versions__\n", "sglang has no `__versions__`; now `__version__`?"),
        ("def late():\n    from sglang.srt.layers.head import thing\n", "sglang.srt.layers.head has no `thing`"),
        (
            "from sglang.srt.layers.head import make_head\nasync def late():\n    return [make_head() for _ in 'ab']\n",
            "missing a required argument: 'config'",
        ),
    ],
)
def test_code_that_a_release_does_run_is_checked(ours: Miniature, code: str, expected: str) -> None:
    ours.write("overlay/sglang/srt/layers/own.py", code)
    found = misfits(check(ours))
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize("operator", ["<=", ">", "==", "!="])
def test_both_sides_are_checked_where_the_wheel_s_version_is_not_the_plugin_s(ours: Miniature, operator: str) -> None:
    compared = f"if Version(sglang.__version__) {operator} Version('1.0'):\n    head.one()\nelse:\n    head.two()\n"
    ours.write("overlay/sglang/srt/layers/own.py", VERSION + HEAD + compared)
    assert misfits(check(ours)) == [
        f"attribute <module>: head.{name}: sglang.srt.layers.head has no `{name}`" for name in ("one", "two")
    ]


def test_a_star_import_leaves_names_with_an_underscore_out(ours: Miniature) -> None:
    hidden = UPSTREAM["sglang/srt/layers/head.py"] + "\n        _hidden = 1\n"
    ours.write("overlay/sglang/srt/layers/own.py", "from sglang.srt.layers import _hidden\n")
    assert misfits(check(ours, {"sglang/srt/layers/head.py": hidden})) == [
        "import sglang.srt.layers._hidden: sglang.srt.layers has no `_hidden`; moved to sglang.srt.layers.head?"
    ]


def test_a_base_that_two_bases_share_comes_after_both(ours: Miniature) -> None:
    bases = """\
        class Root(nn.Module):
            def forward(self, input_ids): ...

        class Left(Root): ...

        class Right(Root):
            def forward(self, input_ids, positions): ...
        """
    forward = "            def forward(self, input_ids, positions):\n                return self.block(input_ids)\n"
    ((name, text),) = changed(forward, "").items()
    text = textwrap.dedent(text).replace("BaseForCausalLM(nn.Module)", "BaseForCausalLM(Left, Right)")
    text = text.replace("class Base", textwrap.dedent(bases) + "\nclass Base")
    assert misfits(check(ours, {name: text})) == []


def test_a_property_with_a_setter_is_a_property(ours: Miniature) -> None:
    setter = "            @kinds.setter\n            def kinds(self, value): ...\n\n            @classmethod\n"
    assert misfits(check(ours, changed("            @classmethod\n", setter))) == []


FORWARD = """\
            def forward(self, input_ids, positions):
                return self.block(input_ids)
"""
EITHER = """\
            if x:
                def forward(self, input_ids, positions{}): ...
            else:
                def forward(self, input_ids, positions{}): ...
"""


@pytest.mark.parametrize("more", [(", batch=None", ""), ("", ", batch=None")])
def test_an_override_must_fit_each_definition_of_upstream_s(ours: Miniature, more: tuple[str, str]) -> None:
    assert misfits(check(ours, changed(FORWARD, EITHER.format(*more)))) == [
        "override OursForCausalLM.forward: upstream also takes `batch`"
    ]


@pytest.mark.parametrize("names", [("bias", "biases"), ("biases", "bias")])
def test_a_call_must_fit_each_definition_of_upstream_s(ours: Miniature, names: tuple[str, str]) -> None:
    constructor = EITHER.replace("forward(self, input_ids, positions{}", "__init__(self, top_k, {}=None")
    once = "            def __init__(self, top_k, bias=None):\n                self.top_k = top_k\n"
    upstream = changed(once, constructor.format(*names), "sglang/srt/layers/router.py")
    (found,) = misfits(check(ours, upstream))
    assert found.startswith("call route: Router(): sglang.srt.layers.router.Router: got an unexpected keyword")


@pytest.mark.parametrize(
    ("alias", "problem"),
    [
        ("from elsewhere import run\n            forward = run", ""),
        ("forward = Router.forward", ""),
        ("def run(self, input_ids, positions): ...\n            forward = run", ""),
        ("def run(self, input_ids): ...\n            forward = run", "upstream does not pass `positions`"),
        ("forward = None", "it is a method here and a value upstream"),
    ],
)
def test_a_method_under_another_name_is_followed(ours: Miniature, alias: str, problem: str) -> None:
    expected = [f"override OursForCausalLM.forward: {problem}"] * bool(problem)
    assert misfits(check(ours, changed(FORWARD, f"            {alias}\n"))) == expected


def test_a_constructor_that_only_the_overlay_calls_need_not_fit(ours: Miniature) -> None:
    code = """\
        from sglang.srt.layers.router import Router

        class OwnRouter(Router):
            def __init__(self, kind):
                super().__init__(2)
        """
    ours.write("overlay/sglang/srt/layers/own.py", textwrap.dedent(code))
    assert misfits(check(ours)) == [
        "override OwnRouter.__init__: upstream's argument 1 is `top_k`, here it is `kind`",
        "override OwnRouter.__init__: upstream also takes `bias`",
    ]
    ours.write("overlay/sglang/srt/layers/own.py", textwrap.dedent(code) + "\nROUTER = OwnRouter(1)\n")
    assert misfits(check(ours)) == []


DERIVED = """\
from sglang.srt.layers.router import Kind
from sglang.srt.models.base import BaseForCausalLM

class Derived(BaseForCausalLM):
    def extra_repr(self):
        return super().extra_repr()

    def freeze(self, kind: Kind):
        self.{}

Derived.freeze
"""


@pytest.mark.parametrize(
    "code",
    ["named_parameters()", "register_buffer('mask', None)", "training", "training = False", "eval()", "_buffers",
     "config; Kind.__members__", "config; kind.value"],
)  # fmt: skip
def test_what_torch_and_python_give_is_there(ours: Miniature, code: str) -> None:
    ours.write("overlay/sglang/srt/layers/own.py", DERIVED.format(code))
    assert misfits(check(ours)) == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("named_params()", "attribute Derived.freeze: self.named_params: Derived has no `named_params`"),
        ("value", "attribute Derived.freeze: self.value: Derived has no `value`"),
        ("config; kind.training", "attribute Derived.freeze: kind.training: Kind has no `training`"),
    ],
)
def test_what_torch_and_python_do_not_give_is_missed(ours: Miniature, code: str, problem: str) -> None:
    ours.write("overlay/sglang/srt/layers/own.py", DERIVED.format(code))
    assert misfits(check(ours)) == [problem]


def test_a_value_that_may_be_something_else_is_not_reported(ours: Miniature) -> None:
    code = "from sglang.srt.models.base import BaseForCausalLM\ndef f(m: BaseForCausalLM):\n    m.block.thing\n"
    ours.write("overlay/sglang/srt/layers/own.py", code)
    assert misfits(check(ours)) == ["attribute f: m.block.thing: Block has no `thing`"]
    wrapped = "self.block = Block(config)\n                self.block = wrap(self.block)\n"
    assert "f: m.block.thing" not in [
        item.what for item in check(ours, changed("self.block = Block(config)\n", wrapped))
    ]
