"""Files of overlay/ that some releases take, and others do not."""

from __future__ import annotations

import zipfile

import pytest
from overlay_tools.api_check.contract import check_contract
from overlay_tools.errors import BuildError
from overlay_tools.patches.series import load_series
from overlay_tools.proving.inputs import Inputs
from overlay_tools.upstream.source_tree import open_source_tree
from overlay_tools.wheels.builder import BuiltWheel, build_kernel
from overlay_tools.wheels.overlay_files import check_ranges
from overlay_tools.wheels.plugin import build_plugin
from overlay_tools.wheels.verify import verify_wheel

from unit.conftest import Miniature, upstream_files

NAME = "sglang/models/more.py"


@pytest.fixture
def mini(mini: Miniature) -> Miniature:
    """Return a project with a file that upstream has too from 1.1 on."""
    mini.write(f"overlay/{NAME}", "MORE = 'ours'\n")
    mini.lock_release("1.1", {**upstream_files("1.1"), NAME: b"MORE = 'upstream'\n"})
    return mini


def content(built: BuiltWheel, name: str = NAME) -> bytes | None:
    assert verify_wheel(built.path).differences == []
    with zipfile.ZipFile(built.path) as wheel:
        assert len(set(wheel.namelist())) == len(wheel.namelist())
        return wheel.read(name) if name in wheel.namelist() else None


def faults(mini: Miniature) -> list[str]:
    with pytest.raises(BuildError) as caught:
        check_ranges(mini.project, mini.lock)
    return [problem.replace(str(mini.root), "") for problem in caught.value.problems]


def test_a_release_takes_the_files_whose_range_it_is_in(mini: Miniature) -> None:
    with pytest.raises(BuildError, match=r"more\.py exists upstream") as caught:
        mini.build("1.1")
    assert "[tool.sglang-overlay.files]" in caught.value.hint
    mini.limit({NAME: "<1.1"})
    old, new = mini.build("1.0"), mini.build("1.1")
    assert (content(old), content(new)) == (b"MORE = 'ours'\n", b"MORE = 'upstream'\n")
    assert (old.left_out, new.left_out) == ([], [NAME])
    assert NAME not in new.added


def test_no_range_and_a_range_for_every_release_make_the_same_wheel(mini: Miniature) -> None:
    before = mini.build("1.0").sha256
    mini.limit({"sglang/models/*": ">=1.0"})
    assert mini.build("1.0").sha256 == before


def test_a_file_replaces_upstreams_only_where_it_goes(mini: Miniature) -> None:
    text = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", text.replace("replaces = []", f'replaces = ["{NAME}"]'))
    assert content(mini.build("1.1")) == b"MORE = 'ours'\n"
    mini.limit({NAME: "==1.0"})
    assert content(mini.build("1.1")) == b"MORE = 'upstream'\n"


def test_a_range_changes_the_results_of_the_releases_alone_that_it_leaves_out(mini: Miniature) -> None:
    def digests() -> list[dict[str, str]]:
        now = Inputs(mini.project, load_series(mini.project.patches))
        return [now.parts(mini.lock[version], "engine") for version in ("1.0", "1.1")]

    before = digests()
    mini.limit({NAME: "<1.1"})
    after = digests()
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"sglang/models/les.py": ">=1.0"}, "/pyproject.toml:8: overlay/ has no file sglang/models/les.py."),
        (
            {"sglang/models/*": ">=1.0", NAME: ">=1.0"},
            f"/pyproject.toml:9: {NAME} and sglang/models/* both match {NAME}.",
        ),
        (
            {NAME: ">1.1,<2"},
            f"/pyproject.toml:8: no locked release is in the range '<2,>1.1' of {NAME}: it goes into no wheel.",
        ),
        (
            {"sgl_kernel/*": ">=1.0"},
            "/pyproject.toml:8: sgl_kernel/__init__.py goes into a wheel for every release, so its releases cannot be"
            " limited.",
        ),
    ],
)  # fmt: skip
def test_a_range_that_cannot_be_is_named_with_its_line(mini: Miniature, ranges: dict[str, str], said: str) -> None:
    mini.limit(ranges)
    assert faults(mini) == [said]


def test_a_range_for_no_file_stops_every_build(mini: Miniature) -> None:
    mini.limit({"sglang/models/les.py": ">=1.0"})
    with pytest.raises(BuildError, match=r"pyproject.toml:8: overlay/ has no file"):
        mini.build("1.0")
    with pytest.raises(BuildError, match=r"pyproject.toml:8: overlay/ has no file"):
        build_kernel(mini.project, mini.lock["1.0"])


def imports(mini: Miniature, version: str) -> list[str]:
    with open_source_tree(mini.lock[version], mini.cache) as sources:
        found = check_contract(mini.project, sources)
    return [f"{item.where}: {item.problem or 'fits'}" for item in found if item.kind == "import"]


def test_the_contract_asks_of_a_release_what_its_own_files_need(mini: Miniature) -> None:
    mini.write(f"overlay/{NAME}", "from sglang.loader import no_such_name\n")
    mini.limit({NAME: "<1.1"})
    assert imports(mini, "1.0") == [f"overlay/{NAME}:1: sglang.loader has no `no_such_name`"]
    assert imports(mini, "1.1") == []


def test_a_file_that_imports_one_which_the_release_does_not_take_is_found(mini: Miniature) -> None:
    mini.write("overlay/sglang/models/deep.py", "DEEP = 1\n")
    mini.write(
        "overlay/sglang/models/ours.py",
        f"from sglang.models.deep import DEEP\nfrom {NAME[:-3].replace('/', '.')} import MORE\n",
    )
    mini.limit({"sglang/models/deep.py": "<1.1", NAME: "<1.1"})
    assert imports(mini, "1.0") == [f"overlay/sglang/models/ours.py:{line}: fits" for line in (1, 2)]
    assert imports(mini, "1.1") == [
        "overlay/sglang/models/ours.py:1: there is no module sglang.models.deep",
        "overlay/sglang/models/ours.py:2: fits",  # upstream's own
    ]


@pytest.mark.parametrize(("releases", "taken"), [(">=1.0", True), (">=1.1", False), ("<1.0", False)])
def test_the_plugin_has_what_all_releases_that_it_is_proven_on_take(
    mini: Miniature, releases: str, *, taken: bool
) -> None:
    text = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", text.replace("plugin = []", 'plugin = ["1.0"]'))
    mini.write("overlay/sglang/models/extra.py", "")
    mini.lock_release("0.9")
    mini.limit({"sglang/models/extra.py": releases})
    built = build_plugin(mini.project)
    assert ("sglang_overlay_plugin/models/extra.py" in built.added, "sglang/models/extra.py" in built.left_out) == (
        taken,
        not taken,
    )


def test_a_plugin_for_releases_that_differ_in_a_file_is_refused(mini: Miniature) -> None:
    text = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", text.replace("plugin = []", 'plugin = ["1.0", "1.1"]'))
    mini.limit({NAME: "<1.1"})
    with pytest.raises(BuildError, match=f"overlay/{NAME} goes to 1.0 of the releases that the plugin is proven on"):
        build_plugin(mini.project)


def test_a_range_of_files_or_requirements_holds_for_a_release_before_its_final_one(mini: Miniature) -> None:
    mini.limit({NAME: ">=1.2.dev1"})
    mini.require('releases = ">=1.2.dev1"\noverride = ["numpy<2"]\n')
    check_ranges(mini.project, ["1.2.dev2"])
    with pytest.raises(BuildError) as caught:
        check_ranges(mini.project, ["1.0", "1.1"])
    assert len(caught.value.problems) == 2
    assert caught.value.hint == "upstream.lock holds 1.0, 1.1."
