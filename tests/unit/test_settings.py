"""The settings in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
from overlay_tools.errors import OverlayError
from overlay_tools.settings import load_project

GOOD = "[tool.sglang-overlay]\nplugin = []\ndefault = '1'\nrevision = 1\nreplaces = []\n"
TABLE = "[[tool.sglang-overlay.dependencies]]\n"
DEPENDENCIES = GOOD + TABLE
PACKAGES = ("", "acme-models", "acme.models", "1acme", "import", "größe", "json", "sglang", "sgl_kernel")
DISTRIBUTIONS = ("", "-acme", "acme_", "acme models", "acme/models", "größe", "SGLang", "sglang-kernel", "sgl.kernel")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[tool.sglang-overlay]\nplugin = []\ndefault = 1\nrevision = 1\nreplaces = []\n", "default must be a str"),
        ("[tool.sglang-overlay]\nplugin = []\ndefault = '1'\nrevision = 0\nreplaces = []\n", "must be 1 or more"),
        (
            "[tool.sglang-overlay]\nplugin = []\ndefault = '1'\nrevision = 1\nreplaces = []\nx = 1\n",
            "[tool.sglang-overlay] has an unknown setting: 'x'",
        ),
        (f"{GOOD}[tool.sglang-overlay.files]\n'a/b' = '>=1'\n'a' = 'x1'\n", "pyproject.toml:8: the releases of a: "),
        (f"{GOOD}[tool.sglang-overlay.files]\n'a' = 1.0\n", "pyproject.toml:7: the releases of a: 1.0 is not a text."),
        (f"{GOOD}files = []\n", "files must be a dict"),
        (f"{DEPENDENCIES}override = ['a==1']\nx = 1\n", "pyproject.toml:6: unknown key 'x'."),
        (f"{DEPENDENCIES}override = ['a==1']\n\n{TABLE}override = ['1=2']\n", "pyproject.toml:9: '1=2' is not a req"),
        (f"{DEPENDENCIES}override = 'a==1'\n", "pyproject.toml:6: override must be a list."),
        (f"{DEPENDENCIES}exclude = [1]\n", "pyproject.toml:6: 1 is not a requirement: "),
        (f"{DEPENDENCIES}releases = '>=1'\n", "pyproject.toml:6: it must have `override` or `exclude`"),
        (f"{DEPENDENCIES}releases = 'x'\nexclude = ['a']\n", "pyproject.toml:6: releases: Invalid specifier: 'x'"),
        (f"{DEPENDENCIES}exclude = ['a==1']\n", "pyproject.toml:6: exclude takes names"),
        (f"{DEPENDENCIES}exclude = ['a; python_version > \"3\"']\n", "pyproject.toml:6: exclude takes names"),
        (f"{GOOD}dependencies = 1\n", "dependencies must be a list"),
        (f"{GOOD}plugin-package = 1\n", "plugin-package must be a str"),
        *((f"{GOOD}plugin-package = '{name}'\n", f"plugin-package is {name!r}") for name in PACKAGES),
        *((f"{GOOD}plugin-distribution = '{name}'\n", f"plugin-distribution is {name!r}") for name in DISTRIBUTIONS),
        (f"{GOOD}dependencies = [1]\n", "it must have `override` or `exclude`"),
        ("[tool]\n", "has no table"),
        ("[tool", "pyproject.toml: "),
    ],
)
def test_settings_that_are_wrong_are_named(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "pyproject.toml").write_text(table)
    with pytest.raises(OverlayError, match=r"pyproject\.toml") as caught:
        load_project(tmp_path)
    assert said in str(caught.value)


def test_a_release_takes_each_file_but_those_that_are_limited_to_others(tmp_path: Path) -> None:
    rows = "'sglang/a.py' = '<1.5'\n'sglang/b/*' = '==1.5.post1'\n"
    (tmp_path / "pyproject.toml").write_text(
        f"{GOOD}[tool.sglang-overlay.files]\n{rows}".replace("[]", "['sglang/a.py']")
    )
    project = load_project(tmp_path)
    names = ("sglang/a.py", "sglang/a.pyi", "sglang/b/c.py", "sglang/b/c/d.py", "sglang/b.py")
    taken = {
        version: [name for name in names if project.takes(version, name)] for version in ("1.4", "1.5", "1.5.post1")
    }
    assert taken == {
        "1.4": ["sglang/a.py", "sglang/a.pyi", "sglang/b.py"],
        "1.5": ["sglang/a.pyi", "sglang/b.py"],
        "1.5.post1": ["sglang/a.pyi", "sglang/b/c.py", "sglang/b/c/d.py", "sglang/b.py"],
    }
    assert (project.replaced("1.4"), project.replaced("1.5")) == (frozenset({"sglang/a.py"}), frozenset())


def test_the_plugin_has_its_own_names_where_no_others_are_given(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(GOOD)
    project = load_project(tmp_path)
    assert (project.plugin_distribution, project.plugin_package) == ("sglang-overlay-plugin", "sglang_overlay_plugin")
    file.write_text(f"{GOOD}plugin-distribution = 'Acme.SGLang-models'\nplugin-package = 'acme'\n")
    project = load_project(tmp_path)
    assert (project.plugin_distribution, project.plugin_package) == ("Acme.SGLang-models", "acme")
