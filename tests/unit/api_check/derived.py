"""A miniature overlay that derives a model from one of upstream's, and the releases that it is checked against."""

from __future__ import annotations

import textwrap

from overlay_tools.api_check.contract import Finding, check_contract
from overlay_tools.upstream.source_tree import open_source_tree

from unit.conftest import Miniature, upstream_files

UPSTREAM = {
    "sglang/srt/models/base.py": """\
        from dataclasses import dataclass
        from torch import nn
        from sglang.srt.layers import make_head
        from sglang.srt.layers.router import Router


        @dataclass
        class Info:
            layers: int
            experts: int = 0


        class Block(nn.Module):
            def __init__(self, config, prefix=""):
                self.router = Router(config.top_k)


        class BaseForCausalLM(nn.Module):
            def __init__(self, config, quant_config=None, prefix=""):
                self.config = config
                self.block = Block(config)
                self.processor = make_head(config, scale=1.0)

            def forward(self, input_ids, positions):
                return self.block(input_ids)

            @property
            def kinds(self):
                return []

            @classmethod
            def describe(cls, config):
                return Info(layers=1)


        EntryClass = BaseForCausalLM
        """,
    "sglang/srt/layers/__init__.py": "from sglang.srt.layers.head import *\n",
    "sglang/srt/layers/head.py": """\
        def make_head(config, scale):
            return object()


        SCALE = 1
        """,
    "sglang/srt/layers/router.py": """\
        from enum import Enum


        class Kind(Enum):
            SOFTMAX = 1


        class Router:
            def __init__(self, top_k, bias=None):
                self.top_k = top_k

            def bind(self, backend):
                return backend
        """,
}
OURS = """\
    from sglang.srt import layers
    from sglang.srt.layers import head, make_head
    from sglang.srt.layers.router import Kind, Router
    from sglang.srt.models.base import BaseForCausalLM, Block, Info


    def route(block: Block):
        block.router = Router(2, bias=Kind.SOFTMAX)
        block.router.bind(head.SCALE)


    class OursForCausalLM(BaseForCausalLM):
        def __init__(self, config, quant_config=None, prefix=""):
            super().__init__(config, quant_config, prefix)
            route(self.block)
            self.own = 1
            self.processor = make_head(self.config, scale=layers.head.SCALE + self.own)

        def forward(self, input_ids, positions):
            return super().forward(input_ids, positions)

        @property
        def kinds(self):
            return super().kinds

        @classmethod
        def describe(cls, config):
            return Info(layers=2, experts=4)


    EntryClass = OursForCausalLM
    """
REGISTRY = "def choose(config):\n    return config\n"
ROW_FILE = "overlay/sglang/srt/overlay_models/ours.py"
ROW = 'ROW = OverlayModel(model="sglang.srt.models.ours:OursForCausalLM", base="BaseForCausalLM")\n'

WAIVER = (
    '{ kind = "override", what = "OursForCausalLM.forward", problem = "*takes `batch`", reason = "no one passes it" }'
)


def derive(mini: Miniature) -> Miniature:
    """Give a project an overlay that derives a model from one of upstream's."""
    (mini.root / "overlay/sglang/models/ours.py").unlink()
    mini.write("overlay/sglang/srt/models/ours.py", textwrap.dedent(OURS))
    mini.write("overlay/sglang/srt/overlay_registry.py", REGISTRY)
    mini.write(ROW_FILE, ROW)
    return mini


def check(mini: Miniature, upstream: dict[str, str] | None = None, version: str = "1.0") -> list[Finding]:
    """Check the project against a release that has UPSTREAM's files, or others in their place."""
    files = UPSTREAM | (upstream or {})
    extra = {name: textwrap.dedent(text).encode() for name, text in files.items()}
    mini.lock_release(version, upstream_files(version) | extra)
    with open_source_tree(mini.lock[version], mini.cache) as sources:
        return check_contract(mini.project, sources)


def misfits(findings: list[Finding]) -> list[str]:
    """Return what does not fit and is not waived."""
    return [f"{item.kind} {item.what}: {item.problem}" for item in findings if item.problem and not item.waived]


def changed(old: str, new: str, name: str = "sglang/srt/models/base.py") -> dict[str, str]:
    """Return one of UPSTREAM's files with another text in place of one."""
    assert old in UPSTREAM[name]
    return {name: UPSTREAM[name].replace(old, new)}
