"""The command line: help, version, what is shown with --verbose, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from overlay_tools import __version__, cli

from unit.conftest import REPOSITORY, Miniature

HERE = ("--python", "3.11", "--platform", "x86_64")
TOOL = (sys.executable, "-m", "overlay_tools")


def call(*words: str, cwd: Path = REPOSITORY, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TOOL, *words], cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_lists_each_command_and_says_how_to_go_on(tmp_path: Path) -> None:
    done = call("--help", cwd=tmp_path)
    assert done.returncode == 0
    for name, summary in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", done.stdout, re.MULTILINE)
    assert "nox -s build -- --help" in done.stdout
    assert "Builds, verifies, serves and tests sglang-overlay" in done.stdout


def test_every_module_of_a_command_is_listed() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("commands/*.py")}
    modules = files - {"__init__", "options", "shared"}
    assert {cli.module_name(name) for name in cli.COMMANDS} == modules


def test_help_imports_no_command_and_no_library() -> None:
    code = "import sys, overlay_tools.cli as c\ntry: c.main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    loaded = set(done.stderr.split())
    assert "overlay_tools.cli" in loaded
    ours = {name for name in loaded if name.startswith("overlay_tools.")}
    assert ours == {f"overlay_tools.{name}" for name in ("cli", "commands", "errors", "surroundings")}
    assert not loaded & {"packaging", "platformdirs", "rich", "tomlkit", "tomllib", "unidiff", "urllib.request", "uv"}


def test_a_command_is_imported_without_the_others() -> None:
    code = "import sys, overlay_tools.cli as c\nc.load_command('verify'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith("overlay_tools.commands.")}
    assert loaded == {"overlay_tools.commands.verify"}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_s_help_has_examples_that_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = help_of(name, capsys)
    _, _, text = said.partition("\nexamples:\n")
    examples = re.findall(r"^  (\S.*)\n      \S", text, re.MULTILINE)
    assert examples
    called = f"overlay-tools {name}" if name in ("lint-patches", "test-engine") else f"nox -s {name}"
    assert f"usage: {called}" in said
    for example in examples:
        assert example == called or example.startswith((f"{called} -- ", f"{called} "))
        words = shlex.split(example.removeprefix(called).removeprefix(" --" if called.startswith("nox") else ""))
        cli.command_parser(name, cli.load_command(name)).parse_intermixed_args(words)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_s_help_explains_every_argument(name: str) -> None:
    parser = cli.command_parser(name, cli.load_command(name))
    for action in parser._actions:
        assert action.help
        required = action.required or (not action.option_strings and action.nargs is None)
        told = any(word in action.help for word in ("default", "several times", "after --", "go on", "give up"))
        assert required or told or action.dest in ("help", "wheels", "version"), f"{action.dest}: no default"


@pytest.mark.parametrize("name", ["build", "edit", "export", "matrix", "serve", "test-engine", "bench-gpu", "tune"])
def test_help_says_what_a_version_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(help_of(name, capsys).split())
    assert "VERSION an SGLang release, as 0.5.23; `nox -l` and upstream.lock list those that are locked" in said


def test_nox_says_of_a_session_what_the_tool_says_of_its_command() -> None:
    words = [sys.executable, "-m", "nox", "--list", "--json", "--sessions"]
    sessions = sorted({*cli.COMMANDS} - {"test-engine", "lint-patches"})
    done = subprocess.run([*words, *sessions], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    listed = {entry["session"]: entry["description"] for entry in json.loads(done.stdout)}
    assert sorted(listed) == sessions
    for name, description in listed.items():
        assert description == f"{cli.COMMANDS[name][0].upper()}{cli.COMMANDS[name][1:]}."


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sglang-overlay-tools {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build", "--python", "2.7"], "invalid choice: '2.7'"),
        (["build", "--platform", "vax"], "invalid choice: 'vax'"),
        (["build", "--colour"], "unrecognized arguments: --colour"),
        (["build", "--python", "3.11", "--python", "3.12"], "argument --python: it is given twice"),
        (["status", "--html", "a", "--html=b"], "argument --html: it is given twice"),
        (["serve", "--port", "70000"], "70000 is not a port, a number from 1 to 65535"),
        (["serve", "--port", "0"], "0 is not a port"),
        (["serve", "1.0", "1.1", "--", "--tp-size", "2"], "unrecognized arguments: 1.1"),
        (["serve", "--timeout", "-1"], "-1 is not a number of seconds above 0"),
        (["serve", "--timeout", "nan"], "nan is not a number of seconds"),
    ],
)
def test_an_argument_that_cannot_be_is_refused(
    mini_here: Miniature, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"usage: nox -s {words[0]} -- " in error
    assert f"error: {said}" in error or f": {said}" in error
    assert f"`nox -s {words[0]} -- --help`" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "required: COMMAND"),
        (["--colour", "build"], "unrecognized arguments: --colour"),
    ],
)
def test_what_is_not_a_command_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "usage: overlay-tools" in error
    assert "`overlay-tools --help`" in error


@pytest.mark.parametrize("words", [("--verbose", "build", *HERE), ("build", "--verbose", *HERE)])
def test_verbose_shows_each_program_on_standard_error(mini: Miniature, words: tuple[str, ...]) -> None:
    quiet, verbose = call("build", *HERE, cwd=mini.root), call(*words, cwd=mini.root)
    assert (quiet.returncode, verbose.returncode) == (0, 0)
    assert quiet.stderr == ""
    calls = re.findall(r"^\$ cd \S+ && (.*)\n  exit status (\d+) after \d+\.\d\d s$", verbose.stderr, re.MULTILINE)
    assert ("git apply --numstat -", "0") in calls
    assert "git apply" not in verbose.stdout
    assert "dist/sglang-1.0+overlay.3" in verbose.stdout


def test_verbose_shows_what_a_program_that_failed_said(mini: Miniature) -> None:
    done = call("verify", "--env", "cat", "--verbose", cwd=mini.root)
    assert done.returncode == 1
    assert re.search(r"^\$ cat -c .*?\n  exit status 1 after .* s\n  cat: ", done.stderr, re.MULTILINE | re.DOTALL)


def test_an_error_goes_to_standard_error_with_the_next_step(
    mini_here: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", "7.7", *HERE]) == 1
    said = capsys.readouterr()
    assert "error: " in said.err
    assert "holds no release '7.7'" in said.err
    assert "It holds 1.0, 1.1" in said.err
    assert not (mini_here.root / "dist").exists()


def test_outside_a_checkout_it_says_so(tmp_path: Path) -> None:
    done = call("build", cwd=tmp_path)
    assert done.returncode == 1
    assert "Run this in a checkout of sglang-overlay" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_a_folder_that_is_gone_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["build"]) == 1
    assert "error: The folder that this runs in no longer exists." in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(mini: Miniature) -> None:
    (mini.root / ".nox").touch()
    done = call("edit", cwd=mini.root)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {mini.root / '.nox'}: File exists.\n  A folder belongs there")
    assert "Traceback" not in done.stderr
    assert "Traceback" in call("edit", "--verbose", cwd=mini.root).stderr


@pytest.mark.parametrize("cache", ["/proc/cache", "/dev/null/x", "/dev/null"])
def test_a_cache_that_cannot_be_used_is_named_with_what_moves_it(mini: Miniature, cache: str) -> None:
    done = call("build", *HERE, cwd=mini.root, SGLANG_OVERLAY_CACHE=cache)
    assert done.returncode == 1
    assert f"error: The cache of base wheels cannot be used: {cache}" in done.stderr
    assert "SGLANG_OVERLAY_CACHE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_build_goes_on_whatever_the_streams_are(mini: Miniature) -> None:
    build = shlex.join([*TOOL, "build", *HERE])
    for command in (f"{build} >&-", f"{build} >&- 2>&- <&-", f"PYTHONIOENCODING=ascii {build}", f"LC_ALL=C {build}"):
        done = subprocess.run(["sh", "-c", command], cwd=mini.root, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), command
    for words in (["status"], ["lint-patches"], ["edit"]):
        for environment in (
            {"TERM": "dumb"},
            {"COLUMNS": "8"},
            {"PYTHONIOENCODING": "ascii"},
            {"PYTHONWARNINGS": "error"},
        ):
            done_ = call(*words, cwd=mini.root, **environment)
            assert (done_.returncode, done_.stderr) == (0, ""), (words, environment)


def test_what_no_one_reads_ends_a_command_without_a_word(mini: Miniature) -> None:
    status = shlex.join([*TOOL, "status"])
    script = f"{{ {status}; echo $? > ended; }} | head -c 1 > /dev/null"
    done = subprocess.run(["bash", "-c", script], cwd=mini.root, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert (mini.root / "ended").read_text().strip() in ("0", "141")  # 0: all was written before head ended


@pytest.mark.parametrize("words", [["status"], ["lint-patches"], ["build", *HERE], ["changes", "1.0", "1.1"]])
def test_a_command_that_no_one_reads_from_the_start_ends_as_any_program_does(mini: Miniature, words: list[str]) -> None:
    script = f"{shlex.join([*TOOL, *words])} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=mini.root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_output_that_goes_to_a_full_disk_is_one_error(mini: Miniature) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*TOOL, "status"], cwd=mini.root, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_file_name_that_is_not_utf_8_is_named(mini: Miniature) -> None:
    name = os.fsdecode("overlay/sglang/models/für.py".encode("latin-1"))
    (mini.root / name).write_text("A = 1\n")
    for words in (["build", *HERE], ["plugin"], ["edit"]):
        done = call(*words, cwd=mini.root)
        assert done.returncode == 1, words
        assert "f\\udcfcr.py' goes into no wheel: its name has a backslash" in done.stderr, words
        assert "Traceback" not in done.stderr


def test_colour_is_for_terminals_and_can_be_turned_off(mini: Miniature) -> None:
    for env in ({"NO_COLOR": "1"}, {}):
        done = call("build", *HERE, cwd=mini.root, **env)
        assert done.returncode == 0
        assert "\x1b[" not in done.stdout + done.stderr
