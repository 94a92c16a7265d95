"""What a release's own metadata pins, as the lock records it."""

from __future__ import annotations

from collections.abc import Sequence

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from overlay_tools.errors import LockError
from overlay_tools.upstream.lockfile import LockedWheel, Release

KERNELS = ("sgl-kernel", "sglang-kernel")
_NOT_PEP_440 = "Its METADATA must be as the packaging standards want it: build the wheel anew, or take another release."


def make_release(
    version: str, requires_python: str, requires: Sequence[str], wheels: Sequence[LockedWheel], index: str = ""
) -> Release:
    """Return a release as the lock has it.

    Parameters: `requires_python` and `requires`, what its metadata says; `index` as of `Release`.
    Raises LockError if it does not pin what a lock needs, or cannot be read.
    """
    try:
        SpecifierSet(requires_python)
    except InvalidSpecifier:
        raise LockError(
            f"sglang {version} requires Python {requires_python!r}, which cannot be read.", hint=_NOT_PEP_440
        ) from None
    requirements: dict[str, Requirement] = {}
    for line in requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            raise LockError(f"sglang {version} requires {line!r}, which cannot be read.", hint=_NOT_PEP_440) from None
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirements.setdefault(canonicalize_name(requirement.name), requirement)
    kernel = next((requirements[name] for name in KERNELS if name in requirements), None)
    absent = [name for name in ("torch", "transformers") if name not in requirements]
    if kernel is None or absent:
        raise LockError(
            f"sglang {version} does not require {', '.join(absent) or ' or '.join(KERNELS)}.",
            hint="This tool needs a release that pins all of them.",
        )
    return Release(
        version=version,
        requires_python=requires_python,
        torch=_pin(requirements["torch"]),
        transformers=_pin(requirements["transformers"]),
        kernel=Requirement(f"{kernel.name}=={_pin(kernel)}"),
        wheels=tuple(wheels),
        index=index,
    )


def _pin(requirement: Requirement) -> str:
    specifiers = list(requirement.specifier)
    if len(specifiers) != 1 or specifiers[0].operator != "==" or specifiers[0].version.endswith(".*"):
        raise LockError(
            f"The release does not pin {requirement.name} to one version: {requirement}.",
            hint="This tool needs a release that pins it with ==.",
        )
    return specifiers[0].version
