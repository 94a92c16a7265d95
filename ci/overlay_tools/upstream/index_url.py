"""The URL of a package index that is not the one that uv and pip are configured for."""

from __future__ import annotations

from urllib.parse import urlsplit

from overlay_tools.errors import UsageError

_HINT = (
    "Give it as uv and pip take it, as https://host/simple. A user name and a password are for ~/.netrc or a keyring,"
    " which both of them read."
)


def fault_of_index(url: str) -> str:
    """Return what is wrong with the URL of an index, in words that do not repeat it, or ""."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "cannot be read as a URL"
    if parts.username is not None or parts.password is not None:
        return "holds a user name or a password, which upstream.lock must not"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "must begin with https://HOST or http://HOST"
    if parts.query or parts.fragment:
        return "must end without a query or a fragment"
    return ""


def checked_index(url: str) -> str:
    """Return the URL of an index as a lock has it.

    Raises UsageError, which does not repeat the URL, if it is none or holds what is secret.
    """
    if fault := fault_of_index(url):
        raise UsageError(f"The URL of --index {fault}.", hint=_HINT)
    return url.rstrip("/")
