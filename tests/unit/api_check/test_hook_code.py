from __future__ import annotations

from unit.api_check.derived import check, misfits
from unit.conftest import PATCH, Miniature


def test_the_lines_of_a_hook_must_fit_the_overlay(ours: Miniature) -> None:
    lines = "+    from sglang.srt import overlay_registry\n+\n"
    lines += "+    if found := overlay_registry.choose(config):\n+        return found\n"
    patch = PATCH.replace("+    config = choose(config)\n", lines).replace("-3,5 +3,6", "-3,5 +3,9")
    ours.patch.write_text(patch)
    assert misfits(check(ours)) == []
    ours.patch.write_text(patch.replace("choose(config)", "choose(config, 1)"))
    (found,) = [item for item in check(ours) if item.problem]
    assert (found.where, found.kind) == ("patches/choose/1.0.patch:16", "call")
    assert "too many positional arguments" in found.problem
    ours.patch.write_text(patch.replace("registry.choose", "registry.chose"))
    assert misfits(check(ours)) == [
        "attribute <module>: overlay_registry.chose: sglang.srt.overlay_registry has no `chose`; now `choose`?"
    ]


def test_a_hook_is_checked_in_the_releases_that_take_it(ours: Miniature) -> None:
    lines = "+    from sglang.srt import registry\n"
    ours.patch.write_text(PATCH.replace("+    config = choose(config)\n", lines))
    assert misfits(check(ours)) == ["import sglang.srt.registry: sglang.srt has no `registry`"]
    assert misfits(check(ours, version="1.2")) == []


def test_a_line_of_a_hook_that_is_not_a_whole_statement_is_left_out(ours: Miniature) -> None:
    ours.patch.write_text(PATCH.replace("+    config = choose(config)\n", "+    config=(\n"))
    assert misfits(check(ours)) == []
