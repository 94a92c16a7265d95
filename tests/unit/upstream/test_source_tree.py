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


def test_what_a_file_holds_goes_by_its_content_in_each_release(mini: Miniature) -> None:
    same, other = b"kind = 'choose'\n", b"kind = 'refuse'\n"
    found = []
    for version, files in {"1.2": {"a": same, "b": other}, "1.3": {"a": same, "b": same}}.items():
        mini.lock_release(
            version, upstream_files(version) | {f"sglang/{name}.py": text for name, text in files.items()}
        )
        with open_source_tree(mini.lock[version], mini.cache) as sources:
            found.append(sources.holding("choose"))
            changed = sources.changed({"sglang/a.py": other, "sglang/b.py": same})
            assert changed.holding("choose") == ["sglang/b.py"]
    assert found == [["sglang/a.py"], ["sglang/a.py", "sglang/b.py"]]


def test_each_file_is_found_with_the_words_that_it_holds(mini: Miniature) -> None:
    texts = {"a": "BaseForCausalLM", "b": "BaseForC, BaseConfig", "c": "others of Bas"}
    mini.lock_release(
        "1.2", upstream_files("1.2") | {f"sglang/{name}.py": f"{text}".encode() for name, text in texts.items()}
    )
    with open_source_tree(mini.lock["1.2"], mini.cache) as sources:
        held = dict(sources.words_in(["BaseForCausalLM", "BaseForC", "BaseConfig", "other"]))
    assert held["sglang/a.py"] == {"BaseForCausalLM", "BaseForC"}
    assert held["sglang/b.py"] == {"BaseForC", "BaseConfig"}
    assert held["sglang/c.py"] == {"other"}
