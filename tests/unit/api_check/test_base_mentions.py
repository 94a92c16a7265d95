from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from overlay_tools.api_check.base_mentions import BaseMention, find_base_mentions, unused_mentions
from overlay_tools.api_check.model_types import model_type_of
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
    "overlay/sglang/srt/overlay_models/free.py": """\
        ROW = OverlayModel(model="sglang.srt.models.free:FreeForCausalLM")
        """,
    "overlay/sglang/srt/overlay_models/ours.py": """\
        ROW = OverlayModel(
            model="sglang.srt.models.ours:OursForCausalLM",
            base="BaseForCausalLM",
            draft="sglang.srt.models.ours:OursForCausalLMMTP",
            config="sglang.srt.models.ours:OursConfig",
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


def described(mentions: list[BaseMention]) -> list[tuple[str, str, str, str]]:
    return [(mention.file, mention.scope, mention.what, mention.handled) for mention in mentions]


@pytest.mark.parametrize(
    ("code", "scope", "what", "handled"),
    [
        ('ARCHS = ["A", "BaseForCausalLM"]', "<module>", "string 'BaseForCausalLM' in ARCHS", "alias"),
        ('ARCHS: set = frozenset({"A", "BaseForCausalLM"})', "<module>", "string 'BaseForCausalLM' in ARCHS", "alias"),
        ('TABLE = {"BaseForCausalLM": 1}', "<module>", "string 'BaseForCausalLM' in TABLE", "alias"),
        (
            'def f(arch):\n    if arch in ("BaseForCausalLM",):\n        pass',
            "f",
            "string 'BaseForCausalLM' compared with arch",
            "alias",
        ),
        (
            'def f(c):\n    return "BaseForCausalLM" in c.architectures',
            "f",
            "string 'BaseForCausalLM' compared with c.architectures",
            "alias",
        ),
        (
            '@register("A", "BaseForCausalLM")\ndef f(c):\n    pass',
            "f",
            "string 'BaseForCausalLM' given to register",
            "alias",
        ),
        ('def f(c, arch="BaseForCausalLM"):\n    pass', "f", "string 'BaseForCausalLM'", "alias"),
        (
            'def f(c):\n    match c:\n        case "BaseForCausalLM":\n            return 1',
            "f",
            "string 'BaseForCausalLM'",
            "alias",
        ),
        ('def f(c):\n    c.archs[0] = "BaseForCausalLMMTP"', "f", "string 'BaseForCausalLMMTP' in c.archs[0]", "draft"),
        ("def f(c):\n    return isinstance(c, BaseConfig)", "f", "isinstance BaseConfig", "subclass"),
        ("def f(c):\n    return isinstance(c, A | configs.BaseConfig | B)", "f", "isinstance BaseConfig", "subclass"),
        ("def f(c):\n    return issubclass(c, BaseForCausalLM)", "f", "isinstance BaseForCausalLM", "subclass"),
        ("EntryClass = [BaseForCausalLM]", "<module>", "class BaseForCausalLM in EntryClass", "registry"),
        ("EntryClass = BaseForCausalLM", "<module>", "class BaseForCausalLM in EntryClass", "registry"),
        (
            "_CONFIG_REGISTRY = {c.model_type: c for c in [BaseConfig]}",
            "<module>",
            "class BaseConfig in _CONFIG_REGISTRY",
            "registry",
        ),
        (
            'def f(c):\n    log.info(f"it is {c}, as BaseForCausalLM is")',
            "f",
            "text ', as BaseForCausalLM is' given to info",
            "message",
        ),
        (
            'def f(c):\n    raise ValueError("not for BaseForCausalLM")',
            "f",
            "text 'not for BaseForCausalLM' given to ValueError",
            "message",
        ),
        ('def f(c):\n    assert c, "BaseForCausalLM needs it"', "f", "text 'BaseForCausalLM needs it'", "message"),
        # What nothing sees to: a person has to say why it is right.
        ('def f(c):\n    return c in "A,BaseForCausalLM"', "f", "text 'A,BaseForCausalLM' compared with c", ""),
        ("TABLE = {c.__name__: c for c in [BaseConfig]}", "<module>", "class BaseConfig in TABLE", ""),
        ("def f(c):\n    return type(c) in (A, BaseConfig)", "f", "class BaseConfig compared with type(c)", ""),
        ("def f(c):\n    return decide(c, BaseConfig)", "f", "class BaseConfig given to decide", ""),
        (
            'def f(c):\n    return type(c).__name__ == "BaseConfig"',
            "f",
            "string 'BaseConfig' compared with type(c).__name__",
            "",
        ),
        (
            'def f(m):\n    return m.__class__.__name__ == "BaseForCausalLM"',
            "f",
            "string 'BaseForCausalLM' compared with m.__class__.__name__",
            "",
        ),
        (
            'class A:\n    def f(self, c):\n        return c.model_type == "base"',
            "A.f",
            "string 'base' compared with c.model_type",
            "",
        ),
        (
            'def f(c):\n    return getattr(c, "model_type", "") in ("other", "base")',
            "f",
            "string 'base' compared with getattr(c, 'model_type', '')",
            "",
        ),
        (
            'KNOWN = {"base"}\ndef f(c):\n    return c.model_type in KNOWN',
            "<module>",
            "string 'base' in KNOWN",
            "",
        ),
        (
            'KNOWN = {"base": 1}\ndef f(c):\n    return KNOWN.get(c.model_type)',
            "<module>",
            "string 'base' in KNOWN",
            "",
        ),
        ('register(model_type="base")', "<module>", "string 'base' given to register", ""),
    ],
)
def test_a_mention_says_what_is_done_with_the_name(
    ours: Miniature, code: str, scope: str, what: str, handled: str
) -> None:
    found = described(find(ours, {"sglang/srt/args.py": code + "\n"}))
    assert found == [("sglang/srt/args.py", scope, what, handled)]


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
        # It is made, called or passed on as itself.
        "model = BaseForCausalLM(config)",
        "def f(m):\n    return BaseForCausalLM.load_weights(m)",
        "Other = BaseForCausalLM",
        "def f(c):\n    return cast(BaseConfig, c)",
        # A word, and no model type.
        'class Other:\n    model_type = "base"',
        'def f(c):\n    c["model_type"] = "base"',
        'PARSERS = {"base": 1}\ndef f(name):\n    return name == "base" or PARSERS[name]',
        'register(name="base")',
        'log.info("the base model")',
    ],
)
def test_a_name_that_decides_nothing_is_left_out(ours: Miniature, code: str) -> None:
    assert described(find(ours, {"sglang/srt/args.py": code + "\n"})) == []


@pytest.mark.parametrize(
    "path", ["sglang/test/args.py", "sglang/srt/parser/args.py", "sglang/srt/models/other.py", "sglang/bench.py"]
)
def test_files_that_decide_for_others_are_left_out(ours: Miniature, path: str) -> None:
    code = 'def f(c):\n    return c.architectures[0] == "BaseForCausalLM" or c.model_type == "base"\n'
    assert described(find(ours, {path: code})) == []


def test_a_model_file_that_ours_use_counts(ours: Miniature) -> None:
    code = 'def f(c):\n    return c.model_type == "base"\n'
    used = "from . import shared\n" + textwrap.dedent(UPSTREAM["sglang/srt/models/base_mtp.py"])
    files = {"sglang/srt/models/shared.py": code, "sglang/srt/models/base_mtp.py": used}
    assert [mention.file for mention in find(ours, files)] == ["sglang/srt/models/shared.py"]


@pytest.mark.parametrize("name", ["PretrainedConfig", "LlamaConfig"])
def test_a_configuration_of_transformers_has_its_model_type(ours: Miniature, name: str) -> None:
    ours.write(
        "overlay/sglang/srt/models/ours.py",
        textwrap.dedent(OURS["overlay/sglang/srt/models/ours.py"]).replace(
            "from sglang.srt.configs.base import BaseConfig", f"from transformers import {name} as BaseConfig"
        ),
    )
    code = 'def f(c):\n    return c.model_type == "llama" or isinstance(c, LlamaConfig)\n'
    found = [mention.what for mention in find(ours, {"sglang/srt/args.py": code})]
    wanted = ["string 'llama' compared with c.model_type", "isinstance LlamaConfig"]
    assert found == (wanted if name == "LlamaConfig" else [])


@pytest.mark.parametrize(
    ("config", "model_type"),
    [
        ("LlamaConfig", "llama"),
        ("Qwen3MoeConfig", "qwen3_moe"),
        ("DeepseekV3Config", "deepseek_v3"),
        ("GptOssConfig", "gpt_oss"),
        ("Gemma3TextConfig", "gemma3_text"),
        ("OPTConfig", "opt"),
        ("GPT2Config", "gpt2"),
        ("Glm4MoeConfig", "glm4_moe"),
    ],
)
def test_the_model_type_of_a_class_of_transformers(config: str, model_type: str) -> None:
    assert model_type_of(config) == model_type


def test_a_file_that_the_overlay_replaces_is_left_out(ours: Miniature) -> None:
    ours.write("overlay/sglang/srt/args.py", 'ARCHS = ["BaseForCausalLM"]\n')
    assert described(find(ours, {"sglang/srt/args.py": 'ARCHS = ["BaseForCausalLM"]\n'})) == []


def test_mentions_come_in_the_order_of_files_and_lines(ours: Miniature) -> None:
    code = '\nA = ["BaseForCausalLM"]\n\n\ndef f(c):\n    return c == "BaseForCausalLM"\n'
    found = find(ours, {"sglang/srt/b.py": code, "sglang/srt/a.py": code})
    assert [(mention.file, mention.line) for mention in found] == [
        ("sglang/srt/a.py", 2),
        ("sglang/srt/a.py", 6),
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


LISTED = {"sglang/srt/args.py": "ARCHS = {BaseConfig}\n"}
NAMED = "class BaseConfig in ARCHS"
ENTRY = f'{{ file = "sglang/srt/args.py", scope = "<module>", what = "{NAMED}", reason = "it is not read" }}'


def classify(mini: Miniature, *entries: str) -> Path:
    return mini.write("ci/contract.toml", "mentions = [\n" + "".join(f"    {entry},\n" for entry in entries) + "]\n")


def unclassified(mentions: list[BaseMention]) -> list[str]:
    return [mention.what for mention in mentions if not mention.classified]


def test_a_mention_without_an_entry_is_unclassified(ours: Miniature) -> None:
    assert unclassified(find(ours, LISTED)) == [NAMED]


def test_an_entry_classifies_its_mention_on_whichever_line_it_is(ours: Miniature) -> None:
    classify(ours, ENTRY)
    for version, before in (("1.0", ""), ("1.1", "\n\nX = 1\n")):
        found = find(ours, {name: before + text for name, text in LISTED.items()}, version)
        assert unclassified(found) == []
        assert [mention.waived for mention in found] == ["it is not read"]


def test_an_entry_for_what_is_right_by_itself_is_one_too_many(ours: Miniature) -> None:
    path = classify(ours, ENTRY.replace(NAMED, "string 'BaseForCausalLM' in ARCHS"))
    found = find(ours, {"sglang/srt/args.py": 'ARCHS = {"BaseForCausalLM"}\n'})
    assert [(mention.handled, mention.waived) for mention in found] == [("alias", "")]
    (line,) = unused_mentions(ours.project, found)
    assert line.startswith(f"{path}:2: the mention of string 'BaseForCausalLM' in ARCHS ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"sglang/srt/args.py"', '"*/args.py"'),
        ('"sglang/srt/args.py"', '["sglang/srt/server_args.py", "sglang/srt/args.py"]'),
        ("in ARCHS", "in *"),
        ('"<module>"', '"*"'),
        ("reason", 'releases = ">=1.0", reason'),
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
        ("reason", 'releases = ">=1.1", reason'),
    ],
)
def test_an_entry_that_matches_nothing_is_named_with_its_line(ours: Miniature, old: str, new: str) -> None:
    path = classify(ours, ENTRY.replace(old, new))
    found = find(ours, LISTED)
    assert len(unclassified(found)) == 1
    (line,) = unused_mentions(ours.project, found)
    assert line.startswith(f"{path}:2: the mention of class BaseConfig in ")


def test_a_second_mention_like_a_classified_one_is_unclassified(ours: Miniature) -> None:
    twice = {"sglang/srt/args.py": "ARCHS = {BaseConfig}\nARCHS = {BaseConfig}\n"}
    classify(ours, ENTRY)
    assert [(mention.line, mention.classified) for mention in find(ours, twice)] == [(1, True), (2, False)]
    classify(ours, ENTRY.replace("reason", "times = 2, reason"))
    assert unclassified(find(ours, twice)) == []
    classify(ours, ENTRY, ENTRY.replace("it is not read", "why"))
    assert [mention.waived for mention in find(ours, twice)] == ["it is not read", "why"]


def test_an_entry_needs_to_match_in_one_release_only(ours: Miniature) -> None:
    classify(ours, ENTRY)
    assert unused_mentions(ours.project, find(ours, {}, "1.0") + find(ours, LISTED, "1.1")) == []
