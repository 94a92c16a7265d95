"""Whether this plugin is whole, and proven on the SGLang that is installed."""

import ast
import base64
import csv
import functools
import logging
import os
import re
from hashlib import sha256
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import sglang_overlay_plugin_start as start
from sglang_overlay_plugin_start import DISTRIBUTION, PluginError, external_package
from sglang_overlay_plugin_start import NAME as PACKAGE

ALLOW_UNPROVEN = "SGLANG_OVERLAY_ALLOW_UNPROVEN"
PLACES = {  # where the plugin attaches in every release: the name that each module must define
    "sglang.srt.model_loader.utils": "get_model_architecture",
    "sglang.srt.configs.model_config": "multimodal_model_archs",
    "sglang.srt.server_args": "ServerArgs",
    "sglang.srt.models.registry": "ModelRegistry",
    "sglang.srt.managers.multimodal_processor": "import_processors",
}

_log = logging.getLogger(__name__)


@functools.cache
def check() -> None:
    """Find out whether the overlay's models can be served here; nothing is changed.

    Raises PluginError if this plugin is not whole, this release of sglang is not one that it is proven on (unless
    SGLANG_OVERLAY_ALLOW_UNPROVEN=1), is a drop-in wheel that knows of no plugins, or lacks a place where the plugin
    attaches.
    """
    own = own_distribution()
    _check_that_it_is_one(own)
    missing, changed = _damage(own)
    if missing:
        raise PluginError(f"{DISTRIBUTION} lacks {', '.join(missing)}; install it anew")
    version, folder = upstream()
    if (folder / "srt" / "overlay_registry.py").exists() and not (folder / "srt" / "overlay_claims.py").exists():
        raise PluginError(
            f"sglang {version} in {folder} is a drop-in wheel that knows of no plugins; build it anew, or install"
            f" sglang=={_release(version)} as it was published"
        )
    if (name := external_package()) is not None and name != f"{PACKAGE}.models":
        raise PluginError(f"SGLANG_EXTERNAL_MODEL_PACKAGE is {name}; it must be {PACKAGE}.models")
    for module, name in PLACES.items():
        file = folder.joinpath(*module.split(".")[1:]).with_suffix(".py")
        if name not in _names_defined_in(file):
            raise PluginError(f"{file} of sglang {version} defines no {name}, where {DISTRIBUTION} attaches")
    if changed:
        _allow(f"{DISTRIBUTION} {own.version} has changed since it was installed: {', '.join(changed)}")
    if _release(version) not in proven_releases():
        proven = ", ".join(proven_releases())
        _allow(f"{DISTRIBUTION} {own.version} is not proven on sglang {version}, but on {proven}")


def _check_that_it_is_one(own: Distribution) -> None:
    """Raise PluginError if Python has taken a part of this plugin from another installation than the rest."""
    for name, taken in {f"{PACKAGE}/checks.py": __file__, f"{PACKAGE}_start.py": start.__file__}.items():
        installed = Path(own.locate_file(name))  # type: ignore[arg-type]
        if installed.exists() and not installed.samefile(taken):
            raise PluginError(
                f"{DISTRIBUTION} is installed twice: Python has taken {taken}, and {own.version} has {installed};"
                " uninstall one"
            )


def _release(version: str) -> str:
    """Give the release that an sglang is, or that a drop-in wheel is made of."""
    return re.sub(r"[+.]overlay\.\d+$", "", version)


def _allow(unproven: str) -> None:
    """Raise PluginError with what is unproven, unless SGLANG_OVERLAY_ALLOW_UNPROVEN=1: then the log has it."""
    if os.environ.get(ALLOW_UNPROVEN) != "1":
        raise PluginError(f"{unproven}; {ALLOW_UNPROVEN}=1 lets it serve all the same")
    _log.warning("%s; %s=1 lets it serve", unproven, ALLOW_UNPROVEN)


def _damage(own: Distribution) -> tuple[list[str], list[str]]:
    """List what of the plugin is missing, and what is not as it was installed.

    Raises PluginError if a file cannot be read.
    """
    # From Python 3.12 on, `files` leaves out what is missing. Caches may come and go.
    rows = [
        row for row in csv.reader((own.read_text("RECORD") or "").splitlines()) if row and "__pycache__" not in row[0]
    ]
    missing, changed = [] if rows else ["its RECORD"], []
    for name, declared, *_ in rows:
        try:
            content = Path(own.locate_file(name)).read_bytes()  # type: ignore[arg-type]
        except FileNotFoundError:
            missing.append(name)
        except OSError as error:
            raise PluginError(f"{name} of {DISTRIBUTION} cannot be read: {error.strerror}") from error
        else:
            kind, _, digest = declared.partition("=")
            if kind == "sha256" and digest != base64.urlsafe_b64encode(sha256(content).digest()).decode().rstrip("="):
                changed.append(name)
    return missing, changed


def own_distribution() -> Distribution:
    """Give this plugin's own installed distribution."""
    try:
        return distribution(DISTRIBUTION)
    except PackageNotFoundError:
        raise PluginError(f"{PACKAGE} is importable, but {DISTRIBUTION} is not installed; install its wheel") from None


def proven_releases() -> list[str]:
    """List the releases of sglang that this plugin's metadata declares it proven on."""
    words = own_distribution().metadata.get("Keywords", "").split(",")  # type: ignore[attr-defined]  # until 3.12
    return [word.partition("==")[2] for word in words if word.startswith("sglang==")]


def upstream() -> tuple[str, Path]:
    """Give the version of the installed sglang and its folder, without importing it."""
    try:
        version = distribution("sglang").version
    except PackageNotFoundError:
        raise PluginError("sglang is not installed") from None
    spec = find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"sglang {version} is installed, but cannot be imported")
    return version, Path(spec.submodule_search_locations[0])


def _names_defined_in(file: Path) -> set[str]:
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError) as error:
        raise PluginError(f"{file}, where {DISTRIBUTION} attaches, cannot be read: {error}") from error
    names = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names
