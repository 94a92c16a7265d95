"""The table of changes to upstream's modules, against the installed release, and the machinery that applies it."""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sgl_kernel
from sgl_kernel import fixups, gated_delta
from sgl_kernel.fixups import FIXUPS, TORCH_FIXUPS, Fixup, FixupError
from sgl_kernel.import_hook import ImportHook

KERNELS = Path(sgl_kernel.__file__).parents[1]
ATTENTION = "sglang.srt.layers.attention"

# Where a row's place is still there in a release that the row does not name: texts, one of which must be in one of
# these modules and shows that upstream has moved the matter there, or handles it itself.
HANDLED = {
    "ServerArgs._handle_model_specific_adjustments": (["sglang.srt.server_args"], ["def _handle_mamba_radix_cache("]),
    "ServerArgs._handle_mamba_radix_cache": (["sglang.srt.server_args"], ["def _validate_mamba_extra_buffer("]),
    "validate_mamba_extra_buffer": (["sglang.srt.arg_groups.mamba_hook"], ["_platform_supports_mamba_cache_extra_b"]),
    "FusedRMSNormGated.forward": ([f"{ATTENTION}.fla.fused_norm_gate"], ["if _use_cpu:"]),
    "FLA_CHUNK_SIZE": ([f"{ATTENTION}.hybrid_linear_attn_backend"], ["mamba_cache_chunk_size"]),
    "RMSNorm.forward": ([f"{ATTENTION}.fla.layernorm_gated"], ["_use_cpu = "]),
    **dict.fromkeys(
        [
            "chunk_gated_delta_rule",
            "fused_sigmoid_gating_delta_rule_update",
            "fused_recurrent_gated_delta_rule_update",
            "fused_gdn_gating",
            "causal_conv1d_fn",
            "causal_conv1d_update",
        ],
        (
            [f"{ATTENTION}.hybrid_linear_attn_backend", f"{ATTENTION}.linear.gdn_backend"],
            ["import causal_conv1d_fn_cpu", "causal_conv1d_fn_cpu,\n        causal_conv1d_update_cpu,"],
        ),
    ),
    "HybridLinearAttnBackend.init_forward_metadata": (
        [f"{ATTENTION}.hybrid_linear_attn_backend"],
        ["is_draft_extend_v2()"],
    ),
    "_is_cuda": (
        ["sglang.srt.speculative.eagle_utils", "sglang.kernels.ops.speculative.spec_tree"],
        ["sgl_verify_tree_greedy_cpu("],
    ),
    "XGrammarGrammar.apply_vocab_mask": (
        ["sglang.srt.constrained.xgrammar_backend"],
        ["self.apply_vocab_mask_cpu(", 'backend="cpu"'],
    ),
}


def installed_sglang() -> Path:
    """Find the folder of sglang without importing it."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def source_of(module: str, root: Path | None = None) -> str | None:
    """Read a module of sglang without importing it; None if there is none."""
    root = root or installed_sglang()
    path = root.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return path.read_text(encoding="utf-8") if path.is_file() else None


def defines(source: str, symbol: str) -> bool:
    """Say whether the source defines a function, a method as Class.name, or a variable that it also reads."""
    everything = list(ast.walk(ast.parse(source)))
    read = {node.id for node in everything if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    scope: list[ast.AST] = everything
    for name in symbol.split("."):
        found = [
            node
            for node in scope
            if (isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)
            or (isinstance(node, ast.Assign) and name in read and name in [getattr(t, "id", "") for t in node.targets])
        ]
        if not found:
            return False
        scope = [child for node in found for child in ast.iter_child_nodes(node)]
    return True


def has_place(fixup: Fixup, root: Path | None = None) -> bool:
    """Say whether the release has what the row changes."""
    source = source_of(fixup.module, root)
    if source is None:
        return False
    if fixup.edit:
        return source.count(fixup.edit[0]) == 1 and fixup.symbol.rpartition(".")[2] in source
    return defines(source, fixup.symbol)


def unfit(release: str, root: Path | None = None) -> list[str]:
    """List the rows that do not fit a release whose package lies at root, by default the installed one."""
    problems = []
    for fixup in FIXUPS:
        if fixup.applies_to(release) and not has_place(fixup, root):
            problems.append(f"{fixup.module}:{fixup.symbol} is gone")
        elif not fixup.applies_to(release) and has_place(fixup, root):
            modules, texts = HANDLED.get(fixup.symbol, ([], []))
            sources = [source_of(module, root) or "" for module in modules]
            if not any(text in source for text in texts for source in sources):
                problems.append(f"{fixup.module}:{fixup.symbol} is there, but not named")
    return problems


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds these kernels."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"SGLANG_USE_CPU_ENGINE", *fixups.ENVIRONMENT}
    }
    paths = os.pathsep.join(filter(None, [str(KERNELS), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env={**inherited, "PYTHONPATH": paths, **environment}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


# The table


def test_every_row_fits_the_installed_release() -> None:
    assert unfit(version("sglang")) == []


@pytest.mark.parametrize("fixup", [*FIXUPS, *TORCH_FIXUPS], ids=lambda fixup: f"{fixup.symbol}{fixup.releases}")
def test_every_row_says_one_change_and_why(fixup: Fixup) -> None:
    assert (fixup.replace is None) != (fixup.edit is None)
    assert fixup.why


def test_no_two_rows_change_the_same_place_in_one_release() -> None:
    places = [
        (fixup.module, fixup.symbol, fixup.edit and fixup.edit[0])
        for fixup in FIXUPS
        if fixup.applies_to(version("sglang"))
    ]
    assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("releases", "release", "expected"),
    [
        ("", "0.5.7", True),
        (">=0.5.9,<0.5.10", "0.5.9+overlay.1", True),
        (">=0.5.10,<0.5.16", "0.5.10.post1", True),
        ("<0.5.13", "0.5.12.post1+overlay.3", True),
        ("<0.5.13", "0.5.13.post1", False),
        (">=0.5.16", "0.5.24.dev3", True),
    ],
)
def test_releases_are_told_apart(releases: str, release: str, expected: bool) -> None:
    row = Fixup(module="m", symbol="s", releases=releases, why="w", edit=("a", "b"))
    assert row.applies_to(release) is expected


def test_rows_reach_every_module_of_the_installed_release() -> None:
    """Import each changed module in a CPU process and look the changes up."""
    code = """
import importlib, inspect, sys
from importlib.metadata import PackageNotFoundError, version
from sgl_kernel.fixups import FIXUPS
for fixup in FIXUPS:
    if not fixup.applies_to(version("sglang")):
        continue
    module = importlib.import_module(fixup.module)
    if fixup.replace:
        value = module
        for name in fixup.symbol.split("."):
            value = getattr(value, name)
        home = getattr(value, "__module__", None) or getattr(type(value), "__module__", None)
        inner = getattr(value, "__code__", None)
        ours = (home or "").startswith("sgl_kernel") or (inner and "sgl_kernel" in inner.co_filename)
        assert ours or value is True or fixup.symbol == "CONV_DTYPE", fixup.symbol
print("reached")
"""
    result = python(code, SGLANG_USE_CPU_ENGINE="1")
    assert result.stdout.splitlines()[-1:] == ["reached"], result.stderr


def test_the_chunk_size_is_upstreams() -> None:
    sources = [
        source_of(f"{package}.chunk_delta_h") or ""
        for package in (f"{ATTENTION}.fla", "sglang.kernels.ops.attention.fla")
    ]
    assert f"\nCHUNK_SIZE = {gated_delta.CHUNK_SIZE}\n" in "".join(sources)


# The machinery


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make a package with two modules; forget it and the hooks afterwards."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/__init__.py").write_text("")
    (tmp_path / "toy/one.py").write_text(
        "flag = 1\ndef f():\n    return 'old'\nclass C:\n    def m(self):\n        return 2\n"
    )
    (tmp_path / "toy/two.py").write_text("from toy.one import f, flag\nseen = f(), flag\n")
    (tmp_path / "toy/other.py").write_text("")
    (tmp_path / "toy/late.py").write_text("import toy.hook\nvalue = 1\nimport toy.two\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield "toy"
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]


def install(*rows: Fixup) -> None:
    """Apply rows to the toy package as the table's are to sglang."""

    def edit(name: str, source: str) -> str:
        for row in rows:
            source = row.edit_source(source) if row.edit and row.module == name else source
        return source

    def finish(module: ModuleType) -> None:
        for row in rows:
            if row.replace and row.module == module.__name__:
                row.finish(module)

    ImportHook({row.module for row in rows}, edit, finish).install()


def row(symbol: str, replace: Callable[[Any], Any] | None = None, edit: tuple[str, str] | None = None) -> Fixup:
    return Fixup(module="toy.one", symbol=symbol, releases="", why="test", replace=replace, edit=edit)


def test_modules_are_changed_when_imported(package: str) -> None:
    install(
        row("f", replace=lambda old: lambda: old() + " and new"),
        row("C.m", replace=lambda old: lambda self: old(self) + 1),
        row("flag", edit=("flag = 1", "flag = 5")),
    )
    two = importlib.import_module("toy.two")
    assert two.seen == ("old and new", 5)  # by whoever imports from it, too
    assert sys.modules["toy.one"].C().m() == 3
    spec = sys.modules["toy.one"].__spec__
    assert spec is not None
    assert str(spec.origin).endswith("one.py")


def test_a_module_imported_before_is_changed_at_once(package: str) -> None:
    one = importlib.import_module("toy.one")
    install(row("f", replace=lambda old: lambda: "new"))
    assert one.f() == "new"


def test_a_module_that_is_being_imported_is_changed_when_it_is_done(package: str) -> None:
    hook = ModuleType("toy.hook")
    late = Fixup(module="toy.late", symbol="value", releases="", why="test", replace=lambda old: old + 1)
    sys.meta_path.insert(0, _RunAtImport("toy.hook", hook, lambda: install(late)))
    module = importlib.import_module("toy.late")
    importlib.import_module("toy.other")
    assert module.value == 2


def test_what_another_does_with_a_module_is_done_too(package: str) -> None:
    """As the plugin does: it was left out where its module is one of the table's."""
    done: list[int] = []

    class Other(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ANN401
            spec = PathFinder.find_spec(fullname, path, target)
            if fullname != "toy.one" or spec is None or spec.loader is None:
                return None
            execute = spec.loader.exec_module

            def execute_and_note(module: ModuleType) -> None:
                execute(module)
                done.append(module.flag)

            spec.loader.exec_module = execute_and_note  # type: ignore[method-assign]
            return spec

    other = Other()
    sys.meta_path.insert(0, other)
    install(row("flag", edit=("flag = 1", "flag = 5")), row("f", replace=lambda old: lambda: "new"))
    one = importlib.import_module("toy.one")
    sys.meta_path.remove(other)
    assert done == [5]
    assert one.f() == "new"


class _RunAtImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder that calls a function when one module is first looked for."""

    def __init__(self, name: str, module: ModuleType, call: Callable[[], object]) -> None:
        self.name, self.module, self.call = name, module, call

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        self.call()
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: object) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        pass


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"symbol": "gone", "replace": lambda old: old}, r"toy\.one:gone .*no such symbol"),
        ({"symbol": "C.gone", "replace": lambda old: old}, r"toy\.one:C\.gone .*no such symbol"),
        ({"symbol": "flag", "edit": ("flag = 2", "")}, r"'flag = 2' occurs 0 times"),
        ({"symbol": "f", "edit": ("return", "")}, r"'return' occurs 2 times"),
    ],
)
def test_a_row_whose_place_is_gone_fails_the_import(package: str, change: dict[str, Any], problem: str) -> None:
    install(row(**change))
    with pytest.raises(FixupError, match=problem):
        importlib.import_module("toy.one")


def test_a_row_whose_module_is_gone_fails_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Fixup(module="sglang.srt.gone", symbol="x", releases="", why="test", replace=lambda old: old)
    monkeypatch.setattr(fixups, "FIXUPS", (gone,))
    monkeypatch.setattr(fixups, "TORCH_FIXUPS", ())
    with pytest.raises(FixupError, match=r"sglang\.srt\.gone:x .*no such module"):
        fixups.install()


def test_a_function_sees_other_globals_only_while_it_runs() -> None:
    scope: dict[str, Any] = {"is_cuda": lambda: False}
    exec("def ask(fail=False):\n    global left\n    left = 1\n    assert not fail\n    return is_cuda()", scope)
    ask = fixups._with_globals(is_cuda=lambda: True)(scope["ask"])
    assert ask() is True
    with pytest.raises(AssertionError):
        ask(fail=True)
    assert scope["is_cuda"]() is False
    assert scope["left"] == 1


# The package as a whole


def test_a_cuda_host_is_told_what_to_install() -> None:
    result = python("import torch; torch.cuda.is_available = lambda: True; import sgl_kernel")
    assert result.returncode != 0
    assert "ImportError: this sgl_kernel is the CPU reference build, and this host has a CUDA device" in result.stderr
    assert "pip install --force-reinstall" in result.stderr


def test_torch_is_left_alone_where_cuda_works_and_without_the_cpu_engine() -> None:
    code = """
import torch
{cuda}
before = torch.empty, torch.tensor, torch.Tensor.pin_memory, torch.cuda.synchronize, torch.get_device_module
import sgl_kernel
print(before == (torch.empty, torch.tensor, torch.Tensor.pin_memory, torch.cuda.synchronize, torch.get_device_module))
"""
    with_cuda = python(code.format(cuda="torch.cuda.is_available = lambda: True"), SGLANG_USE_CPU_ENGINE="1")
    assert with_cuda.stdout.strip() == "True", with_cuda.stderr
    without_engine = python(code.format(cuda=""))
    assert without_engine.stdout.strip() == "True", without_engine.stderr
    on_cpu = python(code.format(cuda=""), SGLANG_USE_CPU_ENGINE="1")
    assert on_cpu.stdout.strip() == "False", on_cpu.stderr


def test_a_cpu_process_can_pin_memory_and_default_to_its_device() -> None:
    code = """
import os, sgl_kernel, torch
print(torch.empty(2, pin_memory=True).shape, torch.zeros(3, device="cuda").device, torch.zeros(1).pin_memory().item())
print(torch.get_device_module().__name__, torch.tensor([1], dtype=torch.int8).dtype, torch.cuda.synchronize())
print(os.environ["TORCHDYNAMO_DISABLE"], os.environ["SGLANG_MAMBA_CONV_DTYPE"])
"""
    result = python(code, SGLANG_USE_CPU_ENGINE="1", SGLANG_MAMBA_CONV_DTYPE="bfloat16")
    assert result.stdout.splitlines() == [
        "torch.Size([2]) cpu 0.0",
        "torch.cpu torch.int8 None",
        "1 bfloat16",  # what is set already stays
    ], result.stderr


@pytest.mark.parametrize("name", ["sgl-kernel", "sglang-kernel"])
def test_the_version_is_that_of_the_installed_distribution(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(distribution: str) -> str:
        if distribution != name:
            raise PackageNotFoundError(distribution)
        return "0.4.2+cpu.1"

    monkeypatch.setattr(sgl_kernel, "version", installed)
    assert sgl_kernel._version() == "0.4.2+cpu.1"


def test_a_grammar_masks_logits_on_the_cpu() -> None:
    """Call what the installed release calls, as it does, in a CPU process."""
    code = """
import sgl_kernel, torch, xgrammar  # sgl_kernel first, as in all processes of a server
from sglang.srt.constrained import xgrammar_backend as x
masked = xgrammar.apply_token_bitmask_inplace
mask = torch.zeros(1, 2, dtype=torch.int32)
mask[0, 0], mask[0, 1] = 1 << 1, 1 << 1
grammar = x.XGrammarGrammar.__new__(x.XGrammarGrammar)
grammar.apply_vocab_mask_cpu = masked
targets = [grammar]
if "apply_vocab_mask" in vars(x.XGrammarGrammarBackend):
    targets.append(x.XGrammarGrammarBackend)
for target in targets:
    logits = torch.zeros(1, 40)
    target.apply_vocab_mask(logits=logits, vocab_mask=mask)
    print((logits[0] == 0).nonzero().flatten().tolist())
"""
    result = python(code, SGLANG_USE_CPU_ENGINE="1")
    assert set(result.stdout.splitlines()) == {"[1, 33]"}, result.stderr


def test_attention_keeps_to_the_window_of_a_layer() -> None:
    """Where all keys are alike, attention gives the mean of the values that are seen: of the own place and the last."""
    code = """
import sgl_kernel, torch
from types import SimpleNamespace
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
pool = SimpleNamespace(
    get_key_buffer=lambda layer: torch.zeros(8, 1, 4),
    get_value_buffer=lambda layer: torch.arange(8.0).view(8, 1, 1).repeat(1, 1, 4),
)
pools = {"token_to_kv_pool": pool, "req_to_token_pool": SimpleNamespace(req_to_token=torch.arange(8)[None])}
backend = TorchNativeAttnBackend.__new__(TorchNativeAttnBackend)
vars(backend).update(pools)
layer = SimpleNamespace(
    qk_head_dim=4, v_head_dim=4, tp_q_head_num=1, tp_k_head_num=1, layer_id=0, scaling=1.0,
    is_cross_attention=False, sliding_window_size=1, logit_cap=0.0, attn_type=AttentionType.DECODER,
)
mode = SimpleNamespace(is_target_verify=lambda: False, name="EXTEND")
batch = SimpleNamespace(
    **pools, forward_mode=mode, out_cache_loc=None, encoder_lens=None, req_pool_indices=torch.tensor([0]),
    seq_lens=torch.tensor([5]), extend_prefix_lens=torch.tensor([2]), extend_seq_lens=torch.tensor([3]),
)
asked = lambda forward, n: forward(torch.zeros(n, 4), None, None, layer, batch, save_kv_cache=False)[:, 0].tolist()
print(asked(backend.forward_extend, 3), asked(backend.forward_decode, 1))
layer.attn_type = AttentionType.ENCODER_ONLY
batch.seq_lens = batch.extend_seq_lens
batch.extend_prefix_lens = torch.tensor([0])
print(asked(backend.forward_extend, 3))
"""
    result = python(code, SGLANG_USE_CPU_ENGINE="1")
    assert result.stdout.splitlines() == ["[1.5, 2.5, 3.5] [3.5]", "[1.0, 1.0, 1.0]"], result.stderr


def test_a_device_context_still_holds_for_the_wrapped_factories() -> None:
    code = """
import sgl_kernel, torch
with torch.device("meta"):
    made = torch.tensor([1.0]), torch.empty(1), torch.zeros(1), torch.full((1,), 2.0)
print({str(tensor.device) for tensor in made}, torch.tensor([1.0], pin_memory=True).is_pinned())
"""
    result = python(code, SGLANG_USE_CPU_ENGINE="1")
    assert result.stdout == "{'meta'} False\n", result.stderr


def test_upstreams_cpu_imports_are_all_implemented() -> None:
    """Apart from those of the backend for AMX, which this package does not serve."""
    root = installed_sglang()
    names = set()
    for path in (root / "srt").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "sgl_kernel" in text and path.name != "intel_amx_backend.py":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "sgl_kernel":
                    names |= {(node.module, alias.name) for alias in node.names if alias.name.endswith("_cpu")}
    unimplemented = [
        f"{module}.{name}"
        for module, name in names
        if getattr(importlib.import_module(module), name).__module__ == "sgl_kernel.unimplemented"
    ]
    assert unimplemented == []
