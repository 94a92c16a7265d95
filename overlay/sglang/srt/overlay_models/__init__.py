"""The overlay's models: a file here declares one, as its `ROW`.

Nothing lists them: a model is added with its file and removed with it. Every server process reads the rows while
upstream's configuration is still being set up, so neither this module nor a row's imports torch or transformers.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class OverlayError(RuntimeError):
    """Say why a model of the overlay cannot be registered or served."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlayModel:
    """Declare one model of the overlay.

    What is written `package.module:name` is imported when it is first needed.

    - `model`: the class that serves the architecture of the same name, `package.module:name`.
    - `base`: the upstream architecture as which upstream's own lists (attention backends, caches, quantisation, draft
      models) are to treat this one. Its configuration class then calls `alias`. Leave it out when the implementation
      differs where such a list takes the base's implementation for granted.
    - `draft`: the class to load when the checkpoint is loaded as its own draft model, `package.module:name`.
    - `config`: the configuration class, `package.module:name`, when `model_type` is not one that transformers or
      upstream knows. It belongs to this model alone.
    - `settle`: a function, `package.module:name`, that is given the model's configuration object, and config.json with
      the server's overrides. It raises ValueError at what config.json may not say, and lets the object say the rest as
      the model reads it.
    - `extensions`: the keys of config.json that no model of upstream's reads. One of upstream's is not served with any
      of them switched on.
    - `multimodal`: whether the architecture takes other inputs than text.
    - `generates`: whether it generates text. One that does not gives a vector for each text, its embedding or scores;
      `is_embedding` is among its `arguments`.
    - `reasoning_parser`, `tool_call_parser`: the server's arguments of these names, where the user says nothing: the
      name of one of upstream's parsers, or a class of the overlay, `package.module:name`, which is registered under
      the architecture's name in small letters.
    - `chat_template`: a function without arguments, `package.module:name`, that makes the Conversation which is
      registered under its own name, and taken for checkpoints without a template of their own.
    - `arguments`: other arguments of the server by their names in ServerArgs, with the values that they have where the
      user says nothing. Only those can be here that upstream itself leaves at None or False.
    - `on_install`: a function without arguments, `package.module:name`, for anything else to be registered in every
      process.
    """

    model: str
    base: str | None = None
    draft: str | None = None
    config: str | None = None
    settle: str | None = None
    extensions: tuple[str, ...] = ()
    multimodal: bool = False
    generates: bool = True
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    chat_template: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    on_install: str | None = None

    @property
    def architecture(self) -> str:
        """Give the name by which a checkpoint's config.json asks for this model."""
        return self.model.rpartition(":")[2]

    @property
    def has_defaults(self) -> bool:
        """Tell whether the row says anything to the server where its user says nothing."""
        return bool(self.reasoning_parser or self.tool_call_parser or self.chat_template or self.arguments)


def read_rows() -> tuple[OverlayModel, ...]:
    """Read the rows of all files here, in the order of the files' names.

    Raises OverlayError, naming the file, where one cannot be imported or has no row.
    """
    folder = Path(__file__).parent
    rows = []
    for name in sorted(module.name for module in pkgutil.iter_modules([str(folder)])):
        file = folder / f"{name}.py"
        try:
            row = importlib.import_module(f"{__name__}.{name}").ROW
        except Exception as error:  # a file may fail in any way while it is imported
            raise OverlayError(f"{file}: its row cannot be read: {type(error).__name__}: {error}") from error
        if not isinstance(row, OverlayModel):
            raise OverlayError(f"{file}: ROW must be an OverlayModel, not {row!r}")
        rows.append(row)
    return tuple(rows)
