"""Which releases an index has, asked through the real pip."""

from __future__ import annotations

import pytest
from overlay_tools.errors import ToolError
from overlay_tools.upstream.versions import newer_versions

from unit.upstream.conftest import NOT_OURS, Index


def test_final_releases_count_and_others_by_choice(index: Index, other_index: Index) -> None:
    for version in ("1.9", "2.0.post1", "2.1rc1", "2.1.dev3", "2.10"):
        index.publish(version, tags=["cp311-cp311-manylinux_2_34_x86_64"])
    index.publish("2.2", tags=["cp312-cp312-manylinux_2_39_aarch64"])  # whatever this machine is
    index.publish("2.3", tags=["py3-none-any"])
    index.publish("2.4", tags=NOT_OURS)
    index.withdrawn = {"2.2"}
    assert newer_versions("1.1") == ["1.9", "2.0", "2.2", "2.3", "2.10"]
    assert newer_versions("2.0", posts=True) == ["2.0.post1", "2.2", "2.3", "2.10"]
    assert newer_versions("2.0", candidates=True) == ["2.1.dev3", "2.1rc1", "2.2", "2.3", "2.10"]
    assert newer_versions("2.10") == []
    other_index.publish("3.0")
    assert newer_versions("2.0", other_index.url) == ["3.0"]


def test_an_index_that_does_not_answer_is_named(index: Index) -> None:
    with pytest.raises(ToolError, match=r"http://127\.0\.0\.1:9/simple could not be asked") as caught:
        newer_versions("1.0", "http://127.0.0.1:9/simple")
    assert "network" in caught.value.hint
