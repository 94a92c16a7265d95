"""`changes`: what is otherwise in one release than in another, for the overlay."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import pytest
from overlay_tools import cli

from unit.api_check.derived import UPSTREAM, derive
from unit.conftest import LOADER, Miniature, upstream_files
from unit.upstream.conftest import Index

BASE, HEAD, ROUTER = "sglang/srt/models/base.py", "sglang/srt/layers/head.py", "sglang/srt/layers/router.py"
OURS = "overlay/sglang/srt/models/ours.py"


def files_of(version: str, others: Mapping[str, str]) -> dict[str, bytes]:
    texts = {name: textwrap.dedent(text).encode() for name, text in {**UPSTREAM, **others}.items()}
    return upstream_files(version) | texts


def changes(mini: Miniature, others: Mapping[str, str]) -> dict[str, Any]:
    """Compare a release with one that has other files; return what is written as JSON."""
    derive(mini)
    mini.lock_release("1.0", files_of("1.0", {}))
    mini.lock_release("1.1", files_of("1.1", others))
    before = mini.content()
    assert cli.main(["changes", "1.0", "1.1", "--json", ".nox/c.json", "--markdown", ".nox/c.md"]) == 0
    assert mini.content() == before
    return dict(json.loads((mini.root / ".nox/c.json").read_text()))


def with_text(name: str, old: str, new: str) -> dict[str, str]:
    assert old in UPSTREAM[name]
    return {name: UPSTREAM[name].replace(old, new)}


def for_you(found: dict[str, Any]) -> dict[str, str]:
    return {change["name"].rpartition(".")[2]: change["what"] for change in found["names"]}


def test_where_nothing_changed_it_says_so(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    found = changes(mini_here, {})
    assert found["names"] == found["findings"] == found["mentions"] == found["architectures"] == []
    assert found["open"] == 0
    said = capsys.readouterr().out
    assert "Nothing that the overlay uses has changed." in said
    assert "The overlay fits sglang 1.1." in said


def test_files_that_the_release_does_not_take_are_told(mini_here: Miniature) -> None:
    for name in ("old", "new", "both"):
        mini_here.write(f"overlay/sglang/models/{name}.py", "A = 1\n")
    mini_here.limit({"sglang/models/old.py": "==1.0", "sglang/models/new.py": ">=1.1", "sglang/models/both.py": ">=1"})
    (line,) = changes(mini_here, {})["left"]
    assert line.startswith("overlay/sglang/models/old.py is for sglang ==1.0 alone, as pyproject.toml:")
    assert f"## Files that stay behind\n\n- {line}" in (mini_here.root / ".nox/c.md").read_text().replace("\\", "")


def test_another_signature_is_told_with_the_lines_that_call_it(mini_here: Miniature) -> None:
    changed = with_text(ROUTER, "top_k, bias=None", "top_k, groups=1, bias=None")
    found = changes(mini_here, changed)
    (change,) = found["names"]
    assert change["name"] == "sglang.srt.layers.router:Router"
    assert change["what"] == "takes `groups=` too"
    assert change["fits"]
    line = next(n for n, text in enumerate((mini_here.root / OURS).read_text().split("\n"), 1) if "Router(2" in text)
    assert change["places"] == [f"{OURS}:{line}"]
    assert change["upstream"].startswith(f"{ROUTER}:")


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("top_k, bias, groups", "requires `groups` too; `bias` is required now"),
        ("top_k=1, bias=None, a=1, b=1", "takes `a=`, `b=` too; `top_k` is optional now"),
        ("bias=None, top_k=2", "`top_k` is optional now; its arguments have another order: (bias=, top_k=)"),
        ("top_k, *, bias=None", "`bias` is passed in another way"),
    ],
)
def test_how_a_signature_changed_is_said_in_words(mini_here: Miniature, new: str, said: str) -> None:
    found = changes(mini_here, with_text(ROUTER, "top_k, bias=None", new))
    whats = {change["name"]: change["what"] for change in found["names"] if change["fits"]}
    fits = "groups" not in new and not new.startswith("bias")
    assert whats.get("sglang.srt.layers.router:Router") == (said if fits else None)
    if not fits:
        assert found["open"] == len(found["findings"]) > 0


def test_a_name_that_moved_is_found_where_it_is_now(mini_here: Miniature) -> None:
    moved = {ROUTER: "class Kind:\n    SOFTMAX = 1\n", "sglang/srt/layers/routing.py": UPSTREAM[ROUTER]}
    found = changes(mini_here, moved)
    (change,) = (change for change in found["names"] if not change["fits"])
    assert change["name"] == "sglang.srt.layers.router:Router"
    assert "moved to sglang.srt.layers.routing?" in change["what"]
    assert [finding["kind"] for finding in found["findings"]] == ["import"]


def test_a_name_that_is_imported_from_elsewhere_still_works(mini_here: Miniature) -> None:
    moved = {
        ROUTER: "from sglang.srt.layers.routing import Kind, Router\n",
        "sglang/srt/layers/routing.py": UPSTREAM[ROUTER],
    }
    said = for_you(changes(mini_here, moved))
    here = "defined in sglang.srt.layers.routing now, in sglang.srt.layers.router before; the import still works"
    assert set(said.values()) == {here}
    assert len(said) == 2


def test_code_that_an_override_takes_the_place_of(mini_here: Miniature) -> None:
    changed = with_text(BASE, "return self.block(input_ids)", "x = 1\n                return self.block(input_ids, x)")
    (change,) = changes(mini_here, changed)["names"]
    assert change["name"] == "sglang.srt.models.base:BaseForCausalLM.forward"
    assert change["what"] == "upstream's own code changed, +2/-1 lines: see whether yours has to"


def test_code_that_no_override_concerns_is_not_told(mini_here: Miniature) -> None:
    assert changes(mini_here, with_text(ROUTER, "return backend", "return [backend]"))["names"] == []


def test_a_new_architecture_of_the_same_family_or_base_is_told(mini_here: Miniature) -> None:
    new = {
        "sglang/srt/models/base2.py": "class Base2ForCausalLM:\n    pass\n\n\nEntryClass = Base2ForCausalLM\n",
        "sglang/srt/models/heir.py": (
            "from sglang.srt.models.base import BaseForCausalLM\n\n\nclass HeirForCausalLM(BaseForCausalLM):\n"
            "    pass\n\n\nEntryClass = [HeirForCausalLM]\n"
        ),
        "sglang/srt/models/far.py": "class FarForCausalLM:\n    pass\n\n\nEntryClass = FarForCausalLM\n",
    }
    found = {item["name"]: item for item in changes(mini_here, new)["architectures"]}
    row = "OursForCausalLM (overlay/sglang/srt/overlay_models/ours.py:1)"
    assert found["Base2ForCausalLM"]["like"] == f"is of the family of BaseForCausalLM, the base of {row}"
    assert found["HeirForCausalLM"]["like"] == f"derives from BaseForCausalLM, as {row} does"
    assert found["HeirForCausalLM"]["where"] == "sglang/srt/models/heir.py:4"
    assert found["FarForCausalLM"]["like"] == ""


def test_new_places_that_name_a_base_are_told(mini_here: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'def special(config):\n    return config.architectures[0] == "BaseForCausalLM" or kind.__name__ == "{}"\n'
    new = {"sglang/srt/special.py": text.format("BaseForCausalLM")}
    found = changes(mini_here, new)
    assert [mention["handled"] for mention in found["mentions"]] == ["alias", ""]
    assert found["open"] == 1
    assert "1 thing is for a person to settle before the overlay fits sglang 1.1." in capsys.readouterr().out


def test_a_release_of_the_index_with_a_hook_in_conflict(
    mini_here: Miniature, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    before = mini_here.content()
    assert cli.main(["changes", "1.1", "2.0", "--json", ".nox/c.json", "--markdown", ".nox/c.md"]) == 0
    assert re.search(r"choose: sglang/loader.py:\d exact: get_model unchanged", capsys.readouterr().out)
    index.publish("2.1", files={"sglang/loader.py": LOADER.replace("name = config.name", "name = config.title")})
    assert cli.main(["changes", "1.1", "2.1", "--json", ".nox/c.json", "--markdown", ".nox/c.md"]) == 0
    assert mini_here.content() == before
    found = json.loads((mini_here.root / ".nox/c.json").read_text())
    assert found["without"] == ["choose"]
    assert found["open"] == 1
    assert {"transformers", "kernel"} <= {pin[0] for pin in found["pins"]}
    page = (mini_here.root / ".nox/c.md").read_text()
    assert page.startswith("1 thing is for a person to settle before the overlay fits sglang 2.1, choose left aside.")
    assert "## Hooks (1 conflict)\n\n- choose: sglang/loader.py" in page
    assert cli.main(["changes", "2.0", "2.1"]) == 0  # neither is locked
    assert "conflict" in capsys.readouterr().out


def test_what_is_left_out_is_shown_by_the_command_that_is_named(
    mini_here: Miniature, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlay_tools.report.changes._MOST", 0)
    assert cli.main(["changes", "1.1", "2.0", "--index", index.url, "--markdown", ".nox/c.md"]) == 0
    assert f"more: `nox -s changes -- 1.1 2.0 --index {index.url}`" in (mini_here.root / ".nox/c.md").read_text()


def test_what_upstream_writes_is_no_markup(mini_here: Miniature) -> None:
    changes(mini_here, with_text(BASE, "def describe(cls, config)", "def describe(cls, config, __x__=1)"))
    page = (mini_here.root / ".nox/c.md").read_text()
    assert "upstream also takes `__x__`" in page
    assert "BaseForCausalLM.\\_\\_init\\_\\_" not in page.replace("`", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["1.0", "1.0"], "OLD and NEW are both 1.0."),
        (["1.0", "newest"], "'newest' is not a version."),
        (["1.0", "1.1", "--json", "x", "--markdown", "x"], "both name x"),
        (["a/1.whl", "b/2.whl", "--index", "https://wheels.example/simple"], "--index is for a VERSION"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    mini_here: Miniature, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["changes", *words]) != 0
    assert said in capsys.readouterr().err
