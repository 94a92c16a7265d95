from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from overlay_tools.api_check.base_mentions import BaseMention, find_base_mentions, unused_mentions
from overlay_tools.upstream.source_tree import open_source_tree

from unit.conftest import Miniature, upstream_files

UPSTREAM = {
    "sglang/srt/models/base.py": "class BaseForCausalLM:\n    pass\n",
    "sglang/srt/models/base_mtp.py": """\
        from sglang.srt.models.base import BaseForCausalLM


        class BaseForCausalLMMTP(BaseForCausalLM):
            pass
        """,
    "sglang/srt/configs/base.py": 'class BaseConfig:\n    model_type = "base"\n',
}
OURS = {
    "overlay/sglang/srt/overlay_registry.py": """\
        MODELS = (
            OverlayModel(model="sglang.srt.models.free:FreeForCausalLM"),
            OverlayModel(
                model="sglang.srt.models.ours:OursForCausalLM",
                base="BaseForCausalLM",
                draft="sglang.srt.models.ours:OursForCausalLMMTP",
                config="sglang.srt.models.ours:OursConfig",
            ),
        )
        """,
    "overlay/sglang/srt/models/ours.py": """\
        from sglang.srt.configs.base import BaseConfig
        from sglang.srt.models.base import BaseForCausalLM
        from sglang.srt.models.base_mtp import BaseForCausalLMMTP

        class Shared:
            pass

        class OursForCausalLM(BaseForCausalLM): ...
        class OursForCausalLMMTP(Shared, BaseForCausalLMMTP): ...
        class OursConfig(BaseConfig):
            model_type = "ours"
        """,
}
OWN = ("sglang/srt/configs/base.py", "BaseConfig", "string 'base' in model_type")  # of UPSTREAM itself


@pytest.fixture
def ours(mini: Miniature) -> Miniature:
    """Return a project whose overlay has a model with a base, a draft and a configuration."""
    for name, text in OURS.items():
        mini.write(name, textwrap.dedent(text))
    return mini


def find(mini: Miniature, files: dict[str, str], version: str = "1.0") -> list[BaseMention]:
    """Return the mentions in a release that has some more files than UPSTREAM."""
    extra = {name: textwrap.dedent(text).encode() for name, text in (UPSTREAM | files).items()}
    mini.lock_release(version, upstream_files(version) | extra)
    with open_source_tree(mini.lock[version], mini.cache) as sources:
        return find_base_mentions(mini.project, sources)


def described(mentions: list[BaseMention]) -> list[tuple[str, str, str]]:
    found = [(mention.file, mention.scope, mention.what) for mention in mentions]
    assert OWN in found
    return [item for item in found if item != OWN]


@pytest.mark.parametrize(
    ("code", "scope", "what"),
    [
        ('ARCHS = ["A", "BaseForCausalLM"]', "<module>", "string 'BaseForCausalLM' in ARCHS"),
        ('ARCHS: set = frozenset({"A", "BaseForCausalLM"})', "<module>", "string 'BaseForCausalLM' in ARCHS"),
        ('TABLE = {"BaseForCausalLM": 1}', "<module>", "string 'BaseForCausalLM' in TABLE"),
        ("TABLE = {c.__name__: c for c in [BaseConfig]}", "<module>", "class BaseConfig in TABLE"),
        ('TABLE["base"] = 1', "<module>", "string 'base' in TABLE['base']"),
        (
            'def f(arch):\n    if arch in ("BaseForCausalLM",):\n        pass',
            "f",
            "string 'BaseForCausalLM' compared with arch",
        ),
        (
            'def f(c):\n    return "BaseForCausalLM" in c.architectures',
            "f",
            "string 'BaseForCausalLM' compared with c.architectures",
        ),
        (
            'class A:\n    def f(self, c):\n        return c.model_type == "base"',
            "A.f",
            "string 'base' compared with c.model_type",
        ),
        ('def f(c):\n    c.archs[0] = "BaseForCausalLMMTP"', "f", "string 'BaseForCausalLMMTP' in c.archs[0]"),
        ("def f(c):\n    return isinstance(c, BaseConfig)", "f", "isinstance BaseConfig"),
        ("def f(c):\n    return isinstance(c, A | configs.BaseConfig | B)", "f", "isinstance BaseConfig"),
        ("def f(c):\n    return type(c) in (A, BaseConfig)", "f", "class BaseConfig compared with type(c)"),
        (
            'def f(c):\n    return type(c).__name__ == "BaseConfig"',
            "f",
            "string 'BaseConfig' compared with type(c).__name__",
        ),
        ("def f(c):\n    return issubclass(c, BaseForCausalLM)", "f", "isinstance BaseForCausalLM"),
        ('@register("A", "BaseForCausalLM")\ndef f(c):\n    pass', "f", "string 'BaseForCausalLM' given to register"),
        ('def f(c, arch="BaseForCausalLM"):\n    pass', "f", "string 'BaseForCausalLM'"),
        ('def f(c):\n    return c in "A,BaseForCausalLM"', "f", "text 'A,BaseForCausalLM' compared with c"),
        (
            'def f(c):\n    log.info(f"it is {c}, as BaseForCausalLM is")',
            "f",
            "text ', as BaseForCausalLM is' given to info",
        ),
        (
            'def f(c):\n    match c:\n        case "BaseForCausalLM":\n            return 1',
            "f",
            "string 'BaseForCausalLM'",
        ),
        ("EntryClass = [BaseForCausalLM]", "<module>", "class BaseForCausalLM in EntryClass"),
    ],
)
def test_a_mention_says_what_is_done_with_the_name(ours: Miniature, code: str, scope: str, what: str) -> None:
    assert described(find(ours, {"sglang/srt/args.py": code + "\n"})) == [("sglang/srt/args.py", scope, what)]


@pytest.mark.parametrize(
    "code",
    [
        "# BaseForCausalLM",
        '"""Like BaseForCausalLM."""',
        'def f():\n    """Like BaseForCausalLM."""\n    return 1  # as BaseConfig',
        "from sglang.srt.configs.base import BaseConfig",
        "from sglang.srt.configs.base import (\n    BaseConfig,\n)",
        '__all__ = ["BaseConfig"]',
        "class Other(BaseConfig):\n    config: BaseConfig\n    def f(self, c: BaseConfig) -> BaseConfig:\n        pass",
        'NAMES = ["BaseForCausalLM2", "NewBaseForCausalLM", "base_model", "FreeForCausalLM"]',
    ],
)
def test_a_name_that_decides_nothing_is_left_out(ours: Miniature, code: str) -> None:
    assert described(find(ours, {"sglang/srt/args.py": code + "\n"})) == []


def test_a_file_that_the_overlay_replaces_is_left_out(ours: Miniature) -> None:
    ours.write("overlay/sglang/srt/args.py", 'ARCHS = ["BaseForCausalLM"]\n')
    assert described(find(ours, {"sglang/srt/args.py": 'ARCHS = ["BaseForCausalLM"]\n'})) == []


def test_mentions_come_in_the_order_of_files_and_lines(ours: Miniature) -> None:
    code = '\nA = ["BaseForCausalLM"]\n\n\ndef f(c):\n    return c == "BaseForCausalLM"\n'
    found = find(ours, {"sglang/srt/b.py": code, "sglang/a.py": code})
    assert [(mention.file, mention.line) for mention in found if mention.scope != "BaseConfig"] == [
        ("sglang/a.py", 2),
        ("sglang/a.py", 6),
        ("sglang/srt/b.py", 2),
        ("sglang/srt/b.py", 6),
    ]
    assert {mention.release for mention in found} == {"1.0"}


def test_an_overlay_without_bases_has_no_mentions(mini: Miniature) -> None:
    with open_source_tree(mini.lock["1.0"], mini.cache) as sources:
        assert find_base_mentions(mini.project, sources) == []


def test_a_base_that_a_release_lacks_is_still_searched_for_by_name(ours: Miniature) -> None:
    gone = dict.fromkeys(UPSTREAM, "")
    found = find(ours, gone | {"sglang/srt/args.py": 'ARCHS = ["BaseForCausalLM"]\n'})
    assert [mention.what for mention in found] == ["string 'BaseForCausalLM' in ARCHS"]


LISTED = {"sglang/srt/args.py": 'ARCHS = {"BaseForCausalLM"}\n'}
MECHANISMS = '\n[mechanisms]\nalias = "shown as its base"\n'
NAMED = "string 'BaseForCausalLM' in ARCHS"
ENTRY = f'{{ file = "sglang/srt/args.py", scope = "<module>", what = "{NAMED}", handled = "alias" }}'


def classify(mini: Miniature, *entries: str) -> Path:
    lines = "".join(f"    {entry},\n" for entry in entries)
    return mini.write("ci/contract.toml", f"mentions = [\n{lines}]\n{MECHANISMS}")


def unclassified(mentions: list[BaseMention]) -> list[str]:
    return [mention.what for mention in mentions if not mention.classified and mention.scope != "BaseConfig"]


def test_a_mention_without_an_entry_is_unclassified(ours: Miniature) -> None:
    assert unclassified(find(ours, LISTED)) == ["string 'BaseForCausalLM' in ARCHS"]


def test_an_entry_classifies_its_mention_on_whichever_line_it_is(ours: Miniature) -> None:
    classify(ours, ENTRY)
    for version, before in (("1.0", ""), ("1.1", "\n\nX = 1\n")):
        found = find(ours, {name: before + text for name, text in LISTED.items()}, version)
        assert unclassified(found) == []
        assert [mention.handled for mention in found if mention.classified] == ["alias"]


def test_a_mention_may_be_waived_with_a_reason(ours: Miniature) -> None:
    classify(ours, ENTRY.replace('handled = "alias"', 'reason = "it is not read"'))
    found = find(ours, LISTED)
    assert unclassified(found) == []
    assert [(mention.handled, mention.waived) for mention in found if mention.classified] == [("", "it is not read")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"sglang/srt/args.py"', '"*/args.py"'),
        ('"sglang/srt/args.py"', '["sglang/srt/server_args.py", "sglang/srt/args.py"]'),
        ("in ARCHS", "in *"),
        ('"<module>"', '"*"'),
        ("handled", 'releases = ">=1.0", handled'),
    ],
)
def test_an_entry_may_have_patterns_lists_and_releases(ours: Miniature, old: str, new: str) -> None:
    classify(ours, ENTRY.replace(old, new))
    assert unclassified(find(ours, LISTED)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("srt/args.py", "srt/arg?.py"),
        ("in ARCHS", "in [A]RCHS"),
        ("<module>", "f"),
        ("handled", 'releases = ">=1.1", handled'),
    ],
)
def test_an_entry_that_matches_nothing_is_named_with_its_line(ours: Miniature, old: str, new: str) -> None:
    path = classify(ours, ENTRY.replace(old, new))
    found = find(ours, LISTED)
    assert len(unclassified(found)) == 1
    (line,) = unused_mentions(ours.project, found)
    assert line.startswith(f"{path}:2: the mention of string 'BaseForCausalLM' in ")


def test_a_second_mention_like_a_classified_one_is_unclassified(ours: Miniature) -> None:
    twice = {"sglang/srt/args.py": 'ARCHS = {"BaseForCausalLM"}\nARCHS = {"BaseForCausalLM"}\n'}
    classify(ours, ENTRY)
    found = find(ours, twice)
    assert [(mention.line, mention.classified) for mention in found if mention.scope == "<module>"] == [
        (1, True),
        (2, False),
    ]
    classify(ours, ENTRY.replace("handled", "times = 2, handled"))
    assert unclassified(find(ours, twice)) == []
    classify(ours, ENTRY, ENTRY.replace("alias", "draft").replace('handled = "draft"', 'reason = "why"'))
    assert [mention.waived for mention in find(ours, twice) if mention.classified] == ["", "why"]


def test_an_entry_needs_to_match_in_one_release_only(ours: Miniature) -> None:
    classify(ours, ENTRY)
    assert unused_mentions(ours.project, find(ours, {}, "1.0") + find(ours, LISTED, "1.1")) == []
