"""Sign wheels with a key."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path

from overlay_tools import console
from overlay_tools.commands import Command
from overlay_tools.errors import SignatureError, UsageError
from overlay_tools.settings import Project

_PASSWORD = "SGLANG_OVERLAY_KEY_PASSWORD"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "wheels",
        nargs="*",
        type=Path,
        metavar="WHEEL",
        help="a wheel that this checkout has built (default: all of dist/)",
    )
    parser.add_argument(
        "--key",
        required=True,
        type=Path,
        metavar="KEY.pem",
        help=f"a private key, ed25519 or ECDSA P-256, in PEM; its password is asked for, or is in {_PASSWORD}",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Sign each wheel, or none if one of them cannot be signed."""
    from overlay_tools.wheels import signature  # an extra of the tool's

    wheels = arguments.wheels or sorted(project.dist.glob("*.whl"))
    if not wheels:
        raise UsageError(f"There is no wheel in {project.dist}.", hint="`nox -s build` builds one.")
    signer = signature.load_signer(arguments.key, lambda: _ask(arguments.key))
    signed = signature.sign_wheels(project, wheels, signer)
    key = f"{signer.public_key.scheme}, key {signature.short(signer.public_key.keyid)}"
    for wheel, gone in signed.items():
        console.line(f"{signature.envelope_of(wheel)}: signed with {key}")
        for keyid in gone:
            console.line(f"  took out the signature of {signature.short(keyid)}: it is under another statement")


def _ask(key: Path) -> str:
    if (password := os.environ.get(_PASSWORD)) is not None:
        return password
    if not sys.stdin.isatty():
        raise SignatureError(
            f"{key} has a password, and there is no terminal to ask for it.", hint=f"Put it into {_PASSWORD}."
        )
    try:
        return getpass.getpass(f"Password of {key}: ")
    except EOFError:
        raise SignatureError(f"{key} has a password, and none was given.", hint=f"Put it into {_PASSWORD}.") from None


COMMAND = Command(
    about="Signs the statement of how a wheel was made, which `nox -s build` writes beside it, and so the wheel: the"
    " statement names its hash. The signature goes into a file beside the wheel, which `nox -s verify -- --key` reads."
    " Another key adds its signature to those that are there.",
    examples={
        "--key KEY.pem": "all wheels of dist/",
        "--key KEY.pem dist/sglang-0.5.23+*.whl": "one wheel",
    },
    add_arguments=add_arguments,
    run=run,
)
