from __future__ import annotations

import pytest
from overlay_tools.api_check.overlay_code import read_overlay
from overlay_tools.errors import BuildError, ContractError
from overlay_tools.patches.series import load_series
from overlay_tools.proving.inputs import Inputs
from overlay_tools.wheels.builder import build_kernel
from overlay_tools.wheels.overlay_files import read_package
from overlay_tools.wheels.plugin import build_plugin

from unit.conftest import DOCUMENTS, Miniature


def shas(mini: Miniature) -> list[str]:
    mini.write("overlay/sglang/srt/models/x.py", "")
    return [mini.build().sha256, build_kernel(mini.project, mini.lock["1.0"]).sha256, build_plugin(mini.project).sha256]


def inputs_of(mini: Miniature) -> dict[str, str]:
    return Inputs(mini.project, load_series(mini.project.patches)).parts(mini.lock["1.0"], "engine")


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
            read_package(mini.project, package, "1.0")
        assert "README.md and CHANGELOG.md" in caught.value.hint


SCRATCH = (
    ".ours.py.swp",
    ".ours.py.orig",
    "ours.py~",
    "#ours.py#",
    ".cache/x.py",
    "__pycache__/ours.cpython-311.pyc",
    ".DS_Store",
)


def test_what_editors_leave_changes_no_wheel_and_no_result(mini: Miniature) -> None:
    wheels, digest = shas(mini), inputs_of(mini)
    for folder in ("overlay", "overlay/sglang", "overlay/sglang/models", "overlay/sgl_kernel"):
        for name in SCRATCH:
            mini.write(f"{folder}/{name}", "not Python (")
        (mini.root / folder / ".#ours.py").symlink_to("me@host.1:1")  # by Emacs, of a buffer that is not saved
    assert (shas(mini), inputs_of(mini)) == (wheels, digest)
    assert not [name for name in read_overlay(mini.project, "1.0").files if "#" in name or "cache" in name]


@pytest.mark.parametrize("suffix", [".orig", ".rej"])
def test_what_a_merge_has_left_is_named_and_goes_into_no_wheel(mini: Miniature, suffix: str) -> None:
    names = [f"overlay/sglang/models/{name}.py{suffix}" for name in ("ours", "yours")]
    for name in names:
        mini.write(name, "OURS = 0\n")
    for call in (mini.build, lambda: inputs_of(mini)):
        with pytest.raises(BuildError) as caught:
            call()
        assert list(caught.value.problems) == [
            f"{name!r} goes into no wheel: it was left by a merge or a patch." for name in names
        ]
        assert "remove" in caught.value.hint


@pytest.mark.parametrize("target", ["ours.py", "nowhere"])
def test_a_link_that_is_not_hidden_is_refused(mini: Miniature, target: str) -> None:
    (mini.root / "overlay/sglang/models/link.py").symlink_to(target)
    with pytest.raises(BuildError, match=r"link\.py is a symbolic link"):
        mini.build()


@pytest.mark.parametrize("name", ["my model.py", "my-model.py", "2nd.py"])
def test_a_module_that_cannot_be_imported_is_refused(mini: Miniature, name: str) -> None:
    mini.write(f"overlay/sglang/models/{name}", "A = 1\n")
    with pytest.raises(BuildError, match=f"models/{name}' goes into no wheel: a module cannot be named '{name[:-3]}'"):
        read_package(mini.project, "sglang", None)


@pytest.mark.parametrize("deeper", ["1+", "-"])
def test_code_that_is_nested_too_deeply_for_python_is_named(mini: Miniature, deeper: str) -> None:
    mini.write("overlay/sglang/models/ours.py", f"x = {deeper * 100_000}1\n")
    with pytest.raises(BuildError, match=r"^overlay/sglang/models/ours\.py: nested too deeply\.$"):
        mini.build()
    with pytest.raises(ContractError, match=r"^overlay/sglang/models/ours\.py: nested too deeply\.$"):
        read_overlay(mini.project, "1.0")


def test_a_syntax_error_of_the_kernels_is_named_by_its_place_in_the_checkout(mini: Miniature) -> None:
    mini.write("overlay/sgl_kernel/__init__.py", "A = 1\nB = \n")
    with pytest.raises(BuildError, match=r"^overlay/sgl_kernel/__init__\.py:2: "):
        build_kernel(mini.project, mini.lock["1.0"])
