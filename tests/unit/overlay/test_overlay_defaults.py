"""What a row says to the server where its user says nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unit.overlay.test_overlay_registry import FILE, SHAPED, Upstream, load, registry, upstream

__all__ = ["upstream"]

QWEN = type("Qwen3Detector", (), {})


@dataclasses.dataclass
class ServerArgs:
    """The arguments that upstream's own has, and how a user gives them."""

    model_path: str = "checkpoint"
    revision: str | None = "main"
    tokenizer_path: str | None = None
    json_model_override_args: str = "{}"
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    chat_template: str | None = None
    page_size: int | None = None
    disable_overlap_schedule: bool = False
    schedule_policy: str = "fcfs"
    tp_size: int = 1
    no_defaults: int = 0


@pytest.fixture
def parsers(upstream: Upstream) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Give upstream's tables of parsers and templates; its checkpoint is one of ShapedForCausalLM."""
    upstream.config_json = {"architectures": ["ShapedForCausalLM"]}
    reasoning, tools, templates = {"qwen3": QWEN}, {"qwen": QWEN}, dict[str, Any]()
    upstream.module("sglang.srt.parser")
    upstream.module("sglang.srt.parser.reasoning_parser", ReasoningParser=SimpleNamespace(DetectorMap=reasoning))
    upstream.module("sglang.srt.function_call")
    upstream.module(
        "sglang.srt.function_call.function_call_parser", FunctionCallParser=SimpleNamespace(ToolCallParserEnum=tools)
    )
    upstream.module("sglang.srt.parser.conversation", chat_templates=templates)
    return reasoning, tools, templates


def resolved(row: dict[str, Any], **said: Any) -> ServerArgs:  # noqa: ANN401
    arguments = ServerArgs(**said)
    registry(SHAPED | row).default_arguments(arguments)
    return arguments


ROW = {
    "reasoning_parser": "qwen3",
    "tool_call_parser": "qwen",
    "arguments": {"page_size": 64, "disable_overlap_schedule": True},
}


def test_what_the_user_leaves_alone_is_what_the_row_says(parsers: object, caplog: pytest.LogCaptureFixture) -> None:
    found = resolved(ROW)
    assert (found.reasoning_parser, found.tool_call_parser) == ("qwen3", "qwen")
    assert (found.page_size, found.disable_overlap_schedule) == (64, True)
    assert found.schedule_policy == "fcfs"
    for name in ("reasoning_parser is 'qwen3'", "tool_call_parser is 'qwen'", "page_size is 64", "schedule is True"):
        assert name in caplog.text


def test_what_the_user_says_is_kept(parsers: object, caplog: pytest.LogCaptureFixture) -> None:
    found = resolved(ROW, reasoning_parser="kimi", page_size=1, tool_call_parser="qwen", disable_overlap_schedule=True)
    assert (found.reasoning_parser, found.page_size) == ("kimi", 1)
    assert caplog.text == ""


def test_a_switch_that_the_user_turns_off_stays_off(parsers: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["launch_server", "--no-disable-overlap-schedule"])
    found = resolved(ROW)
    assert (found.page_size, found.disable_overlap_schedule) == (64, False)


def test_another_model_and_one_without_a_configuration_have_no_defaults(parsers: object, upstream: Upstream) -> None:
    for config in ({"architectures": ["LlamaForCausalLM"]}, {"architectures": None}, {}, None):
        upstream.config_json = config
        assert resolved(ROW) == ServerArgs()


def test_a_model_is_known_by_its_own_model_type_and_by_overrides(parsers: object, upstream: Upstream) -> None:
    upstream.config("ShapedConfig", "shaped_config", model_type="shaped")
    own = ROW | {"config": "shaped_config:ShapedConfig", "base": "BaseForCausalLM"}
    for architectures, size in ((["BaseForCausalLM"], 64), (None, 64), (["LlamaForCausalLM"], None)):
        upstream.config_json = {"architectures": architectures, "model_type": "shaped"}
        assert resolved(own).page_size == size
    upstream.config_json = {"architectures": ["BaseForCausalLM"], "model_type": "base"}
    assert resolved(own).page_size is None
    assert resolved(ROW).page_size is None
    overrides = json.dumps({"architectures": ["ShapedForCausalLM"]})
    assert resolved(ROW, json_model_override_args=overrides).page_size == 64


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"reasoning_parser": "none-such"}, "its reasoning_parser is 'none-such', and this release of sglang has none"),
        ({"tool_call_parser": "qwen3"}, "its tool_call_parser is 'qwen3', and this release"),
        ({"arguments": {"pages": 1}}, "its row sets pages, which is no argument of this release"),
        ({"arguments": {"schedule_policy": "lpm"}}, "for which sglang itself has a default, 'fcfs'"),
        ({"arguments": {"tp_size": 2}}, "for which sglang itself has a default, 1"),
        ({"arguments": {"no_defaults": 2}}, "for which sglang itself has a default, 0"),
    ],
)
def test_what_a_release_cannot_do_is_refused(parsers: object, row: dict[str, Any], said: str) -> None:
    with pytest.raises(RuntimeError, match=f"^ShapedForCausalLM: .*{said}"):
        resolved(row)


def test_parsers_of_the_overlay_are_registered_and_chosen(
    parsers: tuple[dict[str, Any], dict[str, Any], dict[str, Any]], upstream: Upstream
) -> None:
    own = upstream.config("OwnDetector", "own_parser")
    row = {"reasoning_parser": "own_parser:OwnDetector", "tool_call_parser": "own_parser:OwnDetector"}
    registry(SHAPED | row).install([])
    assert parsers[0]["shapedforcausallm"] is parsers[1]["shapedforcausallm"] is own
    found = resolved(row)
    assert found.reasoning_parser == found.tool_call_parser == "shapedforcausallm"
    parsers[0]["shapedforcausallm"] = QWEN
    with pytest.raises(RuntimeError, match="upstream has a reasoning_parser of the name 'shapedforcausallm'"):
        registry(SHAPED | row).install([])


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ({}, "shaped-template"),
        ({"tokenizer_config.json": '{"model_max_length": 9}'}, "shaped-template"),
        ({"tokenizer_config.json": '{"chat_template": "{{ x }}"}'}, None),
        ({"chat_template.jinja": "{{ x }}"}, None),
        ({"chat_template.json": "{}"}, None),
    ],
)
def test_a_chat_template_is_for_checkpoints_without_one(
    parsers: tuple[dict[str, Any], dict[str, Any], dict[str, Any]],
    upstream: Upstream,
    tmp_path: Path,
    files: dict[str, str],
    chosen: str | None,
) -> None:
    template = SimpleNamespace(name="shaped-template")
    upstream.module("templates", shaped=lambda: template)
    row = {"chat_template": "templates:shaped"}
    registry(SHAPED | row).install([])
    assert parsers[2] == {"shaped-template": template}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert resolved(row, tokenizer_path=str(tmp_path)).chat_template == chosen
    assert resolved(row, tokenizer_path=str(tmp_path), chat_template="mine").chat_template == "mine"
    assert resolved(row).chat_template is None  # it is not known what a checkpoint elsewhere has


@pytest.mark.parametrize(("release", "off"), [("0.5.7", True), ("0.5.10.post1", True), ("0.5.11", False)])
@pytest.mark.parametrize("generates", [True, False])
def test_waiting_texts_of_a_model_of_vectors_do_not_wait_for_ever(
    parsers: object, upstream: Upstream, release: str, off: bool, generates: bool
) -> None:
    upstream.module("sglang.version", __version__=f"{release}+overlay.4")
    row = {"generates": generates, "arguments": {"page_size": 64}}
    assert resolved(row).disable_overlap_schedule == (off and not generates)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ROW = None", "ROW must be an OverlayModel, not None"),
        ("", "its row cannot be read: AttributeError"),
        ("import no_such_thing", "its row cannot be read: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("ROW = (", "its row cannot be read: SyntaxError"),
        ("ROW = OverlayModel(modle='x:Y')", "its row cannot be read: NameError"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    package = tmp_path / "overlay_models"
    package.mkdir()
    source = FILE.parent / "overlay_models" / "__init__.py"
    (package / "__init__.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    (package / "mine.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = load(package / "__init__.py")
    module.__name__ = "overlay_models"
    with pytest.raises(module.OverlayError, match=f"mine.py: {said}"):
        module.read_rows()
    for name in [name for name in sys.modules if name.startswith("overlay_models")]:
        del sys.modules[name]
