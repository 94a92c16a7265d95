"""Which of a user's settings of pip and uv count: how an index is reached does, what is installed and where does not.

noxfile.py reads this before anything is installed, so it imports the standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable

# Where packages come from: a user's index is how anything gets installed. They do not count where an index is named.
PLACES = ("index-url", "extra-index-url", "find-links", "no-index", "index", "default-index")
# How these places are reached: proxy, certificates, credentials, patience; and where downloads are kept. All that is
# not here would change what is installed, as `constraint`, `only-binary` or `exclude-newer`, where it goes, as `user`,
# `target` or `system`, or whether anything is, as `require-hashes` or `dry-run`.
_REACHED = {
    "PIP_": (
        *("proxy", "cert", "client-cert", "trusted-host", "keyring-provider", "use-feature", "use-deprecated"),
        *("timeout", "default-timeout", "retries", "resume-retries", "cache-dir", "no-cache-dir", "no-input"),
        *("disable-pip-version-check", "config-file"),
    ),
    "UV_": (
        *("native-tls", "system-certs", "insecure-host", "allow-insecure-host", "keyring-provider", "index-strategy"),
        *("http-proxy", "https-proxy", "no-proxy", "http-timeout", "http-connect-timeout", "request-timeout"),
        *("http-retries", "cache-dir", "no-cache", "offline", "link-mode", "credentials-dir", "no-progress"),
        *("concurrent-downloads", "concurrent-builds", "concurrent-installs", "torch-backend", "lock-timeout"),
        *("python-downloads", "python-preference", "python-install-dir", "python-install-mirror", "managed-python"),
        *("config-file", "no-config"),
    ),
}
_CREDENTIALS = "UV_INDEX_"  # and the name of an index, and USERNAME or PASSWORD


def counts(prefix: str, key: str) -> bool:
    """Tell whether a setting counts, by its key in a file; `prefix` is that of its variables, "PIP_" or "UV_"."""
    return key in PLACES or key in _REACHED[prefix]


def foreign_variables(names: Iterable[str]) -> list[str]:
    """Return which variables of an environment are settings of pip or uv that do not count."""
    return [
        name
        for name in names
        for prefix in _REACHED
        if name.startswith(prefix)
        and not name.startswith(_CREDENTIALS)
        and not counts(prefix, name.removeprefix(prefix).lower().replace("_", "-"))
    ]
