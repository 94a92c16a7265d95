from __future__ import annotations

from overlay_tools.upstream.source_tree import open_source_tree

from unit.conftest import Miniature, upstream_files


def test_the_files_that_hold_a_word_are_found(mini: Miniature) -> None:
    texts = {"a": "BaseForCausalLM = 1", "b": "BaseForClassification = 2", "c": "base = 3", "d": "Base = 4"}
    files = {f"sglang/{name}.py": text.encode() for name, text in texts.items()}
    mini.lock_release("1.2", upstream_files("1.2") | files)
    with open_source_tree(mini.lock["1.2"], mini.cache) as sources:
        assert sources.holding("BaseForCausalLM") == ["sglang/a.py"]
        assert sources.holding("BaseForCausalLM", "BaseForCausalLM", "base") == ["sglang/a.py", "sglang/c.py"]
        assert sources.holding("BaseForCausalLM", "Base") == ["sglang/a.py", "sglang/b.py", "sglang/d.py"]
        assert sources.holding("nothing") == []
