"""A team's plugin beside ours, and beside the drop-in wheel: each overlay serves its own models in one environment.

The team's has our models under other names. It is built by the tool, whose session runs these tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from engine.harness import (
    OURS,
    RELEASE,
    SAMPLING,
    SERVED,
    SPAWN,
    Model,
    assert_answers,
    generate,
    run_first,
    server,
    speculative,
    tokens_of,
)
from overlay_tools.engines import engine_config
from overlay_tools.errors import ServeError
from reference.cases import make_checkpoint
from reference.greedy import PROMPTS

from plugin.names import DISTRIBUTION

ROOT = Path(__file__).parents[2]
TEAM, TEAMS = "team_models", "team-sglang-models"
SETTINGS = f'plugin-distribution = "{TEAMS}"\nplugin-package = "{TEAM}"\n'
PLAIN = SERVED[0]
DERIVED = next(name for name, case in OURS.items() if case.trained is not None and "drafts" in case.servers)
# Our models' names, as they are in files, words and classes: the team's begin with its own.
WORDS = [form for name in OURS for form in (name, name.replace("-", "_"))]
CLASSES = [name.title().replace("-", "") for name in OURS] + [
    case.architecture for case in OURS.values() if case.architecture is not None
]
NAMES = re.compile("|".join(map(re.escape, sorted(WORDS + CLASSES, key=len, reverse=True))))


def renamed(text: str) -> str:
    """Give the team's names to our models."""
    return NAMES.sub(lambda name: ("Team" if name.group() in CLASSES else "team_") + name.group(), text)


def build(folder: Path, *, rename: bool) -> Path:
    """Build the team's plugin from a copy of the overlay, and install it into a folder."""
    tool = shutil.which("overlay-tools")
    assert tool is not None, "the tool is not on PATH: run `nox -s test-plugin-VERSION`"
    checkout, installed = folder / "checkout", folder / "installed"
    shutil.copytree(ROOT / "overlay", checkout / "overlay", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "NOTICE", "upstream.lock"):
        shutil.copy(ROOT / name, checkout)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = re.sub(r"^plugin-(distribution|package) .*\n", "", text, flags=re.MULTILINE)
    text = text.replace("[tool.sglang-overlay]\n", f"[tool.sglang-overlay]\n{SETTINGS}")
    (checkout / "pyproject.toml").write_text(text, encoding="utf-8")
    files = [path for path in (checkout / "overlay" / "sglang").rglob("*") if path.is_file()]
    for path in files if rename else ():
        text = renamed(path.read_text(encoding="utf-8"))
        path.unlink()
        path.with_name(renamed(path.name)).write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([tool, "plugin"], cwd=checkout, env=environment, check=True)
    (wheel,) = (checkout / "dist").glob("team_sglang_models-*.whl")
    install(wheel, installed)
    return installed


def install(wheel: Path, folder: Path) -> None:
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
    subprocess.run([*uv, "--target", folder, wheel], check=True)


def beside(installed: Path, folder: Path) -> dict[str, str]:
    """Give the environment in which Python reads the lines of a folder as those of its own site-packages."""
    return run_first(f"import site\nsite.addsitedir({str(installed)!r})\n", folder)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("team"), rename=True)


def teams_checkpoint(ours: Path, folder: Path) -> Path:
    """Make the team's checkpoint of one of ours."""
    folder.mkdir()
    for path in ours.iterdir():
        (folder / path.name).symlink_to(path)
    config = folder / "config.json"
    config.unlink()
    config.write_text(renamed((ours / "config.json").read_text(encoding="utf-8")), encoding="utf-8")
    return folder


@pytest.fixture
def derived(tmp_path: Path) -> Path:
    folder = tmp_path / "derived"
    folder.mkdir()
    make_checkpoint(DERIVED, folder)
    return folder


# One program that serves several checkpoints, one after the other.
PROGRAM = """\
import json, sys
import sglang

def main():
    paths, arguments, prompts, sampling = json.load(sys.stdin)
    answers = []
    for path in paths:
        engine = sglang.Engine(model_path=path, log_level="error", **arguments)
        answers.append(engine.generate(input_ids=prompts, sampling_params=sampling, return_logprob=True))
        engine.shutdown()
    print("\\n" + json.dumps(answers))

if __name__ == "__main__":
    main()
"""


def answers(paths: list[Path], environment: Mapping[str, str], folder: Path) -> list[list[dict[str, Any]]]:
    """Ask PROMPTS of an engine for each checkpoint."""
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    given = [[str(path) for path in paths], engine_config.ARGS, PROMPTS, SAMPLING]
    done = subprocess.run(
        [sys.executable, folder / "program.py"],
        input=json.dumps(given),
        env={**os.environ, **engine_config.ENV, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_one_program_serves_the_models_of_both(
    team: Path, models: dict[str, Model], derived: Path, tmp_path: Path
) -> None:
    plain = models[PLAIN]
    ours = [plain.path, derived]
    teams = [teams_checkpoint(path, tmp_path / f"team {path.name}") for path in ours]
    plain_ours, plain_teams, derived_ours, derived_teams = answers(
        [ours[0], teams[0], ours[1], teams[1]], beside(team, tmp_path), tmp_path
    )
    assert_answers(plain_ours, plain.answers)
    assert_answers(plain_teams, plain.answers)
    assert [tokens_of(output) for output in derived_teams] == [tokens_of(output) for output in derived_ours]


def test_a_server_of_the_teams_model_drafts_as_ours_does(team: Path, derived: Path, tmp_path: Path) -> None:
    arguments, environment = speculative(2)
    teams = teams_checkpoint(derived, tmp_path / "teams")
    said = {}
    for name, path in (("ours", derived), ("theirs", teams)):
        folder = tmp_path / name
        folder.mkdir()
        with server(path, folder / "log", arguments, {**beside(team, folder), **environment, **SPAWN}) as running:
            outputs = generate(running, PROMPTS[:4], 24)
            said[name] = [tokens_of(output) for output in outputs]
        log = (folder / "log").read_text(errors="replace")
        architecture = OURS[DERIVED].architecture
        assert f"type={architecture if name == 'ours' else renamed(architecture)}," in log
    assert said["ours"] == said["theirs"]


def test_one_that_has_our_models_is_refused_and_both_are_named(models: dict[str, Model], tmp_path: Path) -> None:
    installed = build(tmp_path, rename=False)
    log = tmp_path / "log"
    with (
        pytest.raises(ServeError, match=r"The server ended with status [^0]"),
        server(models[PLAIN].path, log, env=beside(installed, tmp_path)),
    ):
        pytest.fail("it serves")
    said = log.read_text(errors="replace").splitlines()[-1]
    for plugin in (TEAMS, DISTRIBUTION):
        assert re.search(rf"{plugin} \d", said)
    assert f"the architecture {OURS[DERIVED].architecture}" in said


def test_beside_the_drop_in_wheel_each_serves_its_own(team: Path, models: dict[str, Model], tmp_path: Path) -> None:
    """Our own plugin is left out: it has the models of the drop-in wheel."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = [path for path in (ROOT / "dist").glob(f"sglang-{RELEASE}+overlay.*.whl") if f"-{tag}-" in path.name]
    wheels = wheels or [*(ROOT / "dist").glob(f"sglang-{RELEASE}+overlay.*-py3-none-any.whl")]  # until 0.5.10
    install(max(wheels, key=lambda path: path.stat().st_mtime), tmp_path / "drop-in")
    model = models[PLAIN]
    teams = teams_checkpoint(model.path, tmp_path / "teams")
    environment = beside(team, tmp_path) | {"SGLANG_PLUGINS": TEAM}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "drop-in"), environment["PYTHONPATH"]])
    for outputs in answers([model.path, teams], environment, tmp_path):
        assert_answers(outputs, model.answers)
