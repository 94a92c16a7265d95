"""`overlay_registry` against stand-ins for transformers and sglang."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unit.conftest import REPOSITORY

OVERLAY = REPOSITORY / "overlay"
FILE = OVERLAY / "sglang" / "srt" / "overlay_registry.py"


def load() -> Any:  # noqa: ANN401  # the module, whose names mypy cannot know
    """Load a fresh copy of the module from its file."""
    spec = importlib.util.spec_from_file_location("overlay_registry", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["overlay_registry"] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["overlay_registry"]
    return module


class Upstream:
    """What the module meets at run time: importable modules, transformers' configurations, upstream's registry."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.models: dict[str, type] = {}
        self.configs: dict[str, type] = {"llama": type("LlamaConfig", (), {"__module__": "transformers"})}
        self.module("transformers", CONFIG_MAPPING=self.configs, AutoConfig=SimpleNamespace(register=self.register))
        registry = SimpleNamespace(models=self.models, get_supported_archs=self.models.keys)
        for package in ("sglang", "sglang.srt", "sglang.srt.models"):
            self.module(package)
        self.module("sglang.srt.models.registry", ModelRegistry=registry)

    def register(self, model_type: str, config: type, exist_ok: bool = False) -> None:
        self.configs[model_type] = config

    def module(self, name: str, **attributes: object) -> None:
        """Make a module importable."""
        module = ModuleType(name)
        vars(module).update(attributes)
        self.monkeypatch.setitem(sys.modules, name, module)

    def model(self, name: str, module: str = "shaped", registered: bool = True) -> type:
        """Make a model class, alone in its module, and list it in upstream's registry."""
        cls = type(name, (), {"__module__": module})
        self.module(module, **{name: cls})
        if registered:
            self.models[name] = cls
        return cls


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Upstream:
    return Upstream(monkeypatch)


def registry(*rows: dict[str, Any]) -> Any:  # noqa: ANN401
    """Load the module with other rows."""
    module = load()
    module._BY_ARCHITECTURE = module._by_architecture([module.OverlayModel(**row) for row in rows])
    return module


def asked(*architectures: str, draft: bool = False, impl: str = "auto", own: str | None = None) -> SimpleNamespace:
    """Make the ModelConfig of a checkpoint."""
    config = SimpleNamespace(architectures=list(architectures))
    if own is not None:
        config.overlay_architecture = own
    return SimpleNamespace(hf_config=config, is_draft_model=draft, model_impl=SimpleNamespace(value=impl))


SHAPED = {"model": "shaped:ShapedForCausalLM"}
EXT = {"model": "ext:ExtForCausalLM", "base": "BaseForCausalLM", "draft": "ext_mtp:ExtForCausalLMMTP"}


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    code = f"import runpy, sys; runpy.run_path({str(FILE)!r}); print({{'torch', 'transformers'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_row_names_a_class_that_its_overlay_file_offers() -> None:
    for row in load().MODELS:
        for reference in filter(None, (row.model, row.draft)):
            module, _, name = reference.partition(":")
            tree = ast.parse((OVERLAY / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
            assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
            [entry] = [
                node.value for node in tree.body if isinstance(node, ast.Assign) and "EntryClass" in ast.unparse(node)
            ]
            assert name in [node.id for node in ast.walk(entry) if isinstance(node, ast.Name)]


def test_upstream_models_are_left_to_upstream(upstream: Upstream) -> None:
    module = registry(SHAPED)
    assert module.resolve_model(asked("LlamaForCausalLM", impl="transformers")) is None
    assert module.resolve_model(SimpleNamespace(hf_config=SimpleNamespace(architectures=None))) is None


def test_model_without_base_is_found_by_its_architecture(upstream: Upstream) -> None:
    cls = upstream.model("ShapedForCausalLM")
    assert registry(SHAPED).resolve_model(asked("ShapedForCausalLM")) == (cls, "ShapedForCausalLM")
    assert registry(SHAPED).resolve_model(asked("ShapedForCausalLM", draft=True)) == (cls, "ShapedForCausalLM")


def test_aliased_model_is_found_by_its_own_name(upstream: Upstream) -> None:
    target, draft = upstream.model("ExtForCausalLM", "ext"), upstream.model("ExtForCausalLMMTP", "ext_mtp")
    module = registry(EXT, SHAPED)
    config = SimpleNamespace(architectures=["ExtForCausalLM"])
    for _ in range(2):  # once when built, again when saved and read back
        module.alias(config)
        assert config.architectures == ["BaseForCausalLM"]
        assert config.overlay_architecture == "ExtForCausalLM"
    assert module.resolve_model(asked("BaseForCausalLM", own="ExtForCausalLM")) == (target, "ExtForCausalLM")
    # Upstream renames the base of a draft; ours goes by its own name all the same.
    asked_draft = asked("BaseForCausalLMMTP", own="ExtForCausalLM", draft=True)
    assert module.resolve_model(asked_draft) == (draft, "ExtForCausalLMMTP")


def test_alias_leaves_other_configurations_alone() -> None:
    module = registry(EXT, SHAPED)
    for architectures in (["BaseForCausalLM"], ["ShapedForCausalLM"], None):
        config = SimpleNamespace(architectures=architectures)
        module.alias(config)
        assert vars(config) == {"architectures": architectures}


def test_module_that_fails_to_import_gives_the_reason(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "broken_model.py").write_text("raise ValueError('no kernel for this')", encoding="utf-8")
    upstream.monkeypatch.syspath_prepend(tmp_path)
    module = registry({"model": "broken_model:BrokenForCausalLM"})
    with pytest.raises(module.OverlayError, match=r"cannot import broken_model:.*ValueError: no kernel") as caught:
        module.resolve_model(asked("BrokenForCausalLM"))
    assert isinstance(caught.value.__cause__, ValueError)


def test_module_without_the_class(upstream: Upstream) -> None:
    upstream.model("OtherForCausalLM", "shaped")
    module = registry(SHAPED)
    with pytest.raises(module.OverlayError, match=r"cannot import shaped:ShapedForCausalLM: AttributeError"):
        module.resolve_model(asked("ShapedForCausalLM"))


def test_class_missing_in_upstreams_registry(upstream: Upstream) -> None:
    upstream.model("ShapedForCausalLM", registered=False)
    module = registry(SHAPED)
    with pytest.raises(module.OverlayError, match=r"registry holds nothing under this name.*EntryClass"):
        module.resolve_model(asked("ShapedForCausalLM"))


def test_class_replaced_in_upstreams_registry(upstream: Upstream) -> None:
    upstream.model("ShapedForCausalLM")
    upstream.models["ShapedForCausalLM"] = type("ShapedForCausalLM", (), {"__module__": "external"})
    module = registry(SHAPED)
    with pytest.raises(module.OverlayError, match="registry holds the class of external under this name"):
        module.resolve_model(asked("ShapedForCausalLM"))


def test_row_that_takes_an_architecture_of_upstream(upstream: Upstream) -> None:
    # The module can give the class, for it has imported it, but the class and its registration are upstream's.
    cls = upstream.model("LlamaForCausalLM", "upstream_llama")
    upstream.module("shaped", LlamaForCausalLM=cls)
    module = registry({"model": "shaped:LlamaForCausalLM"})
    with pytest.raises(module.OverlayError, match=r"registry holds the class of upstream_llama.*not a class of shaped"):
        module.resolve_model(asked("LlamaForCausalLM"))


def test_two_classes_of_one_name_in_upstreams_registry(upstream: Upstream, tmp_path: Path) -> None:
    upstream.model("ShapedForCausalLM")
    (tmp_path / "registry.py").write_text("raise AssertionError('Duplicated model Shaped')", encoding="utf-8")
    upstream.module("sglang.srt.models", __path__=[str(tmp_path)])
    upstream.monkeypatch.delitem(sys.modules, "sglang.srt.models.registry")
    module = registry(SHAPED)
    with pytest.raises(module.OverlayError, match="has the name of one of upstream's: Duplicated model Shaped"):
        module.resolve_model(asked("ShapedForCausalLM"))


@pytest.mark.parametrize("impl", ["transformers", "mindspore"])
def test_other_implementations_are_refused(upstream: Upstream, impl: str) -> None:
    upstream.model("ShapedForCausalLM")
    module = registry(SHAPED)
    with pytest.raises(module.OverlayError, match=f"ShapedForCausalLM has no {impl} implementation"):
        module.resolve_model(asked("ShapedForCausalLM", impl=impl))


def test_unknown_overlay_architecture(upstream: Upstream) -> None:
    module = registry(SHAPED)
    with pytest.raises(module.OverlayError, match=r"GoneForCausalLM: no row .* it has \['ShapedForCausalLM'\]"):
        module.resolve_model(asked("LlamaForCausalLM", own="GoneForCausalLM"))


def test_install_registers_what_the_rows_declare(upstream: Upstream) -> None:
    config = type("ExtConfig", (), {"model_type": "ext"})
    ran: list[str] = []
    upstream.module("ext_config", ExtConfig=config, more=lambda: ran.append("more"))
    declared = {"config": "ext_config:ExtConfig", "multimodal": True, "on_install": "ext_config:more"}
    archs = ["LlavaForCausalLM"]
    registry(EXT | declared, SHAPED).install(archs)
    assert upstream.configs["ext"] is config
    assert archs == ["LlavaForCausalLM", "ExtForCausalLM"]
    assert ran == ["more"]


def test_model_type_that_is_taken(upstream: Upstream) -> None:
    upstream.module("ext_config", ExtConfig=type("ExtConfig", (), {"model_type": "llama"}))
    module = registry(EXT | {"config": "ext_config:ExtConfig"})
    with pytest.raises(module.OverlayError, match=r"model_type 'llama' .* transformers.LlamaConfig"):
        module.install([])


def test_multimodal_architecture_that_is_taken(upstream: Upstream) -> None:
    module = registry(EXT | {"multimodal": True})
    with pytest.raises(module.OverlayError, match="ExtForCausalLM: upstream has a multimodal architecture"):
        module.install(["ExtForCausalLM"])


def test_rows_that_contradict_each_other() -> None:
    module = load()
    with pytest.raises(module.OverlayError, match="ShapedForCausalLM: two rows"):
        module._by_architecture([module.OverlayModel(**SHAPED), module.OverlayModel(model="other:ShapedForCausalLM")])
    with pytest.raises(module.OverlayError, match=r"ShapedForCausalLM: .* its own base"):
        module._by_architecture([module.OverlayModel(**SHAPED, base="ShapedForCausalLM")])
