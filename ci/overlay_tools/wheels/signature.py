"""A wheel's signature: a DSSE envelope over the statement of how it was made, in a file beside the wheel.

Envelopes and keys are securesystemslib's. The file is a bundle as in-toto names it, `<wheel>.intoto.jsonl`, of one
envelope, which can have the signatures of several keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from overlay_tools.errors import SignatureError, ToolError
from overlay_tools.settings import Project
from overlay_tools.user_files import read_data
from overlay_tools.wheels.dist import only_writer_of_dist, replace_file
from overlay_tools.wheels.provenance import read_subject, statement_of

try:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import CryptoSigner, Key, SSlibKey
except ImportError as error:
    raise ToolError(
        f"Signatures need a library that is not installed: {error}.",
        hint="`nox -s sign` and `nox -s verify` install it; elsewhere: pip install -e '.[sign]'.",
    ) from None

_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_SCHEMES = ("ed25519", "ecdsa-sha2-nistp256")
_MAKE_KEY = "`openssl genpkey -algorithm ed25519 -out KEY.pem` makes a key."
_MAKE_PUBLIC = "`openssl pkey -in KEY.pem -pubout -out PUB.pem` writes the public part of a key."
_SIGN = "`nox -s sign -- --key KEY.pem WHEEL` signs a wheel that this checkout has built."


def envelope_of(wheel: Path) -> Path:
    """Return where the signature of a wheel is: beside it."""
    return wheel.with_name(f"{wheel.name}.intoto.jsonl")


def short(keyid: str) -> str:
    """Return the beginning of a key's name, which is enough to tell it from others."""
    return ascii(keyid[:12])[1:-1]  # it may come from anyone


def load_signer(path: Path, ask: Callable[[], str]) -> CryptoSigner:
    """Return what signs with a private key.

    Parameters: `path`, a PEM file; `ask`, called for the password if the key has one.
    Raises SignatureError if the file cannot be read, the password is wrong, or the key is of another kind.
    """
    data = read_data(path, SignatureError, _MAKE_KEY)
    try:
        try:
            private = load_pem_private_key(data, None)
        except TypeError:  # the key has a password
            private = load_pem_private_key(data, ask().encode())
        signer = CryptoSigner(private)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path}: no private key can be read: {_said(error)}.", hint=_MAKE_KEY) from None
    _check_scheme(path, signer.public_key)
    return signer


def load_public_key(path: Path) -> Key:
    """Return the public key in a PEM file.

    Raises SignatureError if the file cannot be read, or the key is of another kind.
    """
    try:
        key = SSlibKey.from_crypto(load_pem_public_key(read_data(path, SignatureError, _MAKE_PUBLIC)))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path}: no public key can be read: {_said(error)}.", hint=_MAKE_PUBLIC) from None
    _check_scheme(path, key)
    return key


def plan_envelope(wheel: Path, signer: CryptoSigner) -> tuple[bytes, list[str]]:
    """Sign the statement about a wheel; the signatures of other keys under the same statement stay.

    Returns the envelope, and the keys whose signatures go because they are under another statement.
    Raises SignatureError if there is no statement about the wheel or it is about another one, or if what lies in the
    place of the envelope is none.
    """
    path = statement_of(wheel)
    statement = read_data(path, SignatureError, "`nox -s build` writes it beside the wheel.")
    _check_subject(wheel, statement, str(path))
    envelope, gone = Envelope(statement, _PAYLOAD_TYPE, {}), []
    if envelope_of(wheel).exists():
        former = _read_envelope(envelope_of(wheel))
        if (former.payload, former.payload_type) == (statement, _PAYLOAD_TYPE):
            envelope = former
        else:
            gone = sorted(former.signatures)
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), sort_keys=True).encode() + b"\n", gone


def sign_wheels(project: Project, wheels: Sequence[Path], signer: CryptoSigner) -> dict[Path, list[str]]:
    """Sign each wheel, or none if one of them cannot be signed; no other command writes to dist/ meanwhile.

    Returns the keys whose signatures were taken out, by wheel: they were under another statement.
    Raises SignatureError as `plan_envelope` does, BuildError if an envelope cannot be written.
    """
    with only_writer_of_dist(project, envelope_of(wheels[0])):
        planned = {wheel: plan_envelope(wheel, signer) for wheel in wheels}
        for wheel, (envelope, _) in planned.items():
            replace_file(envelope_of(wheel), envelope)
    return {wheel: gone for wheel, (_, gone) in planned.items()}


def verify_signature(wheel: Path, key: Key) -> None:
    """Check that a key has signed a statement about this very wheel.

    Raises SignatureError if it has not: there is no envelope, or a damaged one, it is signed by another key or was
    changed after that, or it is about a wheel of another name or content.
    """
    path = envelope_of(wheel)
    envelope = _read_envelope(path)
    if key.keyid not in envelope.signatures:
        raise SignatureError(
            f"{path} is not signed with this key, {short(key.keyid)}, but with"
            f" {', '.join(map(short, sorted(envelope.signatures))) or 'none'}.",
            hint="Get the public key of whoever built the wheel from a place that you trust.",
        )
    try:
        envelope.verify([key], threshold=1)
    except VerificationError:
        raise SignatureError(
            f"{path}: the signature is not one of what is in it: it was changed after it was signed.",
            hint="Do not use this wheel.",
        ) from None
    if envelope.payload_type != _PAYLOAD_TYPE:
        raise SignatureError(f"{path} signs {envelope.payload_type!r}, not a statement.", hint=_SIGN)
    _check_subject(wheel, envelope.payload, str(path))


def _check_subject(wheel: Path, statement: bytes, where: str) -> None:
    subject = read_subject(statement, where)
    if subject.name != wheel.name:
        raise SignatureError(
            f"{where} is about {subject.name}, not {wheel.name}.", hint="Give the wheel its name back."
        )
    found = hashlib.sha256(read_data(wheel, SignatureError, _SIGN)).hexdigest()
    if subject.sha256 != found:
        raise SignatureError(
            f"{wheel} is not the wheel that {where} is about: its sha256 is {found}, and should be {subject.sha256}.",
            hint="Do not use this wheel. If you have built it yourself, build it again and sign it.",
        )


def _read_envelope(path: Path) -> Envelope:
    data = read_data(path, SignatureError, _SIGN)
    try:
        envelope = Envelope.from_dict(json.loads(data))
        # It looks at the types of few of them before it uses them.
        envelope.pae()
        sorted(map(short, envelope.signatures))
    except Exception as error:  # securesystemslib says of no damage what it raises
        raise SignatureError(
            f"{path} cannot be read as an envelope of one line: {type(error).__name__}: {_said(error)}.",
            hint=f"Move it away. {_SIGN}",
        ) from None
    return envelope


def _check_scheme(path: Path, key: Key) -> None:
    if key.scheme not in _SCHEMES:
        raise SignatureError(f"{path} is a key for {key.scheme}, not for {' or '.join(_SCHEMES)}.", hint=_MAKE_KEY)


def _said(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
