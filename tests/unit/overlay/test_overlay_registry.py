"""`overlay_registry` against stand-ins for transformers and sglang."""

from __future__ import annotations

import ast
import importlib
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


# Modules of the overlay that import no other program are found here. Nothing of upstream's is installed.
sys.path.append(str(OVERLAY))


def load(file: Path = FILE) -> Any:  # noqa: ANN401  # the module, whose names mypy cannot know
    """Load a fresh copy of a module from its file."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[file.stem]
    return module


class Upstream:
    """What the module meets at run time: importable modules, transformers' configurations, upstream's registry."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.models: dict[str, type] = {}
        self.configs: dict[str, type] = {"llama": type("LlamaConfig", (), {"__module__": "transformers"})}
        self.config_json: dict[str, Any] | None = {}  # None: there is none
        self.module(
            "transformers",
            CONFIG_MAPPING=self.configs,
            AutoConfig=SimpleNamespace(register=self.register),
            PretrainedConfig=SimpleNamespace(get_config_dict=self.get_config_dict),
        )
        registry = SimpleNamespace(models=self.models, get_supported_archs=self.models.keys)
        for package in ("sglang", "sglang.srt", "sglang.srt.models"):
            self.module(package)
        self.module("sglang.srt.configs")
        for package in ("sglang", "sglang.srt", "sglang.srt.configs"):
            vars(sys.modules[package])["__path__"] = [str(OVERLAY.joinpath(*package.split(".")))]
        self.module("sglang.srt.models.registry", ModelRegistry=registry)

    def register(self, model_type: str, config: type, exist_ok: bool = False) -> None:
        self.configs[model_type] = config

    def get_config_dict(self, path: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        assert (path, revision) == ("checkpoint", "main")
        if self.config_json is None:
            raise OSError("there is no config.json")
        return dict(self.config_json), {}

    def config(self, name: str, module: str, **attributes: object) -> type:
        """Make a configuration class, alone in its module."""
        cls = type(name, (), {"__module__": module, **attributes})
        self.module(module, **{name: cls})
        return cls

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


def asked(
    *architectures: str,
    draft: bool = False,
    impl: str = "auto",
    own: str | None = None,
    embedding: bool = False,
    overrides: dict[str, Any] | None = None,
    **keys: Any,  # noqa: ANN401  # values of JSON
) -> SimpleNamespace:
    """Make the ModelConfig of a checkpoint, whose configuration has these keys."""
    config = SimpleNamespace(architectures=list(architectures), **keys)
    if own is not None:
        config.overlay_architecture = own
    return SimpleNamespace(
        hf_config=config,
        is_draft_model=draft,
        is_generation=not embedding,
        model_impl=SimpleNamespace(value=impl),
        model_path="checkpoint",
        revision="main",
        model_override_args=overrides or {},
    )


SHAPED = {"model": "shaped:ShapedForCausalLM"}
EXT = {"model": "ext:ExtForCausalLM", "base": "BaseForCausalLM", "draft": "ext_mtp:ExtForCausalLMMTP"}


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    code = f"import sys; sys.path = [{str(OVERLAY)!r}, *sys.path]; import sglang.srt.overlay_registry as registry;"
    code += "print({'torch', 'transformers'} & {*sys.modules}, len(registry.MODELS))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"set() {len(load().MODELS)}\n"


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
    nameless = asked()
    nameless.hf_config.architectures = None
    assert module.resolve_model(nameless) is None


def test_model_without_base_is_found_by_its_architecture(upstream: Upstream) -> None:
    cls = upstream.model("ShapedForCausalLM")
    assert registry(SHAPED).resolve_model(asked("ShapedForCausalLM")) == (cls, "ShapedForCausalLM")


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


@pytest.mark.parametrize("row", [SHAPED, SHAPED | {"multimodal": True}])
def test_a_model_without_a_draft_is_not_its_own(upstream: Upstream, row: dict[str, Any]) -> None:
    upstream.model("ShapedForCausalLM")
    module = registry(row)
    with pytest.raises(
        module.OverlayError, match="ShapedForCausalLM has no draft model; leave --speculative-algorithm"
    ):
        module.resolve_model(asked("ShapedForCausalLM", draft=True))


def test_a_generative_model_is_not_asked_for_embeddings(upstream: Upstream) -> None:
    upstream.model("ShapedForCausalLM")
    module = registry(SHAPED)
    with pytest.raises(module.OverlayError, match=r"ShapedForCausalLM generates text .*; leave --is-embedding out"):
        module.resolve_model(asked("ShapedForCausalLM", embedding=True))


CONFIGURED = EXT | {"config": "ext_config:ExtConfig"}


def configuration(upstream: Upstream, *architectures: str) -> Any:  # noqa: ANN401
    """Make a configuration of ExtConfig."""
    config = upstream.config("ExtConfig", "ext_config", model_type="ext")()
    config.architectures = list(architectures) or None
    return config


@pytest.mark.parametrize("architectures", [("ExtForCausalLM",), ("BaseForCausalLM",), ()])
def test_the_configuration_class_says_which_model_it_is(upstream: Upstream, architectures: tuple[str, ...]) -> None:
    cls = upstream.model("ExtForCausalLM", "ext")
    module = registry(CONFIGURED)
    config = configuration(upstream, *architectures)
    module.alias(config)
    model_config = asked()
    model_config.hf_config = config
    assert module.resolve_model(model_config) == (cls, "ExtForCausalLM")
    assert config.architectures == ["BaseForCausalLM"]


def test_a_configuration_with_the_name_of_another_model(upstream: Upstream) -> None:
    module = registry(CONFIGURED, SHAPED)
    for name in ("LlamaForCausalLM", "ShapedForCausalLM"):
        with pytest.raises(
            module.OverlayError, match=rf"architectures is \['{name}'\], and model_type 'ext' is that of"
        ):
            module.alias(configuration(upstream, name))


def test_architectures_that_arguments_have_changed(upstream: Upstream) -> None:
    upstream.model("ExtForCausalLM", "ext")
    module = registry(CONFIGURED)
    model_config = asked(overrides={"architectures": ["LlamaForCausalLM"]})
    model_config.hf_config = configuration(upstream, "ExtForCausalLM")
    module.alias(model_config.hf_config)
    model_config.hf_config.architectures = ["LlamaForCausalLM"]
    with pytest.raises(module.OverlayError, match=r"--json-model-override-args changes its architectures to \['Llama"):
        module.resolve_model(model_config)


def test_architectures_that_upstream_changes_for_a_draft_leave_the_model_as_it_is(upstream: Upstream) -> None:
    upstream.model("ExtForCausalLM", "ext")
    module = registry(CONFIGURED)
    model_config = asked()
    model_config.hf_config = configuration(upstream, "ExtForCausalLM")  # of the model and of its draft
    module.alias(model_config.hf_config)
    model_config.hf_config.architectures[0] = "BaseForCausalLMMTP"
    assert module.resolve_model(model_config)[1] == "ExtForCausalLM"


def test_our_architecture_with_the_configuration_of_another(upstream: Upstream) -> None:
    upstream.model("ExtForCausalLM", "ext")
    configuration(upstream)
    module = registry(CONFIGURED)
    with pytest.raises(
        module.OverlayError, match=r"ExtForCausalLM needs model_type 'ext', and config\.json has 'base'"
    ):
        module.resolve_model(asked("ExtForCausalLM", model_type="base"))


def test_settle_is_given_what_config_json_and_the_overrides_say(upstream: Upstream) -> None:
    upstream.model("ShapedForCausalLM")
    given: list[object] = []
    upstream.module("settling", settle=lambda config, said: given.extend((config, said)))
    upstream.config_json = {"a": 1, "b": 2, "part": {"c": 3, "d": 4}, "list": {}}
    module = registry(SHAPED | {"settle": "settling:settle"})
    model_config = asked("ShapedForCausalLM", overrides={"b": 5, "part": {"c": 6}, "list": [7]})
    module.resolve_model(model_config)
    assert given == [model_config.hf_config, {"a": 1, "b": 5, "part": {"c": 6, "d": 4}, "list": [7]}]


def test_what_settle_refuses_is_not_served(upstream: Upstream) -> None:
    upstream.model("ShapedForCausalLM")

    def settle(config: object, said: dict[str, Any]) -> None:
        keys = importlib.import_module("sglang.srt.configs.config_keys")
        keys.refuse(keys.key_problems(said, keys.Keys(read=keys.ROPE)))

    upstream.module("settling", settle=settle)
    module = registry(SHAPED | {"settle": "settling:settle"})
    upstream.config_json = {"rope_tehta": 1e6}
    with pytest.raises(
        module.OverlayError, match=r"config\.json: rope_tehta is not a key .* did you mean rope_theta\?"
    ):
        module.resolve_model(asked("ShapedForCausalLM"))


def test_without_a_config_json_the_log_says_that_keys_were_not_checked(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    cls = upstream.model("ShapedForCausalLM")
    module = registry(SHAPED | {"settle": "settling:settle"})
    upstream.config_json = None
    assert module.resolve_model(asked("ShapedForCausalLM"))[0] is cls
    assert "ShapedForCausalLM: there is no config.json whose keys could be checked" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"), [("logit_transform", "softcap"), ("head_adapter_rank", 8), ("nope_layers", [3])]
)
def test_upstreams_model_with_a_key_of_ours(upstream: Upstream, key: str, value: Any) -> None:  # noqa: ANN401
    module = registry(EXT | {"extensions": ("nope_layers", "head_adapter_rank")}, SHAPED | {"extensions": (key,)})
    with pytest.raises(module.OverlayError, match=rf"config\.json has {key}, and architectures \['LlamaForCausalLM'\]"):
        module.resolve_model(asked("LlamaForCausalLM", **{key: value}))
    assert module.resolve_model(asked("LlamaForCausalLM", logit_transform="none", head_adapter_rank=0)) is None


PARAMETERS = {"rope_type": "yarn", "rope_theta": 1e7, "partial_rotary_factor": 0.5}
READ: dict[str, Any] = {"rope_theta": 1e7, "partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": "yarn"}}


@pytest.mark.parametrize("name", ["BaseForCausalLM", "BaseForCausalLMMTP"])
@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (
            {"rope_theta": 1e4},
            r"rope_parameters\.rope_theta 10000000\.0, and this model uses rope_theta 10000\.0; write",
        ),
        ({"partial_rotary_factor": 0.25}, r"rope_parameters\.partial_rotary_factor 0\.5, and this model uses"),
        ({"rope_scaling": None}, r"rope_parameters\.rope_type 'yarn', and this model uses no rope_scaling"),
    ],
)
def test_the_base_of_a_model_of_ours_does_not_lose_rope_parameters(
    upstream: Upstream, name: str, lost: dict[str, Any], said: str
) -> None:
    module = registry(EXT)
    upstream.config_json = {"rope_parameters": PARAMETERS}
    with pytest.raises(module.OverlayError, match=rf"config\.json has {said}"):
        module.resolve_model(asked(name, **READ | lost))
    assert module.resolve_model(asked(name, **READ)) is None


def test_the_log_says_that_another_model_of_upstreams_may_lose_rope_parameters(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    module = registry(EXT)
    text = SimpleNamespace(**READ)
    upstream.config_json = {"text_config": {"rope_parameters": PARAMETERS}}
    assert module.resolve_model(asked("LlamaForCausalLM", text_config=text)) is None
    assert module.resolve_model(asked("LlamaForCausalLM", text_config=SimpleNamespace())) is None
    assert caplog.text == ""
    text.rope_theta = 1e4
    assert module.resolve_model(asked("LlamaForCausalLM", text_config=text)) is None
    assert "rope_parameters.rope_theta 10000000.0, and this model uses rope_theta 10000.0" in caplog.text


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
