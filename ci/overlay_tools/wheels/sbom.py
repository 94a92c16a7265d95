"""The bill of materials inside a built wheel: CycloneDX 1.6, in the folder where PEP 770 has scanners look for it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence

from cyclonedx.model import AttachedText, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import (
    Component,
    ComponentScope,
    ComponentType,
    Diff,
    Patch,
    PatchClassification,
    Pedigree,
)
from cyclonedx.model.issue import IssueClassification, IssueType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.metadata import parse_email
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from overlay_tools import __version__
from overlay_tools.patches.model import Patch as Variant
from overlay_tools.upstream.lockfile import LockedWheel
from overlay_tools.wheels.dependencies import extras_of, read_requirements
from overlay_tools.wheels.overlay_files import read_file

_OURS = ("added", "replaced")  # origins of the files that come from overlay/ whole
_SPDX = {"License :: OSI Approved :: Apache Software License": "Apache-2.0"}  # upstream gives no other id of it
_REQUIRES = "sglang-overlay:requires"  # of a component: the line of METADATA that pins it


def describe_wheel(
    name: str,
    version: str,
    *,
    base: LockedWheel | None,
    patches: Sequence[Variant],
    files: Mapping[str, Sequence[str]],
    metadata: bytes,
) -> bytes:
    """Return the bill of materials of a wheel as JSON: the same bytes for the same wheel.

    Parameters: `files`, as the manifest has them; `metadata`, the wheel's METADATA.
    Raises BuildError if a patch or a requirement cannot be read.
    """
    bom = Bom()
    licenses = _licenses(metadata)
    wheel = _distribution(name, version, licenses=licenses)
    if base is not None:
        wheel.pedigree = Pedigree(
            ancestors=[_ancestor(base, licenses)],
            patches=[_patch(patch) for patch in patches],
            notes=f"Patches are applied in this order: {', '.join(patch.hook for patch in patches)}"
            if patches
            else None,
        )
    bom.metadata.component = wheel
    bom.metadata.tools.components.add(
        Component(type=ComponentType.APPLICATION, name="sglang-overlay-tools", version=__version__)
    )
    bom.components.update([*_files(files), *_pins(read_requirements(metadata, f"{name} {version}"))])
    bom.register_dependency(wheel, bom.components)
    return _dump(bom)


def purl_of(name: str, version: str, file: str = "") -> PackageURL:
    """Return the package URL of a distribution; `file`, one of its wheels."""
    return PackageURL(
        "pypi", name=canonicalize_name(name), version=version, qualifiers={"file_name": file} if file else {}
    )


def base_purl(base: LockedWheel) -> PackageURL:
    """Return the package URL of a base wheel."""
    name, version, _, _ = parse_wheel_filename(base.name)
    return purl_of(name, str(version), base.name)


def _dump(bom: Bom) -> bytes:
    """Return a bill as JSON without what differs from run to run; its serial number is a hash of the rest."""
    data = json.loads(JsonV1Dot6(bom).output_as_string())
    del data["metadata"]["timestamp"], data["serialNumber"]
    text = json.dumps(data, sort_keys=True)
    data["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_OID, text).urn
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def _distribution(name: str, version: str, **fields: object) -> Component:
    purl = purl_of(name, version)
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        purl=purl,
        bom_ref=purl.to_string(),
        **fields,  # type: ignore[arg-type]
    )


def _ancestor(base: LockedWheel, licenses: Iterable[License]) -> Component:
    purl = base_purl(base)
    return Component(
        type=ComponentType.LIBRARY,
        name=purl.name,
        version=purl.version,
        purl=purl,
        bom_ref=purl.to_string(),
        hashes=[_sha256(base.sha256)],
        licenses=licenses,
    )


def _patch(variant: Variant) -> Patch:
    """Return what the bill says of a hook: its file whole, and the pull request of upstream's that it is taken from."""
    text = AttachedText(content=read_file(variant.path).decode("utf-8"), content_type="text/x-diff")
    forwarded = variant.header["Forwarded"]
    if not forwarded.startswith("https://"):
        return Patch(type=PatchClassification.UNOFFICIAL, diff=Diff(text=text))
    issue = IssueType(
        type=IssueClassification.DEFECT,
        name=variant.header["Subject"],
        description=variant.header["Why"],
        references=[XsUri(forwarded)],
    )
    return Patch(type=PatchClassification.CHERRY_PICK, diff=Diff(text=text), resolves=[issue])


def _files(files: Mapping[str, Sequence[str]]) -> list[Component]:
    return [
        Component(type=ComponentType.FILE, name=name, bom_ref=f"file:{name}", hashes=[_sha256(sha256)])
        for name, (origin, sha256) in files.items()
        if origin in _OURS
    ]


def _pins(requirements: Iterable[str]) -> list[Component]:
    """Return the distributions that are required in one version: those only for an extra are optional."""
    pinned: dict[tuple[str, str], list[Requirement]] = {}
    for line in requirements:
        requirement = Requirement(line)
        specifiers = list(requirement.specifier)
        if len(specifiers) == 1 and specifiers[0].operator in ("==", "===") and "*" not in specifiers[0].version:
            key = canonicalize_name(requirement.name), specifiers[0].version
            pinned.setdefault(key, []).append(requirement)
    return [
        _distribution(
            name,
            version,
            scope=ComponentScope.OPTIONAL if all(map(extras_of, lines)) else ComponentScope.REQUIRED,
            properties=[Property(name=_REQUIRES, value=str(line)) for line in lines],
        )
        for (name, version), lines in pinned.items()
    ]


def _licenses(metadata: bytes) -> list[License]:
    """Return the licences of METADATA: its SPDX expression or, in older ones, what its classifiers name."""
    fields, _ = parse_email(metadata)
    if expression := fields.get("license_expression"):
        return [LicenseExpression(expression)]
    named = [line for line in fields.get("classifiers", []) if line.startswith("License :: ")]
    return [DisjunctiveLicense(id=_SPDX[line]) if line in _SPDX else DisjunctiveLicense(name=line) for line in named]


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)
