"""Faults of models that `new` has written, each as a change of one of their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BY_POOL = "test_requests_at_once_do_not_mix[{}, small pool]"  # the test that takes least: one server, eight requests
BY_DRAFTS = "test_drafts_are_those_of_the_reference_model[{}, drafts, 1 steps]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """A fault: a text of a model's file, and what takes its place.

    - `file`: as `new` calls it, with {} for the model's name.
    - `test`: the one that is asked first, of test_servers.py.
    """

    old: str
    new: str
    file: str = "overlay/sglang/srt/models/{}.py"
    test: str = BY_POOL

    def apply(self, checkout: Path, name: str) -> tuple[Path, str]:
        """Break the file, and return it with what it held. Raises ValueError if the fault changes nothing there."""
        path = checkout / self.file.format(name)
        whole = path.read_text(encoding="utf-8")
        if whole.count(self.old) != 1 or self.old == self.new:
            raise ValueError(f"{path} does not have once, to be changed: {self.old!r}")
        path.write_text(whole.replace(self.old, self.new), encoding="utf-8")
        return path, whole


def _after(line: str, code: str, **options: str) -> Mutation:
    """Put code after a line, indented as that is."""
    indent = line[: len(line) - len(line.lstrip())]
    added = "".join(f"{indent}{each}\n" for each in code.strip("\n").split("\n"))
    return Mutation(old=f"{line}\n", new=f"{line}\n{added}", **options)


def _built(code: str) -> Mutation:
    """Change what the constructor of a model of the kind `text` has built."""
    return _after("        super().__init__(config, quant_config=quant_config, prefix=prefix)", code)


def _given(change: str) -> Mutation:
    """Change the tensors, `name` and `tensor`, that upstream's loader is given."""
    return Mutation(old="upstreams(fitting, ", new=f"upstreams(({change}), ")


TEXT = {
    "a norm's epsilon": _built("self.model.layers[0].input_layernorm.variance_epsilon = 1e-2"),
    "the rotary base": _built("""
from sglang.srt.layers.rotary_embedding import get_rope
for layer in self.model.layers:
    layer.self_attn.rotary_emb = get_rope(32, rotary_dim=32, max_position=4096, base=1000000)
"""),
    "a layer's MLP adds nothing": _built("""
mlp = self.model.layers[1].mlp
mlp.forward = lambda x, *args, whole=mlp.forward, **kwargs: 0 * whole(x, *args, **kwargs)
"""),
    "an activation": _built("""
from sglang.srt.layers.activation import GeluAndMul
self.model.layers[0].mlp.act_fn = GeluAndMul()
"""),
    "two layers have one cache": _built("self.model.layers[2].self_attn.attn.layer_id = 1"),
    "a logit transform too much": _built("self.logits_processor.logit_scale = 0.9"),
    "heads swapped": _given(
        "(name, tensor.roll(32, 0) if '.1.self_attn.q_proj' in name else tensor) for name, tensor in fitting"
    ),
    "a tensor that is not loaded": _given(
        "(name, tensor) for name, tensor in fitting if name != 'model.layers.0.input_layernorm.weight'"
    ),
    "one tensor loaded as another": _given(
        "(name.replace('.2.mlp.up_', '.2.mlp.gate_') if '.2.mlp.up_' in name else name.replace('.2.mlp.gate_',"
        " '.2.mlp.up_'), tensor) for name, tensor in fitting"
    ),
}


def _extended(code: str) -> Mutation:
    """Do something more, or first, where a model of the kind `derived` and its draft change what upstream has built."""
    return Mutation(old="        super().extend(config)\n", new=code.strip("\n") + "\n")


_SERVED = '    """The model that is served."""'
_DRAFT = '    """Qwen3-Next-Ext\'s draft with what the model changes."""'
_LOAD = """
def load_weights(self, weights, *args, **kwargs):
    return super().load_weights((({change}) for name, tensor in weights), *args, **kwargs)
"""


def _loaded(change: str) -> Mutation:
    """Change the tensors that the served model loads."""
    return _after(_SERVED, _LOAD.format(change=change))


def _drafted(code: str) -> Mutation:
    """Change the draft, which changes no answer."""
    return _after(_DRAFT, code, file="overlay/sglang/srt/models/{}_mtp.py", test=BY_DRAFTS)


DERIVED = {
    "an own layer has rotary positions": _after(
        _SERVED,
        """
def extend(self, config):
    super().extend(config)
    self.model.layers[5].rotary_emb = self.model.layers[2].rotary_emb
""",
    ),
    "an own layer's gate": _loaded("name, tensor.roll(32, 0) if '.5.self_attn.q_proj' in name else tensor"),
    "the router's groups": _extended("""
        import copy
        config = copy.copy(config)
        config.topk_group = 1
        super().extend(config)
"""),
    "the router's bias": _loaded("name, 0 * tensor if 'e_score_correction_bias' in name else tensor"),
    "the shared expert's gate": _loaded("name, 0 * tensor if '.2.mlp.shared_expert_gate' in name else tensor"),
    "the adapter's sign": _after(
        "        super().extend(config)",
        """
adapt = self.logits_processor.adapt
self.logits_processor.adapt = lambda hidden: 2 * hidden - adapt(hidden)
""",
    ),
    "the soft cap": _extended("""
        import copy
        config = copy.copy(config)
        config.logit_softcap = 2 * config.logit_softcap
        super().extend(config)
"""),
    "a norm that is not loaded": _after(
        _SERVED,
        """
def load_weights(self, weights):
    loaded = super().load_weights(weights)
    self.model.layers[3].post_attention_layernorm.weight.data.zero_()
    return loaded
""",
    ),
    "a convolution": _loaded("name, tensor.roll(1, 0) if '.0.linear_attn.conv1d' in name else tensor"),
    "the draft's inputs swapped": _drafted(
        _LOAD.format(change="name, tensor.roll(128, 1) if name == 'mtp.fc.weight' else tensor")
    ),
    "the draft's token is another": _drafted("""
def forward(self, input_ids, *args, **kwargs):
    return super().forward(input_ids.roll(1), *args, **kwargs)
"""),
    "a draft's norm is not loaded": _drafted(
        _LOAD.format(change="name, 0 * tensor if name == 'mtp.pre_fc_norm_hidden.weight' else tensor")
    ),
}
