"""What a model's row says to the server where its user says nothing: parsers, a chat template, arguments.

Where upstream reads them, the server's arguments hold names. So each becomes an argument before upstream resolves any,
and goes with the others to every process; what is the overlay's own is registered in every process under its name.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang.srt.overlay_claims import claim
from sglang.srt.overlay_models import OverlayError, OverlayModel

_log = logging.getLogger(__name__)
_KINDS = ("reasoning_parser", "tool_call_parser")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def add_names(row: OverlayModel, load: Callable[[str], Any]) -> None:
    """Make upstream know the parsers and the chat template of a row that are the overlay's own.

    Parameters: `load` imports what the row names.
    Raises OverlayError if upstream or another overlay has one of the same name.
    """
    for kind in _KINDS:
        if ":" in (reference := getattr(row, kind) or ""):
            _add(row, kind, _parsers(kind), row.architecture.lower(), load(reference))
    if row.chat_template is not None:
        from sglang.srt.parser.conversation import chat_templates

        template = load(row.chat_template)()
        _add(row, "chat_template", chat_templates, template.name, template)


def _add(row: OverlayModel, kind: str, table: dict[str, Any], name: str, own: Any) -> None:
    claim(kind, name)
    if table.setdefault(name, own) is not own:
        raise OverlayError(f"{row.architecture}: upstream has a {kind} of the name {name!r}; take another")


def set_defaults(row: OverlayModel, server_args: Any, load: Callable[[str], Any]) -> None:
    """Set each argument of the server that a row has a value for and the user has left alone, and log it.

    Raises OverlayError if this release has no such argument or parser, or if its own default for an argument is neither
    None nor False: that could not be told from what a user says.
    """
    own = _own_defaults(type(server_args))
    for name, value in _values(row, server_args, load).items():
        if name not in own:
            raise OverlayError(
                f"{row.architecture}: its row sets {name}, which is no argument of this release of sglang"
            )
        if own[name] is not None and own[name] is not False:
            raise OverlayError(
                f"{row.architecture}: its row sets {name}, for which sglang itself has a default, {own[name]!r}"
            )
        if getattr(server_args, name) is own[name] and f"--no-{name.replace('_', '-')}" not in sys.argv:
            setattr(server_args, name, value)
            _log.warning(
                "%s: %s is %r by default; the server's arguments may say otherwise",
                row.architecture,
                name,
                value,
            )


def _values(row: OverlayModel, server_args: Any, load: Callable[[str], Any]) -> dict[str, Any]:
    """Give what a row says, or is, each by the name of an argument."""
    values = dict(row.arguments)
    if not row.generates:
        from packaging.version import Version
        from sglang.version import __version__

        if Version(__version__) < Version("0.5.11"):
            # Texts that wait because as many as may run at once do so would wait for ever: that they have ended is seen
            # one step late, and there is no further one.
            values["disable_overlap_schedule"] = True
    for kind in _KINDS:
        name = getattr(row, kind)
        if name is not None and ":" not in name and name not in _parsers(kind):
            raise OverlayError(f"{row.architecture}: its {kind} is {name!r}, and this release of sglang has none such")
        if name is not None:
            values[kind] = row.architecture.lower() if ":" in name else name
    if row.chat_template is not None and not has_chat_template(server_args.tokenizer_path or server_args.model_path):
        values["chat_template"] = load(row.chat_template)().name
    return values


def has_chat_template(folder: str) -> bool:
    """Tell whether a checkpoint, or its tokenizer, has a chat template of its own; of one that is no folder, yes."""
    path = Path(folder)
    if not path.is_dir() or any((path / name).exists() for name in _TEMPLATES):
        return True
    try:
        settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(settings.get("chat_template"))


def _parsers(field: str) -> dict[str, Any]:
    """Give upstream's table of the parsers of a kind."""
    if field == "reasoning_parser":
        from sglang.srt.parser.reasoning_parser import ReasoningParser

        return ReasoningParser.DetectorMap  # type: ignore[no-any-return]
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    return FunctionCallParser.ToolCallParserEnum  # type: ignore[no-any-return]


def _own_defaults(kind: type) -> dict[str, Any]:
    """Give upstream's own defaults of the server's arguments, a dataclass or, from 0.5.20 on, a record."""
    if dataclasses.is_dataclass(kind):
        return {field.name: field.default for field in dataclasses.fields(kind)}
    import msgspec

    return {field.name: field.default for field in msgspec.structs.fields(kind)}
