"""The sglang that the other tests ask is the overlay's, not upstream's."""

from __future__ import annotations

from importlib.metadata import version

import sglang


def test_sglang_is_the_overlay_build() -> None:
    assert "+overlay." in version("sglang")
    assert sglang.__version__ == version("sglang")
