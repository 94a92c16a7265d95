from __future__ import annotations

import pytest
from overlay_tools.errors import BuildError
from overlay_tools.patches.series import load_series
from overlay_tools.proving.results import inputs
from overlay_tools.wheels.builder import build_kernel
from overlay_tools.wheels.overlay_files import read_package
from overlay_tools.wheels.plugin import build_plugin

from unit.conftest import DOCUMENTS, Miniature


def shas(mini: Miniature) -> list[str]:
    mini.write("overlay/sglang/srt/models/x.py", "")
    return [mini.build().sha256, build_kernel(mini.project, mini.lock["1.0"]).sha256, build_plugin(mini.project).sha256]


def inputs_of(mini: Miniature) -> str:
    return inputs(mini.project, mini.lock["1.0"], load_series(mini.project.patches))


def test_documents_beside_the_packages_change_no_wheel_and_no_result(mini: Miniature) -> None:
    wheels, digest = shas(mini), inputs_of(mini)
    for name in DOCUMENTS:
        mini.write(name, "# Changed\n")
    assert (shas(mini), inputs_of(mini)) == (wheels, digest)
    for name in DOCUMENTS:
        (mini.root / name).unlink()
    assert (shas(mini), inputs_of(mini)) == (wheels, digest)
    mini.write("overlay/sglang/README.md", "of the package, which ships it\n")
    assert shas(mini) != wheels
    assert inputs_of(mini) != digest


@pytest.mark.parametrize("name", ["readme.md", "README", "NOTES.md", "x.py", "README.md/x.py", "torch/x.py"])
def test_anything_else_beside_the_packages_is_refused(mini: Miniature, name: str) -> None:
    (mini.root / "overlay" / "README.md").unlink()
    mini.write(f"overlay/{name}", "")
    for package in ("sglang", "sgl_kernel", "sglang_overlay_plugin"):
        with pytest.raises(BuildError, match=f"overlay/{name.partition('/')[0]} goes into no wheel") as caught:
            read_package(mini.project.overlay, package)
        assert "README.md and CHANGELOG.md" in caught.value.hint
