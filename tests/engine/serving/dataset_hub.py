"""A stand-in for the Hugging Face hub, on this machine, that has data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from engine.stand_in_hub import COMMIT, HubAnswers, running_hub, tag_of

Files = Mapping[str, bytes]


def data_set(configurations: Sequence[str], splits: Files, ending: str) -> dict[str, bytes]:
    """Give the files of a data set whose configurations all have the same splits."""
    files = {f"{split}.{ending}": data for split, data in splits.items()}
    lines = ["---", "configs:"]
    for name in configurations:
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [f"  - split: {split}\n    path: {split}.{ending}" for split in splits]
    return {"README.md": "\n".join([*lines, "---", ""]).encode(), **files}


@contextmanager
def serving(data_sets: Mapping[str, Files]) -> Iterator[str]:
    """Serve data sets, by their names on the hub, and yield the address."""

    class Hub(HubAnswers):
        def answer(self, path: str) -> None:
            owner, name, *rest = path.removeprefix("/api").removeprefix("/datasets/").split("/")
            files = data_sets.get(f"{owner}/{name}", {})
            if rest[:1] == ["resolve"] and (file := "/".join(rest[2:])) in files:
                self.send(files[file])
            elif files and rest[:1] in ([], ["revision"]):
                siblings = [{"rfilename": file} for file in files]
                self.send(json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}).encode())
            elif files and rest[:1] == ["tree"]:
                listed = [
                    {"type": "file", "path": file, "size": len(data), "oid": tag_of(data)}
                    for file, data in files.items()
                ]
                self.send(json.dumps(listed).encode())
            else:
                self.miss("EntryNotFound" if files else "RepoNotFound")

    with running_hub(Hub) as address:
        yield address
