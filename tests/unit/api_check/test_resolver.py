from __future__ import annotations

from overlay_tools.api_check.overlay_code import OverlayCode
from overlay_tools.api_check.resolver import NameResolver
from overlay_tools.upstream.source_tree import open_source_tree

from unit.conftest import Miniature, upstream_files

SHARED = b"from .base import Base\n\n\nclass Shared(Base):\n    def __init__(self):\n        self.made = Base()\n"


def members(mini: Miniature, version: str, bases: dict[str, str]) -> dict[str, list[str]]:
    """Lock a release whose packages all have one and the same file, and return the members of its class in each."""
    files = upstream_files(version)
    for package, member in bases.items():
        files |= {
            f"sglang/{package}/shared.py": SHARED,
            f"sglang/{package}/base.py": f"class Base:\n    def {member}(self): ...\n".encode(),
        }
    mini.lock_release(version, files)
    found = {}
    with open_source_tree(mini.lock[version], mini.cache) as sources:
        overlay = OverlayCode(files={}, accessed_attributes=frozenset(), called_names=frozenset())
        resolver = NameResolver(sources, overlay)
        for package in bases:
            (cls,) = resolver.resolve_import(f"sglang.{package}.shared", "Shared")
            made = resolver.resolve_attribute([cls], "made")
            found[package] = [name for name in ("old", "new") if resolver.resolve_attribute([cls], name)]
            assert found[package] == [name for name in ("old", "new") if resolver.resolve_attribute(made, name)]
    return found


def test_a_file_that_releases_and_packages_share_means_in_each_what_it_does_there(mini: Miniature) -> None:
    assert members(mini, "1.1", {"a": "old", "b": "new"}) == {"a": ["old"], "b": ["new"]}
    assert members(mini, "1.2", {"a": "new", "b": "new"}) == {"a": ["new"], "b": ["new"]}
    assert members(mini, "1.3", {"a": "old", "b": "new"}) == {"a": ["old"], "b": ["new"]}
