"""A checkpoint of the hub is downloaded with the hub's own library, from a stand-in for it on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from overlay_tools.checkpoints.hub import download
from overlay_tools.errors import CheckpointError

from engine.stand_in_hub import COMMIT, HubAnswers, running_hub, tag_of

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same weights",
    "consolidated.safetensors": b"the same weights once more",
}


class Hub(HubAnswers):
    """Has owner/name, with the branches main and old, and owner/bin and owner/own, each with one form of it."""

    def answer(self, path: str) -> None:
        words = path.removeprefix("/api/models").split("/")[1:]
        held = {
            "name": [*FILES],
            "bin": ["config.json", "pytorch_model.bin"],
            "own": ["config.json", "consolidated.safetensors"],
        }
        files = {name: FILES[name] for name in held.get(words[1] if words[0] == "owner" else "", [])}
        if not files or (words[3:] and words[3] not in ("main", "old", COMMIT)):
            self.miss("RevisionNotFound" if files else "RepoNotFound")
        elif path.startswith("/api/models/"):
            named = {name: {"rfilename": name, "path": name, "size": len(data)} for name, data in files.items()}
            listed = [{"type": "file", "oid": tag_of(files[name]), **of} for name, of in named.items()]
            whole = {"id": "owner/name", "sha": COMMIT, "siblings": listed}
            self.send(json.dumps(listed if "/tree/" in path else whole).encode())
        elif words[2] == "resolve" and (name := words[-1]) in files:
            self.send(files[name])
        else:
            self.miss("EntryNotFound")


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run the stand-in, and let the hub's library ask it."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with running_hub(Hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield


def test_what_a_server_reads_of_a_checkpoint_is_downloaded() -> None:
    folder = download("owner/name", Path(sys.executable))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("config.json", "model.safetensors")
    }


@pytest.mark.parametrize(("name", "form"), [("bin", "pytorch_model.bin"), ("own", "consolidated.safetensors")])
def test_weights_in_another_form_are_downloaded_where_there_are_no_others(name: str, form: str) -> None:
    folder = download(f"owner/{name}", Path(sys.executable))
    assert {path.name for path in folder.iterdir()} == {"config.json", form}


def test_a_revision_is_what_was_asked_for() -> None:
    assert (download("owner/name", Path(sys.executable), "old") / "config.json").exists()
    with pytest.raises(CheckpointError, match="RevisionNotFound"):
        download("owner/name", Path(sys.executable), "other")


def test_what_the_hub_does_not_have_is_said() -> None:
    with pytest.raises(CheckpointError, match="There is no folder owner/other here, and it cannot") as caught:
        download("owner/other", Path(sys.executable))
    assert "404" in str(caught.value)
