from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from overlay_tools.errors import BuildError
from overlay_tools.wheels.builder import BuiltWheel, build_kernel
from overlay_tools.wheels.plugin import build_plugin
from overlay_tools.wheels.verify import verify_wheel

from unit.conftest import LOADER, PATCH, Miniature, upstream_files

PLACE = ".dist-info/sboms/sglang-overlay.cdx.json"
SGLANG = "pkg:pypi/sglang@1.0%2Boverlay.3"  # a "+" in a package URL is a blank to some
PULL = "https://github.com/sgl-project/sglang/pull/1"


def text_of(built: BuiltWheel) -> str:
    with zipfile.ZipFile(built.path) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(PLACE))
        assert name.count("/") == 2
        return wheel.read(name).decode()


def bill_of(built: BuiltWheel) -> dict[str, Any]:
    """Return the bill of materials of a wheel, which must be as the schema of CycloneDX 1.6 has it."""
    text = text_of(built)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return dict(json.loads(text))


def components(bill: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {component["bom-ref"]: component for component in bill["components"]}
    assert len(found) == len(bill["components"])
    return found


def requiring(*lines: str, head: str = "") -> dict[str, bytes]:
    """Return what a wheel of upstream holds that has these requirements."""
    files = upstream_files("1.0")
    name = "sglang-1.0.dist-info/METADATA"
    required = "".join(f"Requires-Dist: {line}\n" for line in lines)
    text = files[name].decode().replace("Requires-Dist: numpy ; extra == 'all'\n", required + head)
    assert "numpy ;" not in text
    return {**files, name: text.encode()}


def test_the_wheel_names_its_base_and_itself(mini: Miniature) -> None:
    bill = bill_of(mini.build())
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    wheel = bill["metadata"]["component"]
    assert (wheel["type"], wheel["name"], wheel["version"]) == ("library", "sglang", "1.0+overlay.3")
    assert wheel["purl"] == wheel["bom-ref"] == SGLANG
    (ancestor,) = wheel["pedigree"]["ancestors"]
    base = mini.lock["1.0"].wheels[0]
    assert ancestor["purl"] == f"pkg:pypi/sglang@1.0?file_name={base.name}"
    assert ancestor["hashes"] == [{"alg": "SHA-256", "content": base.sha256}]
    assert (ancestor["name"], ancestor["version"]) == ("sglang", "1.0")
    assert [tool["name"] for tool in bill["metadata"]["tools"]["components"]] == ["sglang-overlay-tools"]


def test_each_hook_is_a_patch_of_the_pedigree(mini: Miniature) -> None:
    changed = LOADER.replace("return 3", "return 4")
    mini.add_hook("last", {"sglang/loader.py": LOADER}, {"sglang/loader.py": changed})
    taken = mini.root / "patches" / "last" / "1.0.patch"
    taken.write_text(taken.read_text().replace("no: ours alone", PULL))
    pedigree = bill_of(mini.build())["metadata"]["component"]["pedigree"]
    ours, upstreams = sorted(pedigree["patches"], key=lambda patch: patch["type"], reverse=True)
    assert (ours["type"], ours.get("resolves")) == ("unofficial", None)
    assert ours["diff"]["text"] == {"content": PATCH, "contentType": "text/x-diff"}
    assert upstreams["type"] == "cherry-pick"
    assert upstreams["diff"]["text"]["content"] == taken.read_text()
    issue = {"type": "defect", "name": "What last does", "description": "because", "references": [PULL]}
    assert upstreams["resolves"] == [issue]
    assert pedigree["notes"].endswith("order: choose, last")


def test_a_wheel_without_hooks_has_no_patches(mini: Miniature) -> None:
    mini.write("patches/series", "choose ==1.1\n")
    mini.patch.write_text(PATCH.replace(">=1.0,<=1.1", "==1.1"))
    pedigree = bill_of(mini.build())["metadata"]["component"]["pedigree"]
    assert pedigree.keys() == {"ancestors"}


def test_each_file_of_the_overlay_is_a_component(mini: Miniature) -> None:
    mini.write("pyproject.toml", (mini.root / "pyproject.toml").read_text().replace("[]", '["sglang/version.py"]', 1))
    mini.write("overlay/sglang/version.py", "VERSION = 1\n")
    found = components(bill_of(mini.build()))
    assert found == {
        f"file:{name}": {
            "type": "file",
            "name": name,
            "bom-ref": f"file:{name}",
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(text).hexdigest()}],
        }
        for name, text in {"sglang/models/ours.py": b"OURS = 1\n", "sglang/version.py": b"VERSION = 1\n"}.items()
    }


def test_what_the_release_pins_is_a_component(mini: Miniature) -> None:
    mini.lock_release(
        "1.0",
        requiring(
            "Torch_Audio==2.0; sys_platform == 'linux'", "numpy>=1", "torch==2.*", "av==1,!=1.1", "scipy===1.0",
            "cloudpickle==3; extra == 'all'", "both==1; extra == 'all'", "both==1", "av==17; extra == 'all'",
        ),
    )  # fmt: skip
    bill = bill_of(mini.build())
    found = {ref: each for ref, each in components(bill).items() if ref.startswith("pkg:")}
    assert {ref: each["scope"] for ref, each in found.items()} == {
        "pkg:pypi/torch-audio@2.0": "required",
        "pkg:pypi/scipy@1.0": "required",
        "pkg:pypi/cloudpickle@3": "optional",
        "pkg:pypi/both@1": "required",
        "pkg:pypi/av@17": "optional",
    }
    assert all(each["purl"] == ref and each["type"] == "library" for ref, each in found.items())
    assert [each["value"] for each in found["pkg:pypi/both@1"]["properties"]] == ["both==1", 'both==1; extra == "all"']
    graph = {entry["ref"]: entry.get("dependsOn", []) for entry in bill["dependencies"]}
    assert set(graph.pop(SGLANG)) == {*found, "file:sglang/models/ours.py"} == graph.keys()
    assert not any(graph.values())


def test_a_changed_requirement_is_listed_as_it_is_in_the_wheel(mini: Miniature) -> None:
    mini.lock_release("1.0", requiring("torch==2.0"))
    mini.require('override = ["torch==2.1"]\n')
    assert "pkg:pypi/torch@2.1" in components(bill_of(mini.build()))


@pytest.mark.parametrize(
    ("head", "licenses"),
    [
        ("License-Expression: Apache-2.0 OR MIT\n", [{"expression": "Apache-2.0 OR MIT"}]),
        ("Classifier: License :: OSI Approved :: Apache Software License\n", [{"license": {"id": "Apache-2.0"}}]),
        ("Classifier: Private :: X\nClassifier: License :: Y\n", [{"license": {"name": "License :: Y"}}]),
        ("", None),
    ],
)
def test_the_licence_is_that_of_metadata(mini: Miniature, head: str, licenses: list[object] | None) -> None:
    mini.lock_release("1.0", requiring(head=head))
    wheel = bill_of(mini.build())["metadata"]["component"]
    assert wheel.get("licenses") == wheel["pedigree"]["ancestors"][0].get("licenses") == licenses


def test_the_wheels_of_our_own_files_have_one_too(mini: Miniature) -> None:
    bill = bill_of(build_kernel(mini.project, mini.lock["1.0"]))
    wheel = bill["metadata"]["component"]
    assert wheel["purl"] == "pkg:pypi/sglang-kernel@0.4%2Bcpu.3"
    assert wheel["licenses"] == [{"expression": "Apache-2.0"}]
    assert "pedigree" not in wheel
    assert components(bill).keys() == {"file:sgl_kernel/__init__.py"}
    mini.write("overlay/sglang_overlay_plugin/__init__.py", "")
    mini.write("overlay/sglang_overlay_plugin/attach.py", "")
    mini.write("overlay/sglang/models/ours.py", "")
    plugin = bill_of(build_plugin(mini.project))
    assert plugin["metadata"]["component"]["purl"] == "pkg:pypi/sglang-overlay-plugin@3"
    assert "file:sglang_overlay_plugin/models/ours.py" in components(plugin)


def test_it_is_the_same_in_each_run_and_another_one_for_another_wheel(mini: Miniature) -> None:
    mini.lock_release("1.0", requiring(*(f"name{number}==1" for number in range(20))))
    first = text_of(mini.build())
    assert "timestamp" not in first
    script = (
        "import sys, zipfile; from pathlib import Path; import unit.conftest as c\n"
        "root, cache = map(Path, sys.argv[1:])\nbuilt = c.Miniature(root=root, cache=cache).build()\n"
        f"print(zipfile.ZipFile(built.path).read('sglang-1.0+overlay.3{PLACE}').decode(), end='')"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(mini.root), str(mini.cache)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
            capture_output=True, encoding="utf-8", check=True,
        )  # fmt: skip
        assert done.stdout == first
    mini.write("overlay/sglang/models/ours.py", "OURS = 2\n")
    assert json.loads(text_of(mini.build()))["serialNumber"] != json.loads(first)["serialNumber"]


def test_a_reader_of_cyclonedx_sees_what_is_in_it(mini: Miniature) -> None:
    mini.lock_release("1.0", requiring("torch==2.0"))
    bom = Bom.from_json(json.loads(text_of(mini.build())))  # type: ignore[attr-defined]
    assert bom.metadata.component.purl.version == "1.0+overlay.3"
    assert {component.name for component in bom.components} == {"torch", "sglang/models/ours.py"}


def test_verify_sees_a_change_to_it(mini: Miniature) -> None:
    built = mini.build()
    assert verify_wheel(built.path).differences == []
    data = built.path.read_bytes()
    built.path.write_bytes(data.replace(b'"name": "sglang/models/ours.py"', b'"name": "sglang/models/0urs.py"'))
    (difference,) = verify_wheel(built.path).differences
    assert PLACE in difference


def test_a_requirement_that_cannot_be_read_is_named(mini: Miniature) -> None:
    mini.lock_release("1.0", requiring("torch=2.0"))
    with pytest.raises(BuildError, match=r"torch=2\.0"):
        mini.build()
