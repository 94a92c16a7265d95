"""What is a whole checkpoint and what is a part, who must agree to an update, and when it is taken."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput, UpdateWeightsFromTensorReqOutput
from torch import nn
from transformers import PretrainedConfig

from engine.harness import ours

checked_updates = ours("model_loader.checked_updates")
strict_loading = ours("model_loader.strict_loading")
WeightsError = strict_loading.WeightsError


class Model(nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """A model of two tensors, `NAME.a` and `NAME.b`, to which those of others are no business of its own."""

    def __init__(self, name: str, other: str = "none") -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.names = (f"{name}.a", f"{name}.b")
        self.loaded: list[str] = []
        expected = {name: strict_loading.Expected(shape=(2,)) for name in self.names}
        checked_updates._served[self] = strict_loading.Check(expected=expected, ignored=(f"{other}.",))

    def load_weights(self, weights: Any) -> None:  # noqa: ANN401
        def take(fitting: Any) -> None:  # noqa: ANN401
            for name, _ in fitting:
                self.loaded.append(name)

        checked_updates.load_checked(self, weights, take)


@pytest.fixture
def models() -> Iterator[tuple[Model, Model]]:
    """Serve a model and its draft."""
    yield Model("m", "d"), Model("d", "m")
    checked_updates._served.clear()


GOOD = [(name, torch.zeros(2)) for name in ("m.a", "d.a")]


def test_a_list_is_a_whole_checkpoint_outside_of_an_update(models: tuple[Model, Model]) -> None:
    with pytest.raises(WeightsError, match=r"m\.b: missing"):
        models[0].load_weights(GOOD)
    with checked_updates.updating(complete=True), pytest.raises(WeightsError, match=r"m\.b: missing"):
        models[0].load_weights(GOOD)


def test_an_iterator_may_be_a_part(models: tuple[Model, Model]) -> None:
    with checked_updates.updating(complete=False):
        for model in models:
            model.load_weights(iter(GOOD))
    assert [model.loaded for model in models] == [["m.a"], ["d.a"]]


@pytest.mark.parametrize("bad", [("m.b", torch.zeros(3)), ("d.b", torch.zeros(3)), ("more", torch.zeros(2))])
@pytest.mark.parametrize("first", [0, 1])
def test_nothing_is_loaded_of_what_the_model_or_its_draft_refuses(
    models: tuple[Model, Model], bad: tuple[str, torch.Tensor], first: int
) -> None:
    with checked_updates.updating(complete=False) as update:
        with pytest.raises(WeightsError, match="nothing was changed"):
            models[first].load_weights([*GOOD, bad])
        assert bad[0] in update.refusal
        assert not update.agreed
    assert [model.loaded for model in models] == [[], []]


@pytest.mark.parametrize("first", [0, 1])
def test_nothing_is_loaded_of_tensors_that_do_not_go_together(models: tuple[Model, Model], first: int) -> None:
    asked: list[list[str]] = []

    def faults_of_part(names: list[str]) -> list[str]:
        asked.append(names)
        return ["d.b: missing"]

    models[1].faults_of_part = faults_of_part
    with checked_updates.updating(complete=False) as update:
        with pytest.raises(WeightsError, match="nothing was changed"):
            models[first].load_weights(GOOD)
        assert "d.b: missing" in update.refusal
    assert asked == [["d.a"]]
    assert [model.loaded for model in models] == [[], []]


def test_what_comes_later_is_refused_with_what_has_been_done(models: tuple[Model, Model]) -> None:
    with checked_updates.updating(complete=False):
        models[0].load_weights(GOOD)
        with pytest.raises(WeightsError, match="what came before it is loaded"):
            models[0].load_weights([("m.b", torch.zeros(3))])
    assert models[0].loaded == ["m.a"]


def test_a_part_of_a_model_is_not_asked(models: tuple[Model, Model]) -> None:
    models[0].inner = Model("inner")
    assert set(checked_updates._models()) == set(models)


class Scheduler:
    """Takes the place of upstream's scheduler: it is busy for some rounds, and notes what it handles."""

    tp_cpu_group = None

    def __init__(self, busy_rounds: int, paused: bool = False) -> None:
        self.busy, self._engine_paused = busy_rounds, paused
        self.handled: list[tuple[object, list[str]]] = []

    def is_fully_idle(self) -> bool:
        self.busy -= 1
        return self.busy < 0

    _is_no_request = is_fully_idle

    def process_input_requests(self, requests: list[object]) -> None:
        self.handled += [(request, list(checked_updates._busy)) for request in requests]


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """Give what handles requests in the place of upstream's method."""
    monkeypatch.setattr(checked_updates, "_of_ranks", lambda group, mine: [mine])
    return checked_updates._when_idle(Scheduler.process_input_requests)


def test_an_update_waits_for_the_last_batch(process: Any) -> None:  # noqa: ANN401
    scheduler, update, other = Scheduler(2), UpdateWeightFromDiskReqInput(model_path="x"), object()
    process(scheduler, [update, other])
    assert scheduler.handled == [(other, [])]
    process(scheduler, [])
    assert len(scheduler.handled) == 1
    process(scheduler, [])
    assert scheduler.handled[1:] == [(update, [])]
    process(scheduler, [])
    assert len(scheduler.handled) == 2


def test_an_update_that_keeps_the_cache_does_not_wait(process: Any) -> None:  # noqa: ANN401
    scheduler, update = Scheduler(9), UpdateWeightFromDiskReqInput(model_path="x", flush_cache=False)
    process(scheduler, [update])
    assert scheduler.handled == [(update, [])]


def test_an_update_does_not_wait_for_ever(process: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    update = UpdateWeightFromDiskReqInput(model_path="x")
    paused = Scheduler(9, paused=True)
    process(paused, [update])
    busy = Scheduler(9)
    process(busy, [update])
    assert busy.handled == []
    monkeypatch.setattr(checked_updates, "_PATIENCE", -1)
    process(busy, [])
    for scheduler in (paused, busy):
        [(handled, reasons)] = scheduler.handled
        assert handled is update
        assert "requests are still running" in reasons[0]


@pytest.mark.parametrize(
    ("load_format", "error", "answered"),
    [
        (None, KeyError("flattened_tensor"), True),
        ("no-such-format", NotImplementedError("Unknown load_format=no-such-format"), True),
        ("my.loader", KeyError("half of it is loaded"), False),
    ],
)
def test_what_fails_before_anything_is_changed_is_answered(
    load_format: str | None, error: Exception, answered: bool
) -> None:
    def upstreams(self: object, request: object) -> None:
        raise error

    update = checked_updates._checked(upstreams, UpdateWeightsFromTensorReqOutput, ranks_agree=False)
    request = SimpleNamespace(load_format=load_format)
    if not answered:
        with pytest.raises(KeyError):
            update(None, request)
        return
    answer = update(None, request)
    assert not answer.success
    assert str(error) in answer.message


def test_what_fails_while_weights_are_changed_is_not_hidden() -> None:
    def upstreams(self: object, request: object) -> None:
        checked_updates._updates[-1].agree([])
        raise MemoryError

    update = checked_updates._checked(upstreams, UpdateWeightsFromTensorReqOutput, ranks_agree=False)
    with pytest.raises(MemoryError):
        update(None, SimpleNamespace(load_format=None))
