from __future__ import annotations

import email
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from overlay_tools.errors import BuildError
from overlay_tools.wheels.import_rewriter import rewrite
from overlay_tools.wheels.plugin import build_plugin
from overlay_tools.wheels.verify import verify_wheel

from unit.conftest import REPOSITORY, Miniature, make_miniature

NAME = "sglang_overlay_plugin-3-py3-none-any.whl"
DIST_INFO = "sglang_overlay_plugin-3.dist-info"
MODULES = {
    "sglang.srt.models.x": "plugin.models.x",
    "sglang.srt.models.x_mtp": "plugin.models.x_mtp",
    "sglang.srt.configs.c": "plugin.configs.c",
}


@pytest.fixture
def mini(mini: Miniature) -> Miniature:
    return make_plugin(mini)


def make_plugin(mini: Miniature) -> Miniature:
    """Give a project a plugin of its own that is proven on two releases."""
    mini.write("pyproject.toml", (mini.root / "pyproject.toml").read_text().replace("[]\nplugin = []", PROVEN))
    mini.write("overlay/sglang_overlay_plugin/__init__.py", "")
    mini.write("overlay/sglang_overlay_plugin/attach.py", "def attach(): pass\n")
    mini.write("overlay/sglang_overlay_plugin_start.py", "def watch(with_python): pass\n")
    mini.write(
        "overlay/sglang/srt/models/x.py", "from sglang.srt.configs.c import C\nfrom sglang.srt.models import llama\n"
    )
    mini.write("overlay/sglang/srt/configs/c.py", "C = 'sglang.srt.models.x:C'\n")
    mini.write("overlay/sglang/srt/chat/x.jinja", "{{ 'sglang.srt.models.x' }}\r\n")
    return mini


PROVEN = '[]\nplugin = ["1.0", "1.1"]'


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as wheel:
        assert wheel.testzip() is None
        return {name: wheel.read(name) for name in wheel.namelist()}


def test_tiles_are_for_the_drop_in_wheel_alone(mini: Miniature) -> None:
    """Upstream looks for them in its own folder, where a plugin cannot put them."""
    tiles = "sglang/srt/layers/moe/moe_runner/triton_utils/configs/triton_3_6_0/E=64,N=512,device_name=NVIDIA_H200.json"
    mini.write(f"overlay/{tiles}", "{}")
    mini.write("overlay/sglang/srt/configs/other.json", "{}")
    built = build_plugin(mini.project)
    assert list(built.left_out) == [tiles]
    assert [name for name in contents(built.path) if name.endswith(".json")][:1] == [
        "sglang_overlay_plugin/configs/other.json"
    ]
    assert not [name for name in contents(built.path) if "triton" in name]
    assert tiles in mini.build().added


def test_what_is_executable_in_the_overlay_is_so_in_the_plugin(mini: Miniature) -> None:
    (mini.root / "overlay/sglang/srt/models/x.py").chmod(0o755)
    mini.write("overlay/sglang/srt/run.sh", "#!/bin/sh\n").chmod(0o755)
    path = build_plugin(mini.project).path
    with zipfile.ZipFile(path) as wheel:
        run = {info.filename for info in wheel.infolist() if info.external_attr >> 16 & 0o111}
    assert run == {"sglang_overlay_plugin/run.sh", "sglang_overlay_plugin/models/x.py"}
    assert verify_wheel(path).differences == []


def test_the_wheel_is_the_overlay_under_a_name_of_its_own(mini: Miniature) -> None:
    built = build_plugin(mini.project)
    assert built.path == mini.root / "dist" / NAME
    files = contents(built.path)
    own = {name: data for name, data in files.items() if not name.startswith(DIST_INFO)}
    assert own.pop("sglang_overlay_plugin.pth").count(b"\n") == 1
    assert own.pop("sglang_overlay_plugin_start.py") == b"def watch(with_python): pass\n"
    assert own == {
        "sglang_overlay_plugin/__init__.py": b"",
        "sglang_overlay_plugin/attach.py": b"def attach(): pass\n",
        "sglang_overlay_plugin/chat/__init__.py": b"",
        "sglang_overlay_plugin/chat/x.jinja": b"{{ 'sglang.srt.models.x' }}\r\n",
        "sglang_overlay_plugin/configs/__init__.py": b"",
        "sglang_overlay_plugin/configs/c.py": b"C = 'sglang_overlay_plugin.models.x:C'\n",
        "sglang_overlay_plugin/models/__init__.py": b"",
        "sglang_overlay_plugin/models/ours.py": b"OURS = 1\n",
        "sglang_overlay_plugin/models/x.py": (
            b"from sglang_overlay_plugin.configs.c import C\nfrom sglang.srt.models import llama\n"
        ),
    }
    metadata = email.message_from_bytes(files[f"{DIST_INFO}/METADATA"])
    assert (metadata["Name"], metadata["Version"]) == ("sglang-overlay-plugin", "3")
    assert metadata["Keywords"] == "sglang==1.0,sglang==1.1"
    assert metadata.get_all("Requires-Dist") == ["sglang"]
    assert files[f"{DIST_INFO}/entry_points.txt"] == (
        b"[sglang.srt.plugins]\nsglang_overlay_plugin = sglang_overlay_plugin.attach:attach\n"
    )
    assert verify_wheel(built.path).differences == []


def test_a_plugin_has_the_names_of_its_team_and_no_others(mini: Miniature) -> None:
    settings = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", f'{settings}plugin-distribution = "Acme-Models"\nplugin-package = "acme"\n')
    shutil.copytree(
        REPOSITORY / "overlay" / "sglang_overlay_plugin",
        mini.root / "overlay" / "sglang_overlay_plugin",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    start = "sglang_overlay_plugin_start.py"
    shutil.copy(REPOSITORY / "overlay" / start, mini.root / "overlay" / start)
    built = build_plugin(mini.project)
    assert built.path.name == "acme_models-3-py3-none-any.whl"
    files = contents(built.path)
    assert {name.partition("/")[0] for name in files} == {
        "acme",
        "acme.pth",
        "acme_start.py",
        "acme_models-3.dist-info",
    }
    assert email.message_from_bytes(files["acme_models-3.dist-info/METADATA"])["Name"] == "Acme-Models"
    assert files["acme_models-3.dist-info/entry_points.txt"] == b"[sglang.srt.plugins]\nacme = acme.attach:attach\n"
    assert files["acme/models/x.py"] == b"from acme.configs.c import C\nfrom sglang.srt.models import llama\n"
    assert [name for name, data in files.items() if b"overlay_plugin" in data or b"overlay-plugin" in data] == []
    assert b"python -m acme doctor" in files["acme/__main__.py"]
    assert b'DISTRIBUTION = "Acme-Models"' in files["acme_start.py"]
    assert verify_wheel(built.path).differences == []


def test_the_same_sources_give_the_same_bytes(mini: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = build_plugin(mini.project).path.read_bytes()
    for path in mini.root.joinpath("overlay").rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    mini.write("overlay/sglang/srt/models/__pycache__/x.cpython-311.pyc", "cache")
    mini.write("overlay/sglang/srt/.hidden", "editor's")
    umask = os.umask(0o077)
    try:
        assert build_plugin(mini.project).path.read_bytes() == content
        other = make_plugin(make_miniature(tmp_path / "elsewhere", monkeypatch))
        rglob = Path.rglob
        monkeypatch.setattr(Path, "rglob", lambda *given: reversed([*rglob(*given)]))
        assert build_plugin(other.project).path.read_bytes() == content
    finally:
        os.umask(umask)


def test_the_checkouts_own_overlay_leads_nowhere_to_its_old_names(mini: Miniature) -> None:
    shutil.rmtree(mini.root / "overlay")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "overlay", mini.root / "overlay", ignore=ignore)
    files = contents(build_plugin(mini.project).path)
    overlay = mini.root / "overlay" / "sglang" / "srt"
    for path in overlay.rglob("*.py"):
        name = path.relative_to(overlay).as_posix()
        old = "sglang.srt." + name.removesuffix(".py").replace("/", ".")
        assert f"sglang_overlay_plugin/{name}" in files
        users = [file for file, data in files.items() if file.endswith(".py") and f"{old} ".encode() in data]
        assert users == []
    assert (
        b'"sglang_overlay_plugin.models.qwen3_next_ext:Qwen'
        in files["sglang_overlay_plugin/overlay_models/qwen3_next_ext.py"]
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from sglang.srt.models.x import Y", "from plugin.models.x import Y"),
        ("from sglang.srt.models.x import (\n    Y,\n    Z,\n)", "from plugin.models.x import (\n    Y,\n    Z,\n)"),
        ("import sglang.srt.models.x", "import plugin.models.x"),
        ("import sglang.srt.models.x as x", "import plugin.models.x as x"),
        ("import sglang.srt.models.x, sglang.srt.configs.c as c", "import plugin.models.x, plugin.configs.c as c"),
        ("y = sglang.srt.models.x.Y(sglang.srt.configs.c.C)", "y = plugin.models.x.Y(plugin.configs.c.C)"),
        ("from sglang.srt.models.x_mtp import Y", "from plugin.models.x_mtp import Y"),
        ("row = 'sglang.srt.models.x:Cls'", "row = 'plugin.models.x:Cls'"),
        ('row = "sglang.srt.models.x"', 'row = "plugin.models.x"'),
        ("s = 'schön'; y = sglang.srt.models.x.Y", "s = 'schön'; y = plugin.models.x.Y"),
        ("import sglang.srt.models.x\r\nx = 1\r\n", "import plugin.models.x\r\nx = 1\r\n"),
        ("x = 1\n\x0c\ny = sglang.srt.models.x.Y\n", "x = 1\n\x0c\ny = plugin.models.x.Y\n"),
        ("s = 'a\u2028b'\ny = sglang.srt.models.x.Y\n", "s = 'a\u2028b'\ny = plugin.models.x.Y\n"),
        ("\ufeffimport sglang.srt.models.x", "import plugin.models.x"),
        ("def f():\n\tsglang.srt.models.x.f()", "def f():\n\tplugin.models.x.f()"),
        ("import sglang, sglang.srt.models.x\nsglang.f()", "import sglang, plugin.models.x\nsglang.f()"),
        (
            "import sglang.srt.models as m, sglang.srt.models.x as x\nm.llama.y(x.y)",
            "import sglang.srt.models as m, plugin.models.x as x\nm.llama.y(x.y)",
        ),
    ],
)
def test_a_name_that_leads_to_the_overlay_is_rewritten(before: str, after: str) -> None:
    assert rewrite(before.encode(), MODULES, "f.py").decode() == after


@pytest.mark.parametrize(
    "text",
    [
        "# sglang.srt.models.x\n",
        '"""As sglang.srt.models.x does."""\n',
        'def f():\n    """As sglang.srt.models.x."""\n',
        'class A:\n    """As sglang.srt.models.x."""\n',
        "import sglang.srt.models.xylophone\n",
        "y = 'sglang.srt.models.xylophone:Y'\n",
        "from sglang.srt.models.llama import Y\n",
        "from sglang.srt.models import llama\n",
        "import sglang.srt.models\n",
        "y = a.sglang.srt.models.x\n",
        "y = a().sglang.srt.models.x\n",
        "y = 'my.sglang.srt.models.x'\n",
        "y = f'{x} of sglang.srt.models.llama'\n",
        "",
    ],
)
def test_anything_else_is_left_alone(text: str) -> None:
    assert rewrite(text.encode(), MODULES, "f.py").decode() == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\nfrom .c import C", "2: a relative import."),
        ("\nfrom . import c", "2: a relative import."),
        ("\nfrom sglang.srt.models import (\n    llama,\n    x,\n)", "2: it imports the module x from its package."),
        ("y = 1\ny = 'see sglang.srt.models.x'", "2: a string names sglang.srt.models.x."),
        ("y = 1\ny = 'sglang.srt.models.x.Y'", "2: a string names sglang.srt.models.x."),
        ("y: 'sglang.srt.models.x.Y'", "1: a string names sglang.srt.models.x."),
        ("y = 'sglang.srt.' 'models.x'", "1: a string names sglang.srt.models.x."),
        ("y = 1\n'sglang.srt.models.x, no docstring'", "2: a string names sglang.srt.models.x."),
        ("\ny = f'{sglang.srt.models.x.Y}'", "2: an f-string names sglang.srt.models.x."),
        ("\ny = f'{a} of sglang.srt.models.x'", "2: an f-string names sglang.srt.models.x."),
        ("\ny = f'{f(\"sglang.srt.models.x\")}'", "2: an f-string names sglang.srt.models.x."),
        (
            "import sglang.srt.models.x\ny = sglang.__version__",
            "2: sglang is bound only by the import of sglang.srt.models.x,",
        ),
        ("import sglang.srt.models.x\ndef f():\n    import sglang\ndef g(): sglang.g()", "4: sglang is bound only by"),
        ("from sglang.srt import models\ny = models.x.C", "2: models.x is the module sglang.srt.models.x."),
        ("from sglang import srt as s\ny = f'{s.models.x.C()}'", "2: s.models.x is the module sglang.srt.models.x."),
        ("import sglang.srt.models as m\ny = m.x.C", "2: m.x is the module sglang.srt.models.x."),
        ("x = 1\ndef f(:\n", "2: invalid syntax"),
    ],
)
def test_what_cannot_be_rewritten_is_named_with_its_line(mini: Miniature, text: str, reason: str) -> None:
    mini.write("overlay/sglang/srt/models/bad.py", text)
    mini.write("overlay/sglang/srt/models/bad_too.py", text)
    said = refused(mini)
    assert said.startswith(f"overlay/sglang/srt/models/bad.py:{reason}")


def refused(mini: Miniature) -> str:
    """Expect the build to fail and to leave in dist/ what was there."""
    good = mini.root / "dist" / NAME
    good.parent.mkdir(exist_ok=True)
    good.write_bytes(b"an earlier, good wheel")
    with pytest.raises(BuildError) as caught:
        build_plugin(mini.project)
    assert caught.value.hint
    assert [(path.name, path.read_bytes()) for path in good.parent.iterdir()] == [(NAME, b"an earlier, good wheel")]
    return str(caught.value)


def test_a_file_that_is_not_utf_8_is_refused(mini: Miniature) -> None:
    file = mini.write("overlay/sglang/srt/models/bad.py", "")
    file.write_bytes("# coding: latin-1\nx = 'ü'\n".encode("latin-1"))
    assert "overlay/sglang/srt/models/bad.py is not UTF-8" in refused(mini)


def test_a_syntax_error_in_the_plugins_own_file_is_named_with_its_line(mini: Miniature) -> None:
    mini.write("overlay/sglang_overlay_plugin/attach.py", "x = 1\ndef f(:\n")
    assert "sglang_overlay_plugin/attach.py:2: " in refused(mini)


def test_an_overlay_that_replaces_a_file_of_upstream_has_no_plugin(mini: Miniature) -> None:
    text = (mini.root / "pyproject.toml").read_text()
    mini.write("pyproject.toml", text.replace("replaces = []", 'replaces = ["sglang/version.py"]'))
    assert "overlay/sglang/version.py replaces a file of upstream" in refused(mini)


@pytest.mark.parametrize("name", ["sglang_overlay_plugin/models/x.py", "sglang/models/x.py"])
def test_two_files_for_one_place_are_refused(mini: Miniature, name: str) -> None:
    mini.write(f"overlay/{name}", "x = 1\n")
    assert "sglang_overlay_plugin/models/x.py" in refused(mini)


def test_a_release_that_is_not_locked_is_refused(mini: Miniature) -> None:
    mini.write("pyproject.toml", (mini.root / "pyproject.toml").read_text().replace('"1.1"', '"1.7"'))
    assert refused(mini) == "pyproject.toml: plugin names 1.7, which is not locked."


def test_a_link_is_refused(mini: Miniature) -> None:
    (mini.root / "overlay/sglang/srt/models/y.py").symlink_to(mini.root / "NOTICE")
    assert "models/y.py is a symbolic link" in refused(mini)
