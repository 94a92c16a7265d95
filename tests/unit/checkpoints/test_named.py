"""What a person names as a checkpoint: which kind it is, and what is said where it is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from overlay_tools.checkpoints.hub import is_hub_name
from overlay_tools.checkpoints.named import check_name, open_checkpoint, takes_pictures
from overlay_tools.errors import CheckpointError

from unit.conftest import Miniature

HUB = """#!/bin/sh
echo "$@" >>calls
case "$4" in Good/*) printf /cache/snapshot >"$5";; *) printf 'RepositoryNotFoundError: 404' >"$5"; exit 1;; esac
"""


@pytest.fixture
def python(mini_here: Miniature) -> Path:
    """Return a stand-in for an engine's interpreter, for which the hub has the checkpoints of one owner."""
    mini_here.write("python", HUB)
    (mini_here.root / "python").chmod(0o755)
    return mini_here.root / "python"


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "a/b", "0x/_y.z"])
def test_names_of_the_hub(name: str) -> None:
    assert is_hub_name(name)


@pytest.mark.parametrize("name", ["folder", "a/b/c", "./a", "../a", "/a/b", "a/", "a b/c", "~/a"])
def test_what_is_no_name_of_the_hub(name: str) -> None:
    assert not is_hub_name(name)


def test_a_folder_is_served_as_it_is_whatever_the_hub_has(mini_here: Miniature, python: Path) -> None:
    mini_here.write("Good/folder/config.json", "{}")
    check_name("Good/folder")
    assert open_checkpoint("Good/folder", python, []) == Path("Good/folder")
    assert not (mini_here.root / "calls").exists()


def test_a_name_of_the_hub_is_downloaded(mini_here: Miniature, python: Path) -> None:
    check_name("Good/one")
    assert open_checkpoint("Good/one", python, ["--revision=old", "--dtype", "x"]) == Path("/cache/snapshot")
    assert open_checkpoint("Good/one", python, ["--tp-size", "2", "--revision", "v1"]) == Path("/cache/snapshot")
    assert open_checkpoint("Good/one", python, []) == Path("/cache/snapshot")
    calls = (mini_here.root / "calls").read_text().splitlines()
    assert [line.partition("/out")[2].strip() for line in calls] == ["old", "v1", ""]
    with pytest.raises(CheckpointError, match=r"There is no folder Bad/one here.* RepositoryNotFoundError: 404"):
        open_checkpoint("Bad/one", python, [])


@pytest.mark.parametrize("name", ["nothing", "Good/folder", "a/b/c"])
def test_what_is_no_checkpoint_is_refused(mini_here: Miniature, name: str) -> None:
    mini_here.write("Good/folder/model.safetensors", "")
    with pytest.raises(CheckpointError, match=f"{name} is not a checkpoint: it has no config.json"):
        check_name(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ('{"a": {"b": 1, "b": 1}}', "cannot be read as JSON: `b` is there twice"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_a_broken_configuration_is_named(mini_here: Miniature, text: str, said: str) -> None:
    mini_here.write("folder/config.json", text)
    with pytest.raises(CheckpointError, match=f"folder/config.json {said}"):
        takes_pictures("folder")


def test_a_model_with_a_vision_tower_takes_pictures(mini_here: Miniature) -> None:
    mini_here.write("text/config.json", "{}")
    mini_here.write("eyes/config.json", '{"vision_config": {}}')
    assert [takes_pictures(name) for name in ("text", "eyes", "Good/one")] == [False, True, None]
