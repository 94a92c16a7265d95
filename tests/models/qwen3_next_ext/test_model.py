"""What the served model refuses of a server's arguments, where upstream would compute something else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from engine.harness import RELEASE, ours
from packaging.version import Version

models = ours("models.qwen3_next_ext")


@pytest.mark.parametrize(
    ("said", "environment", "until", "named"),
    [
        ({"enable_mis": True}, {}, "0.5.20", "--enable-mis"),
        ({"multi_item_scoring_delimiter": 5}, {}, "0.5.20", "--multi-item-scoring-delimiter"),
        ({"speculative_algorithm": "STANDALONE"}, {"SGLANG_ENABLE_SPEC_V2": "1"}, "0.5.10", "SGLANG_ENABLE_SPEC_V2"),
        ({"speculative_algorithm": "STANDALONE"}, {"SGLANG_ENABLE_SPEC_V2": "0"}, "", ""),
        ({}, {"SGLANG_ENABLE_SPEC_V2": "1"}, "", ""),
        ({}, {}, "", ""),
    ],
)
def test_what_linear_attention_does_not_do_is_refused(
    said: dict[str, object], environment: dict[str, str], until: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = SimpleNamespace(**{"speculative_algorithm": None, "enable_mis": False, **said})
    monkeypatch.setattr("sglang.srt.server_args.get_global_server_args", lambda: arguments)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if until and Version(until) > RELEASE:
        with pytest.raises(ValueError, match=f"^{named}"):
            models.check_server()
    else:
        models.check_server()


def test_kernels_that_route_by_softmax_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "get_moe_runner_backend", lambda: SimpleNamespace(is_triton_kernels=lambda: True))
    with pytest.raises(ValueError, match="--moe-runner-backend triton_kernel routes by softmax"):
        models.use_sigmoid_router(None, None)
