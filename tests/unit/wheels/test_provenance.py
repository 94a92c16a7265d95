from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from overlay_tools.errors import VerifyError
from overlay_tools.wheels.builder import BuiltWheel, build_kernel
from overlay_tools.wheels.plugin import build_plugin
from overlay_tools.wheels.provenance import Subject, make_statement, read_subject, statement_of

from unit.conftest import Miniature


def statement(built: BuiltWheel) -> dict[str, Any]:
    return dict(json.loads(statement_of(built.path).read_bytes()))


def definition(built: BuiltWheel) -> dict[str, Any]:
    return dict(statement(built)["predicate"]["buildDefinition"])


def sources(built: BuiltWheel) -> dict[str, str]:
    found = {each["name"]: next(iter(each["digest"].values())) for each in definition(built)["resolvedDependencies"]}
    assert len(found) == len(definition(built)["resolvedDependencies"])
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def commit(root: Path) -> str:
    """Make a repository of a checkout, and return the commit that holds all of it."""
    (root / ".gitignore").write_text(".nox/\ndist/\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_statement_beside_a_wheel_names_it(mini: Miniature) -> None:
    built = mini.build()
    found = statement(built)
    assert (found["_type"], found["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    assert found["subject"] == [{"name": built.path.name, "digest": {"sha256": sha256(built.path)}}]
    assert statement_of(built.path).name == f"{built.path.name}.provenance.json"
    assert statement_of(built.path).stat().st_mode & 0o777 == 0o644


def test_a_commit_that_git_does_not_tell_is_not_said_to_be_none(
    mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not a git checkout" in statement(mini.build())["predicate"]["runDetails"]["builder"]["version"]["checkout"]
    commit(mini.root)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git is absent" in statement(mini.build())["predicate"]["runDetails"]["builder"]["version"]["checkout"]


def test_it_says_what_was_asked_for(mini: Miniature) -> None:
    assert definition(mini.build())["buildType"] == "urn:sglang-overlay:build:1"
    release = {"release": "1.0", "revision": 3}
    assert definition(mini.build())["externalParameters"] == {
        "distribution": "sglang", "python": "cp311", "target": "manylinux_2_34_x86_64", **release
    }  # fmt: skip
    kernel = build_kernel(mini.project, mini.lock["1.0"])
    assert definition(kernel)["externalParameters"] == {
        "distribution": "sglang-kernel", "python": "py3", "target": "any", **release
    }  # fmt: skip


def test_it_names_all_that_the_build_read(mini: Miniature) -> None:
    base = mini.lock["1.0"].wheels[0]
    files = ("upstream.lock", "pyproject.toml", "patches/series", "LICENSE", "NOTICE")
    own = {name: sha256(mini.root / name) for name in files}
    built = mini.build()
    assert sources(built) == own | {
        base.name: base.sha256,
        "patches/choose/1.0.patch": sha256(mini.patch),
        "overlay/sglang/models/ours.py": sha256(mini.root / "overlay/sglang/models/ours.py"),
    }
    assert definition(built)["resolvedDependencies"][0]["uri"] == f"pkg:pypi/sglang@1.0?file_name={base.name}"
    kernel = build_kernel(mini.project, mini.lock["1.0"])
    name = "overlay/sgl_kernel/__init__.py"
    assert sources(kernel) == own | {name: sha256(mini.root / name)}


def test_the_plugin_is_made_of_files_of_the_overlay(mini: Miniature) -> None:
    mini.write("overlay/sglang_overlay_plugin/__init__.py", "")
    mini.write("overlay/sglang_overlay_plugin/attach.py", "")
    model = mini.write("overlay/sglang/models/ours.py", "import sglang.models.ours\n")
    built = build_plugin(mini.project)
    found = sources(built)
    assert found["overlay/sglang/models/ours.py"] == sha256(model)
    assert {name for name in found if name.startswith("overlay/sglang_overlay_plugin/")} == {
        "overlay/sglang_overlay_plugin/__init__.py",
        "overlay/sglang_overlay_plugin/attach.py",
    }
    assert definition(built)["externalParameters"].keys() == {"distribution", "python", "target", "revision"}


def test_a_commit_is_named_where_nothing_differs_from_it(mini: Miniature) -> None:
    def checkout() -> str:
        return str(statement(mini.build())["predicate"]["runDetails"]["builder"]["version"]["checkout"])

    assert checkout() == "not a git checkout with a commit"
    assert "checkout" not in sources(mini.build())
    head = commit(mini.root)
    built = mini.build()
    assert checkout() == head
    assert {"name": "checkout", "digest": {"gitCommit": head}} in definition(built)["resolvedDependencies"]
    mini.write("new.txt", "not in the commit\n")
    assert checkout() == f"{head}, changed since"
    assert "checkout" not in sources(mini.build())


def test_where_there_is_no_git_a_wheel_is_built_all_the_same(mini: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(mini.root)
    monkeypatch.setenv("PATH", "")
    assert "checkout" not in sources(mini.build())


def test_it_is_the_same_in_each_run(mini: Miniature) -> None:
    first = statement_of(mini.build().path).read_bytes()
    assert statement_of(mini.build().path).read_bytes() == first
    mini.write("overlay/sglang/models/ours.py", "OURS = 2\n")
    built = mini.build()
    assert read_subject(statement_of(built.path).read_bytes(), "it").sha256 == built.sha256


GOOD = json.loads(make_statement({}, Subject(name="x.whl", sha256="0")))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", "[" * 100_000, "\xff",
        json.dumps({**GOOD, "_type": "https://in-toto.io/Statement/v0.1"}),
        json.dumps({**GOOD, "predicateType": "https://slsa.dev/provenance/v0.2"}),
        json.dumps({**GOOD, "subject": []}),
        json.dumps({**GOOD, "subject": GOOD["subject"] * 2}),
        json.dumps({**GOOD, "subject": [{"name": "x.whl", "digest": {"sha512": "0"}}]}),
    ],
)  # fmt: skip
def test_what_is_no_statement_of_one_wheel_is_refused(text: str) -> None:
    assert read_subject(json.dumps(GOOD).encode(), "it") == Subject(name="x.whl", sha256="0")
    with pytest.raises(VerifyError, match="there is not a statement"):
        read_subject(text.encode("latin-1"), "there")
