"""Compare wheels or environments with their manifests."""

from __future__ import annotations

import argparse
from pathlib import Path

from overlay_tools import console
from overlay_tools.commands import Command
from overlay_tools.errors import UsageError, VerifyError
from overlay_tools.settings import Project
from overlay_tools.wheels.verify import Verified, verify_wheel
from overlay_tools.wheels.verify_installed import verify_environment, verify_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("wheels", nargs="*", type=Path, metavar="WHEEL", help="a wheel that `nox -s build` wrote")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="PYTHON",
        help="the interpreter of an environment that such a wheel is installed in; the user's site-packages and"
        " PYTHONPATH are looked at too; may be given several times",
    )
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="a folder that such a wheel is installed in, as by `pip install --target`; may be given several times",
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="PUB.pem",
        help="the public key that each WHEEL must be signed with; the signature lies beside it (default: none)",
    )


def run(project: Project, arguments: argparse.Namespace) -> None:
    """Compare each, show every difference, and fail if there is any."""
    if not arguments.wheels and not arguments.env and not arguments.path:
        raise UsageError(
            "There is nothing to verify: name a WHEEL, an environment or a folder.",
            hint="`nox -s verify -- WHEEL`, `nox -s verify -- --env PYTHON` or `nox -s verify -- --path FOLDER`.",
        )
    if arguments.key:
        _check_signatures(arguments.wheels, arguments.key)
    results = [verify_wheel(path) for path in arguments.wheels]
    remarks: list[str] = []
    found = [*map(verify_environment, arguments.env), *map(verify_folder, arguments.path)]
    for one in found:
        results += one.verified
        remarks += one.remarks
    for result in results:
        _show(result)
    for remark in remarks:
        console.line(remark)
    different = [result.name for result in results if result.differences]
    if different:
        raise VerifyError(*(f"{name} is not as it was built." for name in different), hint="Install or build it anew.")


def _check_signatures(wheels: list[Path], path: Path) -> None:
    """Check that each wheel is signed with a key, before anything else of it is read."""
    from overlay_tools.wheels import signature  # an extra of the tool's

    if not wheels:
        raise UsageError("--key is for wheels, and none is named.", hint="`nox -s verify -- WHEEL --key PUB.pem`.")
    key = signature.load_public_key(path)
    for wheel in wheels:
        signature.verify_signature(wheel, key)
        console.line(f"{wheel.name}: signed with {key.scheme}, key {signature.short(key.keyid)}")


def _show(result: Verified) -> None:
    where = f" in {result.place}" if result.place else ""
    by = ", upstream's, by its RECORD" if result.upstreams else ""
    console.line(f"{result.name}{where}{by}: {result.files} files, {len(result.differences) or 'no'} differences")
    for difference in result.differences:
        console.line(f"  {difference}", style="red")


COMMAND = Command(
    about="Compares every file of a wheel, or of what an environment has of it, with the manifest inside the wheel and"
    " with RECORD: what is changed, missing or foreign is listed, and the exit status is 1. Where Python would import a"
    " package from anywhere else than where its wheel is installed, that is an error. Python's caches and other"
    " packages are not compared.",
    examples={
        "dist/sglang-0.5.23+*.whl": "a wheel",
        "dist/sglang-0.5.23+*.whl --key PUB.pem": "a wheel that was signed with `nox -s sign`",
        "--env .venv/bin/python": "what is installed in an environment",
        "--path libraries": "what is installed in a folder",
    },
    add_arguments=add_arguments,
    run=run,
)
