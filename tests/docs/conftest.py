"""Two processes share the pages: the blocks of a page run in their order, for one takes what another has made."""

from __future__ import annotations

import pytest

from docs.pages import Block


@pytest.hookimpl(tryfirst=True)  # xdist looks for the groups in a hook of this name too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the blocks of a page together, and the tests of a file that is about no page."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        block = parameters.get("block")
        item.add_marker(pytest.mark.xdist_group(block.page if isinstance(block, Block) else item.path.name))
