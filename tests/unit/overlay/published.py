"""Stand-ins for sglang as it was published and for transformers, each a few lines."""

# As upstream's own behave: errors of plugins are logged, and what cannot be found falls back to another class.
SGLANG = {
    "sglang/__init__.py": "",
    "sglang/srt/__init__.py": "",
    "sglang/srt/configs/__init__.py": "",
    "sglang/srt/configs/model_config.py": """\
from transformers import CONFIG_MAPPING
multimodal_model_archs = ["UpstreamVLForCausalLM"]
class ModelConfig:
    model_impl, is_draft_model, is_generation = "auto", False, True
    model_path, revision, model_override_args = "nowhere", None, {}
    def __init__(self, model_type, architecture):
        self.hf_config = CONFIG_MAPPING[model_type](architecture)
""",
    "sglang/srt/server_args.py": """\
from dataclasses import dataclass
@dataclass
class ServerArgs:
    model_path: str
    revision: str = None
    tokenizer_path: str = None
    json_model_override_args: str = "{}"
    page_size: int = None
    def __post_init__(self):
        self.seen = self.page_size
""",
    "sglang/srt/utils/__init__.py": "",
    "sglang/srt/utils/hf_transformers_utils.py": """\
from transformers import CONFIG_MAPPING
def get_config(model_type):
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"Transformers does not recognize {model_type}")
""",
    "sglang/srt/model_loader/__init__.py": "",
    "sglang/srt/model_loader/utils.py": """\
def get_model_architecture(model_config):
    from sglang.srt.models.registry import ModelRegistry
    return ModelRegistry.resolve_model_cls([*model_config.hf_config.architectures, "TransformersForCausalLM"])
""",
    "sglang/srt/model_loader/loader.py": """\
from sglang.srt.model_loader.utils import get_model_architecture
def load(model_config):
    cls, name = get_model_architecture(model_config)
    return f"{cls.__module__}.{cls.__name__}"
""",
    "sglang/srt/models/__init__.py": "",
    "sglang/srt/models/base.py": """\
class BaseForCausalLM: pass
class TransformersForCausalLM: pass
EntryClass = [BaseForCausalLM, TransformersForCausalLM]
""",
    "sglang/srt/models/registry.py": """\
import importlib, logging, os, pkgutil
def classes(package):
    found = {}
    for _, name, _ in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        try:
            entry = getattr(importlib.import_module(name), "EntryClass", [])
        except Exception as error:
            logging.warning("Ignored: %s", error)
            continue
        found.update((cls.__name__, cls) for cls in (entry if isinstance(entry, list) else [entry]))
    return found
class Registry:
    def __init__(self):
        self.models = {}
    def register(self, package, overwrite=False):
        for name, cls in classes(package).items():
            if name in self.models and not overwrite:
                raise ValueError(f"{name} already registered")
            self.models[name] = cls
    def get_supported_archs(self):
        return self.models.keys()
    def resolve_model_cls(self, architectures):
        return next((self.models[name], name) for name in architectures if name in self.models)
ModelRegistry = Registry()
ModelRegistry.register("sglang.srt.models")
if external := os.environ.get("SGLANG_EXTERNAL_MODEL_PACKAGE"):
    ModelRegistry.register(external, overwrite=True)
""",
    "sglang/srt/managers/__init__.py": "",
    "sglang/srt/managers/multimodal_processor.py": """\
import importlib, pkgutil
PROCESSOR_MAPPING = {}
def import_processors(package_name, overwrite=False):
    package = importlib.import_module(package_name)
    for _, name, _ in pkgutil.iter_modules(package.__path__, package_name + "."):
        processor = importlib.import_module(name).Processor
        PROCESSOR_MAPPING.update((model, processor) for model in processor.models)
""",
    "sglang/srt/managers/tokenizer_manager.py": """\
from sglang.srt.managers.multimodal_processor import PROCESSOR_MAPPING, import_processors
def start():
    import_processors("sglang.srt.multimodal.processors")
    for model, processor in PROCESSOR_MAPPING.items():
        print(model.__name__, processor.__module__)
""",
    "sglang/srt/multimodal/__init__.py": "",
    "sglang/srt/multimodal/processors/__init__.py": "",
    "sglang/srt/multimodal/processors/base.py": """\
from sglang.srt.models.base import BaseForCausalLM
class Processor: models = (BaseForCausalLM,)
""",
    "sglang/srt/plugins/__init__.py": """\
import logging, os
from importlib.metadata import entry_points
def load_plugins():
    chosen = {word.strip() for word in os.environ.get("SGLANG_PLUGINS", "").split(",") if word.strip()}
    for point in sorted(entry_points(group="sglang.srt.plugins"), key=lambda point: point.name):
        if chosen and point.name not in chosen:
            continue
        try:
            point.load()()
        except Exception:
            logging.exception("Failed: %s", point.name)
""",
    "sglang/launch_server.py": """\
import sys
def serve(name):
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader.loader import load
    from sglang.srt.utils.hf_transformers_utils import get_config
    model_type = {"ExtForCausalLM": "ext", "TeamExtForCausalLM": "team_ext"}.get(name, "llama")
    get_config(model_type)  # as some releases do before they make a ModelConfig
    return "came up with " + load(ModelConfig(model_type, name))
if __name__ == "__main__":
    try:
        from sglang.srt.plugins import load_plugins
    except ImportError:
        pass
    else:
        load_plugins()
    if sys.argv[1] == "--help":
        sys.exit(print("usage: launch_server"))
    print(serve(sys.argv[1]))
""",
    "sglang/srt/ray/__init__.py": "",
    # As Ray's own do, its actors start as new Pythons, which import the class by its name and call it.
    "sglang/srt/ray/engine.py": """\
import os, pickle, subprocess, sys
from sglang.srt.ray.scheduler_actor import SchedulerActor
class Engine:
    def _launch_subprocesses(self):
        words = [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)().run()"]
        done = subprocess.run(words, input=pickle.dumps(SchedulerActor), stdout=subprocess.PIPE, check=True)
        return done.stdout.decode()
class RayEngine(Engine):
    def start(self):
        return self._launch_subprocesses()
""",
    "sglang/srt/ray/scheduler_actor.py": """\
import os
class SchedulerActor:
    def run(self):
        from sglang.launch_server import serve
        print(serve(os.environ["MODEL"]))
""",
    # Programs that serve nothing, and still import what the plugin attaches to.
    "sglang/check_env.py": """\
import sglang.srt.configs.model_config, sglang.srt.managers.tokenizer_manager, sglang.srt.model_loader.loader
import sglang.srt.models.registry
print("checked")
""",
    "sglang-1.0.dist-info/METADATA": "Metadata-Version: 2.4\nName: sglang\nVersion: 1.0\n",
    "transformers.py": """\
class LlamaConfig:
    model_type = "llama"
    def __init__(self, architecture):
        self.architectures = [architecture]
class PretrainedConfig:
    @staticmethod
    def get_config_dict(path, revision=None):
        if path == "nowhere":
            raise OSError(path)
        return {"architectures": [path]}, {}
CONFIG_MAPPING = {"llama": LlamaConfig}
class AutoConfig:
    @staticmethod
    def register(model_type, config, exist_ok=False):
        if model_type in CONFIG_MAPPING and not exist_ok:
            raise ValueError(model_type)
        CONFIG_MAPPING[model_type] = config
""",
}
