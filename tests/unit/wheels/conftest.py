from __future__ import annotations

import pytest

from unit.conftest import HEADER, Miniature


@pytest.fixture
def less(mini: Miniature) -> Miniature:
    """Return a project with a hook that deletes a file, and one that makes another executable."""
    mini.patch.write_text(
        HEADER + "diff --git a/sglang/loader.py b/sglang/loader.py\nold mode 100644\nnew mode 100755\n"
    )
    mini.add_hook("less", {"sglang/version.py": "from sglang._version import __version__\n"}, {})
    return mini
