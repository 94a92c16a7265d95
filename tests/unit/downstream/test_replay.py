from __future__ import annotations

import shutil

import pytest
from bench.port.replay import replay
from overlay_tools.errors import PortError

from unit.conftest import LOADER, PATCH, Miniature, upstream_files

FILE = "sglang/loader.py"


def test_a_replay_carries_the_oldest_release_s_hooks_through_all_the_others(mini: Miniature) -> None:
    moved = "# more\n" + LOADER
    mini.lock_release("1.2", upstream_files("1.2") | {FILE: moved.encode()})
    mini.patch.write_text(PATCH.replace("<=1.1", "<=1.2"))
    mini.add_hook("later", {FILE: moved}, {FILE: moved.replace("# more", "# most")}, "==1.2")
    mini.write("patches/series", "choose\nlater ==1.2\n")  # what is due later is not the oldest release's
    mini.write("ci/nothing", "")
    before = mini.content()
    assert replay(mini.project, mini.lock, mini.cache) == {"exact": 1, "offset": 1}
    assert mini.content() == before


@pytest.mark.parametrize("ended", [True, False])
def test_a_replay_drops_a_hook_where_patches_says_that_it_ends(mini: Miniature, ended: bool) -> None:
    gone = LOADER.replace("get_model", "find_model").replace("config.name", "config.title")
    mini.write("patches/series", "")
    path = mini.add_hook("ends", {FILE: LOADER}, {FILE: LOADER.replace("name = c", "name = 1, c")}, ">=1.0,<=1.1")
    mini.write("patches/series", "ends <1.2\n")
    shutil.rmtree(mini.root / "patches/choose")
    mini.lock_release("1.2", upstream_files("1.2") | {FILE: gone.encode()})
    mini.write("ci/nothing", "")
    if ended:
        assert replay(mini.project, mini.lock, mini.cache) == {"exact": 1, "dropped": 1}
    else:
        first = path.read_text()
        mini.add_hook("ends", {FILE: gone}, {FILE: gone.replace("name = c", "name = 1, c")}, "==1.2")
        path.rename(path.with_name("1.2.patch"))
        path.write_text(first)
        mini.write("patches/series", "ends\n")
        with pytest.raises(PortError, match=r"ends.1\.0\.patch"):
            replay(mini.project, mini.lock, mini.cache)
