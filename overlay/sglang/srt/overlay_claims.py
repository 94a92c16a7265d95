"""Which overlay has which names: a process may have several, the drop-in wheel and plugins of different names.

All of them write into one table, an attribute of sglang itself. Overlays of different revisions meet there, so its name
and its form stay as they are: the packages of the overlays that have a name, by what it names and the name.
"""

from importlib.metadata import PackageNotFoundError, packages_distributions, version

from sglang.srt.overlay_models import OverlayError

_PACKAGE = __name__.partition(".")[0]  # sglang, or a plugin's
_TABLE = "overlay_claims"


def claim(kind: str, *names: str) -> None:
    """Take names for this overlay; a second time changes nothing.

    Raises OverlayError, with both overlays, if another one has had one of them before.
    """
    table = _table()
    for name in names:
        packages = table.setdefault((kind, name), [])
        if _PACKAGE not in packages:
            packages.append(_PACKAGE)
    if faults := _clashes(first=False):
        raise OverlayError("; ".join(faults))


def is_anothers(kind: str, name: str) -> bool:
    """Tell whether another overlay of this process has a name."""
    return any(package != _PACKAGE for package in _table().get((kind, name), []))


def clashes() -> list[str]:
    """Say which names of this overlay others have too."""
    return _clashes(first=True)


def _clashes(*, first: bool) -> list[str]:
    """Say which names others have too; those that this overlay had `first` are left out, unless they are asked for."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for (kind, name), packages in _table().items():
        if _PACKAGE in packages and len(packages) > 1 and (first or packages[0] != _PACKAGE):
            shared.setdefault(tuple(packages), []).append(f"the {kind} {name}")
    return [
        f"{' and '.join(map(_describe, packages))} both have {', '.join(names)}; uninstall one, or let SGLANG_PLUGINS"
        " leave one out"
        for packages, names in shared.items()
    ]


def _table() -> dict[tuple[str, str], list[str]]:
    import sglang

    return vars(sglang).setdefault(_TABLE, {})  # type: ignore[no-any-return]


def _describe(package: str) -> str:
    """Name the distribution that brings a package, with its version."""
    try:
        return " or ".join(f"{name} {version(name)}" for name in sorted(set(packages_distributions()[package])))
    except (KeyError, PackageNotFoundError):
        return package
