"""Models that `new` has written, broken in many ways: the tests that they have from the start find each of the faults.

What is served is the default release. A fault is found where an assertion of a test fails, not where nothing starts.
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from bench.mutations.mutations import DERIVED, TEXT, Mutation
from bench.port.scratch_checkout import ScratchCheckout

WORDS = {"broken_text": ("--from", "LlamaForCausalLM"), "broken_next": ("--from", "Qwen3NextForCausalLM")}
FAULTS: Mapping[str, Mapping[str, Mutation]] = {"broken_text": TEXT, "broken_next": DERIVED}
EVERY = [
    pytest.param(name, mutation, id=f"{name}: {what}")
    for name, faults in FAULTS.items()
    for what, mutation in faults.items()
]
SERVERS = "tests/engine/serving/test_servers.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a run of tests: how many passed, the first that failed and what it said, and what pytest printed."""

    passed: int
    failed: str
    said: str
    output: str


@dataclass(kw_only=True)
class Models:
    """A checkout with the models that `new` has written."""

    checkout: ScratchCheckout
    sound: set[str] = field(default_factory=set)  # those all of whose tests have passed as they are

    def test(self, *words: str) -> Outcome:
        """Run tests of the engine until one fails. Fails itself where pytest comes to no result, as for a fixture."""
        report = self.checkout.folder.parent / "report.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "overlay_tools", "test-engine", self.checkout.project.default, "--"]
        done = subprocess.run(
            [*command, *words, "-x", f"--junitxml={report}"],
            cwd=self.checkout.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1), done.stdout
        cases = list(ET.parse(report).iter("testcase"))
        if error := next((each for case in cases for each in case.findall("error")), None):
            pytest.fail(f"no assertion failed, but: {error.get('message')}\n{done.stdout[-5000:]}")
        failures = [(case.get("name", ""), each) for case in cases for each in case.findall("failure")]
        name, said = next(((name, each.get("message", "")) for name, each in failures), ("", ""))
        assert said.startswith(("AssertionError", "assert ")) or not failures, said
        passed = sum(case.find("failure") is None and case.find("skipped") is None for case in cases)
        return Outcome(passed=passed, failed=name, said=said, output=done.stdout)

    def test_all(self, name: str) -> Outcome:
        """Run all tests of a model."""
        return self.test("-k", name.replace("_", "-"))

    def check_sound(self, names: Sequence[str]) -> None:
        """Fail unless all tests of these models pass as they are."""
        for name in names:
            if name not in self.sound:
                tested = self.test_all(name)
                assert not tested.failed, tested.output
                self.sound.add(name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Write the models, on which the tests that are asked first pass as they are."""
    checkout = ScratchCheckout(tmp_path_factory.mktemp("mutations") / "checkout")
    for name, words in WORDS.items():
        assert not (written := checkout.run("new", name, *words)).error, written.error
    models = Models(checkout=checkout)
    first = {f"{SERVERS}::{_named(mutation, name)}" for name, of in FAULTS.items() for mutation in of.values()}
    tested = models.test(*sorted(first))
    assert (tested.failed, tested.passed) == ("", len(first)), tested.output
    return models


def _named(mutation: Mutation, name: str) -> str:
    return mutation.test.format(name.replace("_", "-"))


@pytest.mark.parametrize(("name", "mutation"), EVERY)
def test_a_fault_is_found(
    name: str, mutation: Mutation, models: Models, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    path, whole = mutation.apply(models.checkout.folder, name)
    try:
        tested = models.test(f"{SERVERS}::{_named(mutation, name)}")
        if not tested.failed:
            tested = models.test_all(name)
    finally:
        path.write_text(whole, encoding="utf-8")
    assert tested.failed, f"all {tested.passed} tests pass"
    if tested.failed != _named(mutation, name):
        models.check_sound([name])
    with capsys.disabled():
        said = tested.said.splitlines()[0][:80]
        print(f"\n{request.node.callspec.id}: {tested.failed}: {said} ({time.monotonic() - started:.0f} s)")
