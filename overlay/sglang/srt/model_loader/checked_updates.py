"""Updates of a running server's weights: each is checked whole before it changes anything, or refused.

Upstream loads what comes, tensor by tensor, and its scheduler ends at the first one that a model refuses. An update of
a model that has called `serve_checked` is checked first, with its draft and on all ranks. If it does not fit, it is
answered with the reason, and the weights stay as they were.

Upstream also fails, until 0.5.20 with its scheduler, when an update is to empty the cache while the last batch is still
on its way. An update waits for it here.
"""

import copy
import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import sglang
import torch
from packaging.version import Version
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.managers.io_struct import (
    UpdateWeightFromDiskReqInput,
    UpdateWeightFromDiskReqOutput,
    UpdateWeightsFromDistributedReqInput,
    UpdateWeightsFromDistributedReqOutput,
    UpdateWeightsFromTensorReqInput,
    UpdateWeightsFromTensorReqOutput,
)
from sglang.srt.model_loader.strict_loading import (
    Check,
    Expected,
    Header,
    Weights,
    WeightsError,
    header_of,
    name_in_checkpoint,
    read_headers,
    refusal,
)
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.overlay_registry import config_faults
from torch import nn

_log = logging.getLogger(__name__)
_served: WeakKeyDictionary[nn.Module, Check] = WeakKeyDictionary()
_REQUESTS = (UpdateWeightFromDiskReqInput, UpdateWeightsFromTensorReqInput, UpdateWeightsFromDistributedReqInput)
_PATIENCE = 60  # seconds that an update waits for requests that run
_BUSY = "requests are still running, and the cache cannot be emptied; end them, or send flush_cache=false"


@dataclass(kw_only=True, slots=True)
class Update:
    """An update of weights that is going on.

    - `complete`: whether it brings a whole checkpoint, or a part of one.
    - `group`: the ranks that must agree to it; None if all have the same input.
    - `agreed`: whether they have. From then on it changes weights.
    - `refusal`: why they have not.
    """

    complete: bool
    group: Any = None
    agreed: bool = False
    refusal: str = ""

    def agree(self, faults: Iterable[str]) -> None:
        """Let all ranks take the update. Raises WeightsError on each of them if one has found faults."""
        found = [list(faults)] if self.group is None else _of_ranks(self.group, list(faults))
        if any(found):
            lines = "\n  ".join(dict.fromkeys(fault for rank in found for fault in rank))
            self.refusal = f"the update is refused, and nothing was changed:\n  {lines}"
            raise WeightsError(self.refusal)
        self.agreed = True


def _of_ranks(group: Any, mine: Any) -> list[Any]:
    """Gather a value from each rank of a group."""
    every = [mine] * torch.distributed.get_world_size(group)
    if len(every) > 1:
        torch.distributed.all_gather_object(every, mine, group=group)
    return every


_updates: list[Update] = []  # the one that is going on, if any
_busy: list[str] = []  # why no update can be taken now, if so


@contextmanager
def updating(*, complete: bool, group: Any = None) -> Iterator[Update]:
    """Take what models load meanwhile for an update, `complete` or of some weights, on which a `group` must agree.

    Outside of it, `load_checked` takes what it is given for a complete checkpoint.
    """
    update = Update(complete=complete, group=group)
    _updates.append(update)
    try:
        yield update
    finally:
        _updates.remove(update)


def serve_checked(model: nn.Module, check: Check) -> None:
    """Check what is loaded into a model from now on, its checkpoint and updates.

    Its `load_weights` calls `load_checked`. If it has a method `faults_of_part`, that is given the names of the tensors
    of an update, and lists what is wrong with these as a whole, a line each. This call ends the constructor of each
    model that is served or drafts; later it may be too late to make the check: the constructor of upstream's draft
    changes the configuration, which in old releases is the model's own.
    """
    _served[model] = check
    _attach()


def load_checked(model: nn.Module, weights: Weights, load: Callable[[Weights], Any]) -> Any:
    """Check weights and hand them to `load`: a checkpoint as it is read, a part of one as a whole before.

    Raises WeightsError naming each tensor that does not fit.
    """
    check = _served[model]
    if check.unchecked:
        layer, reason = next(iter(check.unchecked.items()))
        _log.warning("tensors of %d layers are not checked, as of %s: %s", len(check.unchecked), layer, reason)
    update = _updates[-1] if _updates else None
    if update is None or update.complete:
        with _all_filled(model, check) if update is None else nullcontext():  # an update finds all filled
            return load(_upstreams_part(model, check.passed(weights, model.config)))
    part = list(weights)
    headers = [header_of(name, tensor) for name, tensor in part]
    if not update.agreed:  # the first model that loads it
        update.agree(fault for other in _models() for fault in _faults_of_part(other, headers))
    elif faults := _faults_of_part(model, headers):
        raise WeightsError("an update does not fit, and what came before it is loaded:\n  " + "\n  ".join(faults))
    return load(_upstreams_part(model, ((name, tensor) for name, tensor in part if not check.ignores(name))))


def _upstreams_part(model: nn.Module, weights: Weights) -> Weights:
    """Load the tensors that are the model's own, and pass on the rest.

    Upstream's loaders go by names: they leave out, without a word, what is called a projector or mtp, and look for
    what is called up_proj in a layer that has two projections in one.
    """
    check = _served[model]
    places = _places(model, check)
    for name, tensor in weights:
        place = places.get(name)
        if place is None or name not in check.own:  # another rank has it, or upstream's loader puts it together
            yield name, tensor
        else:
            getattr(place, "weight_loader", default_weight_loader)(place, tensor)


_FIXED = (
    "what was quantised while it was loaded cannot be updated; serve a checkpoint that is quantised, or start the"
    " server again"
)
_NO_TENSOR = (
    "tie_word_embeddings is true, and upstream's model, as it is served, has a head of its own and leaves it empty; set"
    " that to false and let the checkpoint have this tensor, or serve without a pipeline (--pp-size)"
)
_LEFT_OUT = (
    "upstream's loader leaves it out; `make_check` takes the names of what upstream's model does not have as `own`"
)


@contextmanager
def _all_filled(model: nn.Module, check: Check) -> Iterator[None]:
    """Raise WeightsError if a block that loads a checkpoint leaves a parameter empty that has a tensor's name."""
    watched = {name: tensor for name, tensor in _places(model, check).items() if name in check.expected}
    if check.tied_head is not None:
        watched["lm_head.weight"] = check.tied_head
    watched = {name: tensor for name, tensor in watched.items() if tensor.is_floating_point() and tensor.numel()}
    for tensor in watched.values():
        _first(tensor).fill_(math.nan)  # and no more: the rest may be padding, which a loader leaves as it is
    yield
    after = _places(model, check)  # a loader may have put other tensors there
    empty = [name for name, tensor in watched.items() if after[name] is tensor and _first(tensor).float().isnan().any()]
    if empty:
        raise refusal(f"{name}: {_LEFT_OUT if name in check.expected else _NO_TENSOR}" for name in empty)


def _first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.data[(slice(0, 1),) * tensor.ndim]


def _places(model: nn.Module, check: Check) -> dict[str, torch.Tensor]:
    """Give a model's parameters and buffers by their names in a checkpoint: those of a draft's layers may be others."""
    places = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {**{name_in_checkpoint(name, check.draft): tensor for name, tensor in places.items()}, **places}


def _faults(check: Check, headers: list[Header], *, complete: bool) -> list[str]:
    """List what is wrong with an update, each tensor by itself."""
    fixed = [header.name for header in headers if header.name in check.fixed]
    more = f" and {len(fixed) - 1} more" if len(fixed) > 1 else ""
    return check.faults(headers, complete=complete) + [f"{name}{more}: {_FIXED}" for name in fixed[:1]]


def _faults_of_part(model: nn.Module, headers: list[Header]) -> list[str]:
    """List what is wrong with an update of some weights of a model."""
    check = _served[model]
    found = _faults(check, headers, complete=False)
    if hasattr(model, "faults_of_part"):
        found += model.faults_of_part([header.name for header in headers if not check.ignores(header.name)])
    return found


def _models() -> list[nn.Module]:
    """List the models that are served or draft, without those that are a part of another one."""
    parts = {part for model in _served for part in model.modules() if part is not model}
    return [model for model in _served if model not in parts]


@functools.cache
def _attach() -> None:
    """Put the checks around what upstream's scheduler does with an update."""
    from sglang.srt.managers.scheduler import Scheduler

    if Version(sglang.__version__) >= Version("0.5.13"):
        from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager as Updater
    else:
        from sglang.srt.managers.scheduler_update_weights_mixin import SchedulerUpdateWeightsMixin as Updater
    if Version(sglang.__version__) >= Version("0.5.16"):
        from sglang.srt.model_executor.model_runner_components import weight_updater as runner
    else:
        from sglang.srt.model_executor import model_runner as runner
    Scheduler.process_input_requests = _when_idle(Scheduler.process_input_requests)
    Updater.update_weights_from_disk = _checked_disk(Updater.update_weights_from_disk)
    Updater.update_weights_from_tensor = _checked(
        Updater.update_weights_from_tensor, UpdateWeightsFromTensorReqOutput, ranks_agree=True
    )
    Updater.update_weights_from_distributed = _checked(
        Updater.update_weights_from_distributed, UpdateWeightsFromDistributedReqOutput, ranks_agree=False
    )
    Updater.update_weights_from_ipc = _partial(Updater.update_weights_from_ipc)
    runner._model_load_weights_direct = _checked_direct(runner._model_load_weights_direct)


def _when_idle(upstreams: Callable[..., Any]) -> Callable[..., Any]:
    """Let an update that empties the cache wait for what runs; then it is handled as if it came now."""
    waiting: list[tuple[Any, float]] = []

    @functools.wraps(upstreams)
    def process_input_requests(self, recv_reqs):
        since = time.monotonic()
        others = []
        for request in recv_reqs:
            if isinstance(request, _REQUESTS) and request.flush_cache:
                waiting.append((request, since))
            else:
                others.append(request)
        upstreams(self, others)
        while waiting:
            request, since = waiting[0]
            paused = getattr(self, "_engine_paused", False)
            ranks = _of_ranks(self.tp_cpu_group, (_is_idle(self), paused or time.monotonic() - since > _PATIENCE))
            idle = all(idle for idle, _ in ranks)
            if not idle and not any(late for _, late in ranks):
                return
            del waiting[0]
            _busy[:] = [] if idle else [_BUSY]
            upstreams(self, [request])
            _busy.clear()

    return process_input_requests


def _is_idle(scheduler: Any) -> bool:
    """Tell whether upstream would empty the cache now."""
    if Version(sglang.__version__) < Version("0.5.10"):
        return scheduler._is_no_request()
    if "ignore_waiting" in inspect.signature(scheduler.is_fully_idle).parameters:
        return scheduler.is_fully_idle(ignore_waiting=scheduler._engine_paused)
    return scheduler.is_fully_idle()


def _checked_disk(upstreams: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(upstreams)
    def update_weights_from_disk(self, recv_req):
        with updating(complete=True, group=self.tp_cpu_group) as update:
            with suppress(WeightsError):
                update.agree(_busy or _faults_on_disk(self, recv_req))
            if update.agreed:
                return upstreams(self, recv_req)
        _log.error(update.refusal)
        return UpdateWeightFromDiskReqOutput(success=False, message=update.refusal, num_paused_requests=0)

    return update_weights_from_disk


def _faults_on_disk(scheduler: Any, recv_req: Any) -> list[str]:
    """List what is wrong with a checkpoint for the models that upstream is going to load it into."""
    from sglang.srt.model_loader.loader import DefaultModelLoader, get_model_loader

    target = scheduler.tp_worker.model_runner.model
    models = _models() if Version(sglang.__version__) >= Version("0.5.11") else [target]  # which leaves drafts alone
    config = copy.copy(scheduler.tp_worker.model_config)
    config.model_path = recv_req.model_path
    faults: list[str] = []
    headers: dict[str, list[Header]] = {}
    try:
        loader = get_model_loader(LoadConfig(load_format=recv_req.load_format), config)
        if type(loader) is not DefaultModelLoader:
            return []  # upstream has its own word on it
        source = DefaultModelLoader.Source.init_new(config, target)
        patterns = [source.allow_patterns_overrides] if hasattr(source, "allow_patterns_overrides") else []
        _, files, _ = loader._prepare_weights(source.model_or_path, source.revision, source.fall_back_to_pt, *patterns)
    except Exception as error:  # of the file system, of a hub, of an index
        return [f"{recv_req.model_path}: {type(error).__name__}: {error}"]
    for file in files:
        try:
            headers[file] = read_headers(Path(file))
        except WeightsError as error:
            faults.append(str(error))
    if faults:
        return faults
    every = [header for found in headers.values() for header in found]
    faults = config_faults(config, recv_req.model_path)
    return faults + [fault for model in models for fault in _faults(_served[model], every, complete=True)]


def _checked(upstreams: Callable[..., Any], output: type, *, ranks_agree: bool) -> Callable[..., Any]:
    @functools.wraps(upstreams)
    def update_weights(self, recv_req):
        with updating(complete=False, group=self.tp_cpu_group if ranks_agree else None) as update:
            try:
                if ranks_agree and _busy:  # where they need not, a trainer waits for its tensors to be received
                    update.agree(_busy)
                answer = upstreams(self, recv_req)
            except Exception as error:
                # A loader of the user's may have changed anything; upstream's own have called `load_checked`.
                own = recv_req.load_format in (None, "direct", "flattened_bucket")
                if update.agreed or not (own or update.refusal or isinstance(error, NotImplementedError)):
                    raise
                if not update.refusal:
                    with suppress(WeightsError):
                        update.agree([f"{type(error).__name__}: {error}"])
                _log.error(update.refusal)
        # Upstream says of an update that a model has refused that weights are changed in part.
        return output(success=False, message=update.refusal) if update.refusal else answer

    return update_weights


def _partial(upstreams: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(upstreams)
    def update_weights(self, recv_req):
        with updating(complete=False):
            return upstreams(self, recv_req)

    return update_weights


def _checked_direct(upstreams: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(upstreams)
    def load_direct(model, named_tensors):
        """Check tensors that have the names and shapes of parameters, not those of a checkpoint."""
        if _updates and not _updates[-1].agreed and model in _served:
            parameters = {
                name: Expected(shape=tuple(parameter.shape), dtypes=Check(expected={}, dtype=parameter.dtype).allowed())
                for name, parameter in model.named_parameters()
            }
            headers = [header_of(name, tensor) for name, tensor in named_tensors]
            _updates[-1].agree(Check(expected=parameters).faults(headers, complete=False))
        return upstreams(model, named_tensors)

    return load_direct
