"""Ask a reference model, in Transformers, about a checkpoint. It runs by itself, in an engine's environment.

    python reference_script.py JOB

JOB is a file of JSON that says `what` is asked: describe, judge, embed or locate. What is printed is a line of JSON;
`overlay_tools.proving.reference` says what is in both. Bars of tqdm's on standard error say how far it is.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

import torch
import transformers
from looking import (  # type: ignore[import-not-found]  # it is beside this one
    ReferenceProblem,
    Shown,
    draw,
    first_line,
    open_picture,
    places_of,
    read_tokenizer,
    show_to_case,
    show_to_transformers,
    template_of,
)
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

sys.path.pop()  # modules there have the names of others

Job = Mapping[str, Any]
Compute = Callable[[torch.Tensor], torch.Tensor]  # of tokens [1, length]: logits of each, or one vector of all
TIED_EXPERTS = 2e-6  # between the scores of two experts: rounding decides which is taken
MOST_PROBLEMS = 8
_LAST = ("logits", "vector")  # what a pass gives in the end
# By the first token, the mean, or with a sigmoid.
_POOLED_OTHERWISE = tuple(f"transformers.{name}" for name in ("Bert", "Roberta", "XLMRoberta", "Gemma3TextModel"))
_TOWERS = ("visual", "vision_tower")  # what makes tokens of pictures


def main() -> None:
    """Do what the job says, and print its result or the problem that a person can mend."""
    transformers.logging.set_verbosity_error()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path += job["paths"]
    printed, sys.stdout = sys.stdout, sys.stderr  # what a model's own code prints is no result
    try:
        result = {"describe": describe, "judge": judge, "embed": embed, "locate": locate}[job["what"]](job)
    except ReferenceProblem as problem:
        result = {"problem": str(problem)}
    print(json.dumps(result), file=printed)


def describe(job: Job) -> dict[str, Any]:
    """Name the reference model and what it is in, say whether it gives vectors, and turn prompts into tokens.

    The tokens of `questions`, each a `prompt` and its `images`, are whole; those of `text` are cut into one prompt for
    each of `lengths`. Where there are none of the first, a model that takes pictures is shown some that are drawn.
    """
    folder = Path(job["checkpoint"])
    vectors = find_vectors(job)
    name, _, _ = vectors or find(job)
    if vectors and name.startswith(_POOLED_OTHERWISE):
        raise ReferenceProblem(f"{name} is that of an encoder, and each release of the engine pools it in its own way")
    tokenizer = _tokenizer(folder, job["trusted"])
    questions = [(question["prompt"], question["images"]) for question in job["questions"]]
    why_not = "vectors of pictures are not compared" if vectors else _why_no_pictures(job, tokenizer)
    if any(images for _, images in questions) and why_not:
        raise ReferenceProblem(f"{name} cannot be shown pictures: {why_not}")
    prompts, unseen = _prompts(job, questions), ""
    if "vision_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        unseen = why_not or ("no prompt has one" if questions else "")
        if not questions and not unseen:
            try:
                prompts = _prompts(job, draw(Path(job["folder"])))
            except Exception as error:  # a processor of any kind raises any kind; a person has asked for no picture
                unseen = first_line(error)
    tokens = list(tokenizer(job["text"], add_special_tokens=False)["input_ids"]) if job["text"] else []
    step = len(tokens) // (len(job["lengths"]) + 1)
    prompts += [{"tokens": tokens[i * step : i * step + length]} for i, length in enumerate(job["lengths"]) if step]
    return {
        "reference": name,
        "vectors": vectors is not None,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "prompts": [prompt for prompt in prompts if prompt["tokens"]],
        "unseen": "" if any("images" in prompt for prompt in prompts) else unseen,
    }


@functools.cache
def _tokenizer(folder: Path, trusted: bool) -> Any:  # noqa: ANN401
    return _try(read_tokenizer, folder, trusted, what=f"{folder} has no tokenizer to read")


def _prompts(job: Job, questions: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, Any]]:
    """Turn questions into tokens, as `reference.Prompt` has them."""
    folder, _, architecture = _read(job)
    pictures = any(images for _, images in questions)
    # A model of the overlay says itself how many tokens a picture becomes.
    model = find(job)[1]() if pictures and not job["reference"] and find_case(architecture) else None
    prompts: list[dict[str, Any]] = []
    for prompt, images in questions:
        if not images:
            prompts.append({"tokens": list(_tokenizer(folder, job["trusted"])(prompt)["input_ids"])})
            continue
        shown = show(job, model, prompt, images)
        places = places_of(folder, shown.tokens)
        prompts.append(
            {"tokens": shown.tokens, "sent": shown.sent, "text": prompt, "images": [*images], "places": places}
        )
    return prompts


def show(job: Job, model: Any, prompt: str, images: Sequence[str]) -> Shown:  # noqa: ANN401
    """Put a prompt with pictures, whose paths are `images`, to the reference model.

    Of a model of Transformers, the tokens can be had without it: `model` may be None.
    """
    folder, _, architecture = _read(job)
    tokenizer = _tokenizer(folder, job["trusted"])
    pictures = [open_picture(Path(path)) for path in images]
    if not job["reference"] and (ours := find_case(architecture)):
        files = [Path(path).read_bytes() for path in images]
        return show_to_case(ours[1], model, tokenizer, prompt, files)
    return show_to_transformers(model, folder, job["trusted"], tokenizer, prompt, pictures)


def _why_no_pictures(job: Job, tokenizer: Any) -> str:  # noqa: ANN401
    """Say why the reference model cannot be shown pictures; nothing if it can."""
    folder, _, architecture = _read(job)
    try:
        if job["reference"]:
            kind = _named(job["reference"])
            if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
                return "its class is not one of Transformers' kind"
        elif ours := find_case(architecture):
            return "" if ours[1].pictures and tokenizer.chat_template else "it takes none, or has no chat template"
        template_of(folder, job["trusted"], tokenizer)
    except ReferenceProblem as problem:
        return str(problem)
    return ""


def find(job: Job) -> tuple[str, Callable[[], Any], Callable[[Any], Compute]]:
    """Find the reference model of a checkpoint: its name, what loads it, and what gives its logits of tokens."""
    folder, dtype, architecture = _read(job)
    if job["reference"]:
        return job["reference"], _loader(job["reference"], folder, dtype), _logits_of
    if ours := find_case(architecture):
        name, case = ours
        if case.vector is not None:
            raise ReferenceProblem(f"{architecture} gives a vector for each text, and generates none")
        return name, lambda: case.load(folder, dtype), lambda model: case.ask(model, [])[1]
    found = getattr(transformers, architecture, None) if architecture else None
    if found is None:
        raise ReferenceProblem(
            f"{folder / 'config.json'}: transformers {transformers.__version__} has no model {architecture or 'there'}"
        )
    if not found.can_generate():
        raise ReferenceProblem(f"{architecture} generates no text")
    return f"transformers.{architecture}", lambda: _load(found, folder, dtype), _logits_of


def find_vectors(job: Job) -> tuple[str, Callable[[], Any], Callable[[Any], Compute]] | None:
    """Find the reference model of a checkpoint that gives a vector for each text, None if that generates text.

    A sequence classification gives its scores. With `--is-embedding`, in the job as `embedding`, a model that could
    generate gives its last hidden state of the last token, of length 1, as upstream pools it.
    """
    folder, dtype, architecture = _read(job)
    if job["reference"]:
        if not hasattr(_named(job["reference"]), "vector"):
            return None
        loader = _loader(job["reference"], folder, dtype)
        return job["reference"], loader, lambda model: lambda tokens: model.vector(tokens[0].tolist())
    if ours := find_case(architecture):
        name, case = ours
        if case.vector is None:
            return None
        return (
            name,
            lambda: case.load(folder, dtype),
            lambda model: lambda tokens: case.vector(model, tokens[0].tolist()),
        )
    found = getattr(transformers, architecture, None) if architecture else None
    if found is None:
        return None
    if architecture.endswith("ForSequenceClassification"):
        name, compute_of = "scores", lambda model: lambda tokens: model(tokens).logits[0]
    elif job["embedding"]:
        name, compute_of = (
            "last hidden state",
            lambda model: (
                lambda tokens: nn.functional.normalize(
                    model.base_model(tokens, use_cache=False).last_hidden_state[0, -1].float(), dim=-1
                )
            ),
        )
    else:
        return None
    return f"transformers.{architecture}, its {name}", lambda: _load(found, folder, dtype), compute_of


def find_case(architecture: str) -> tuple[str, Any] | None:
    """Give the case of a model of the overlay, in words and itself."""
    for name, case in _cases().items():
        if case.ours and case.architecture == architecture:
            return f"the reference model of tests/models/{name.replace('-', '_')}", case
    return None


def _read(job: Job) -> tuple[Path, torch.dtype, str]:
    """Give a job's folder and dtype, and the architecture of its config.json."""
    folder = Path(job["checkpoint"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return folder, getattr(torch, job.get("dtype", "float32")), (config.get("architectures") or [""])[0]


def _loader(name: str, folder: Path, dtype: torch.dtype) -> Callable[[], Any]:
    """Make what loads a model that a person has named."""
    model = _named(name)
    if not hasattr(model, "from_pretrained"):
        return lambda: model.load(folder).to(dtype)
    return lambda: _load(model, folder, dtype)


def _named(name: str) -> Any:  # noqa: ANN401  # a class of the user's
    module, _, kind = name.partition(":")
    try:
        return getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise ReferenceProblem(f"--reference {name}: {error}") from None


def _cases() -> Mapping[str, Any]:
    try:
        cases: Mapping[str, Any] = importlib.import_module("reference.cases").cases()
    except ModuleNotFoundError as error:
        if error.name != "reference":
            raise
        return {}
    return cases


def _load(kind: Any, folder: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401  # a model of Transformers
    own = kind.from_pretrained.__func__ is not transformers.PreTrainedModel.from_pretrained.__func__
    # One of its own says itself what does not fit; Transformers' names no tensor where it raises for its shape.
    told = {} if own else {"output_loading_info": True, "ignore_mismatched_sizes": True}
    given = {"dtype": dtype, "attn_implementation": "eager", **told}
    loaded = _try(kind.from_pretrained, folder, **given, what=f"{kind.__name__} does not load {folder}")
    if own:
        return loaded
    model, found = loaded
    problems = [f"{name} is not in the checkpoint" for name in sorted(found["missing_keys"])]
    problems += [f"{name[0]} has another shape" for name in sorted(found["mismatched_keys"])]
    if problems:
        more = f", and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise ReferenceProblem(f"{folder}: {'; '.join(problems[:MOST_PROBLEMS])}{more} ({kind.__name__})")
    return model


def _try(call: Callable[..., Any], *args: object, what: str, **kwargs: object) -> Any:  # noqa: ANN401
    try:
        return call(*args, **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ReferenceProblem(f"{what}: {' '.join(lines[:3]) or type(error).__name__}") from None


def _logits_of(model: Any) -> Compute:  # noqa: ANN401
    if callable(getattr(model, "logits", None)):
        return lambda tokens: model.logits(tokens, [])
    return lambda tokens: model(tokens, use_cache=False).logits


def load(job: Job) -> tuple[Any, Compute]:
    """Load the reference model in the job's dtype on its device; give it, and what computes with it."""
    torch.backends.cudnn.allow_tf32 = False
    _, loaded, compute_of = find_vectors(job) or find(job)
    model = loaded().eval().to(job["device"])
    if job["dtype"] == "float32":
        # It is the truth then: the kernels of flash-linear-attention, if transformers finds them, round to tf32.
        for module in model.modules():
            plain = getattr(sys.modules[type(module).__module__], "torch_chunk_gated_delta_rule", None)
            if plain is not None and hasattr(module, "chunk_gated_delta_rule"):
                module.chunk_gated_delta_rule = plain
    return model, compute_of(model)


def judge(job: Job) -> dict[str, Any]:
    """Say of each run, tokens with those that were likeliest to the engine at each place, what the model says of them.

    Where its prompt has `images`, a run has that as `text`.

    `logprobs`: of each token but the first; `best`: the model's own choice there, `gaps`: how much likelier it is, in
    nats; `top`: the logprobs of the engine's likeliest; `undecided`: from which place on rounding has chosen an
    expert, None for nowhere.
    """
    model, logits_of = load(job)
    # Several ways of computing mostly give one and the same answer, of which all is computed once.
    alike: dict[str, list[int]] = {}
    for number, run in enumerate(job["runs"]):
        alike.setdefault(json.dumps([run["tokens"], run["images"]]), []).append(number)
    verdicts: dict[int, dict[str, Any]] = {}
    with torch.no_grad(), _watched_routers(model) as undecided:
        for numbers in tqdm(alike.values()):
            undecided.clear()
            run = job["runs"][numbers[0]]
            tokens = torch.tensor([run["tokens"]], device=job["device"])
            compute = show(job, model, run["text"], run["images"]).logits if run["images"] else logits_of
            logprobs = compute(tokens)[0, :-1].float().log_softmax(dim=-1).cpu()
            given = logprobs.gather(-1, torch.tensor(run["tokens"][1:]).view(-1, 1))[:, 0]
            best = logprobs.max(dim=-1)
            for number in numbers:
                top = zip(logprobs, job["runs"][number]["top"], strict=True)
                verdicts[number] = {
                    "logprobs": given.tolist(),
                    "best": best.indices.tolist(),
                    "gaps": (best.values - given).tolist(),
                    "top": [row[torch.tensor(ids)].tolist() if ids else [] for row, ids in top],
                    "undecided": min(undecided, default=None),
                }
    return {"runs": [verdicts[number] for number in range(len(job["runs"]))]}


def embed(job: Job) -> dict[str, Any]:
    """Give the vector of each of the job's prompts."""
    model, vector_of = load(job)
    with torch.no_grad(), _watched_routers(model) as undecided:
        vectors = []
        for prompt in tqdm(job["prompts"]):
            undecided.clear()
            vectors.append(vector_of(torch.tensor([prompt], device=job["device"])).float().flatten().tolist())
            if undecided:
                vectors[-1] = None  # rounding has chosen an expert
    return {"vectors": vectors}


@contextmanager
def _watched_routers(model: nn.Module) -> Iterator[list[int]]:
    """Note at which places two experts' scores are tied, in routers that give the scores of all of them."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    experts = next((n for n in (getattr(text, k, None) for k in ("num_experts", "num_local_experts")) if n), None)
    chosen = getattr(text, "num_experts_per_tok", None) or 0
    undecided: list[int] = []
    routers = [module for module in model.modules() if hasattr(module, "margin")]

    def before(*_: object) -> None:
        for router in routers:
            router.margin = torch.inf

    def after(*_: object) -> None:
        undecided.extend(0 for router in routers if router.margin < TIED_EXPERTS)

    def note(_: nn.Module, __: object, output: Any) -> None:  # noqa: ANN401
        scores = (output[0] if isinstance(output, tuple) else output).float()
        if scores.shape[-1] != experts:
            return
        scores = scores.flatten(0, -2)
        if (scores >= 0).all():
            scores = scores.log()
        best = scores.topk(chosen + 1, dim=-1).values
        near = best[:, -2] - best[:, -1] < TIED_EXPERTS
        undecided.extend(near.nonzero()[:1, 0].tolist())

    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    if not routers and experts and 0 < chosen < experts:
        names = ("gate", "router")
        found = [module for name, module in model.named_modules() if name.rpartition(".")[2] in names]
        handles += [module.register_forward_hook(note) for module in found]
    try:
        yield undecided
    finally:
        for handle in handles:
            handle.remove()


def locate(job: Job) -> dict[str, Any]:
    """Compare what each module of an engine gave for tokens with what the reference model's module of that name gives.

    The engine's are in the files of `captured`, one for each pass, as capture_script.py writes them; their rows are
    those of the last of the `tokens`.
    """
    passes = [torch.load(path) for path in sorted(Path(job["captured"]).glob("*.pt"))]
    exact = _outputs({**job, "dtype": "float32"})
    if "embed_tokens" in exact:  # what an engine embeds at the places of pictures, nothing makes use of
        exact["embed_tokens"][:, job["places"]] = torch.nan
    engine = _join_what_counts(passes, exact)
    rounded = _outputs(job) if job["dtype"] != "float32" else {}
    rows = []
    for name, wanted in exact.items():
        counterpart = _counterpart(name, engine, exact)
        row: dict[str, Any] = {"name": name, "engine": counterpart, "error": None, "own": None}
        if counterpart is not None:
            scaled = name == "embed_tokens"  # some multiply it there, some afterwards
            row["error"] = _error(engine[counterpart], wanted, scaled)
            if name in rounded:
                row["own"] = _error(rounded[name], wanted, scaled)
        rows.append(row)
    return {"rows": rows}


def _outputs(job: Job) -> dict[str, torch.Tensor]:
    """Give what each module of the reference model gives for the job's tokens, in the order in which they finish."""
    model, compute = load(job)
    if job["images"]:
        compute = show(job, model, job["text"], job["images"]).logits
    outputs: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: object, output: Any) -> None:  # noqa: ANN401
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor) and first.is_floating_point():
                outputs.pop(name, None)
                outputs[name] = first.float().cpu().clone()

        return keep

    for full, module in model.named_modules():
        if name := short_name(full):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        last = compute(torch.tensor([job["tokens"]], device=job["device"])).float().cpu()
    outputs.update({"vector": last.flatten()[None]} if last.dim() < 3 else {"logits": last[0, -1:]})
    return outputs


def short_name(full: str) -> str:
    """Name a module as both sides call it: from `layers` on, or by its own name outside; empty for what is neither."""
    parts = full.split(".")
    if parts[-1] in _TOWERS:
        return parts[-1]
    if {*_TOWERS, "vision_model", "audio_tower", "mtp"} & {*parts}:
        return ""
    if "layers" in parts:
        inside = parts[parts.index("layers") :]
        return ".".join(inside) if len(inside) > 1 else ""
    return parts[-1] if parts[-1] in ("embed_tokens", "norm", *_LAST) and len(parts) < 5 else ""


def _join(passes: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Put the rows of several passes one after another; logits, or the vector, are those of the last.

    Where a layer's output is not one tensor, it is what its last part adds to a residual. The norm that comes after the
    layer does that, and gives the sum as its second tensor; some releases hand it on beside the modules until then.
    """
    joined: dict[str, list[torch.Tensor]] = {}
    for one in passes:
        outputs: dict[str, torch.Tensor] = {}
        found = {short_name(full): [tensor.float() for tensor in tensors] for full, tensors in one.items()}
        last = max((int(name.split(".")[1]) for name in found if name.startswith("layers.")), default=0)
        for name, (first, *more) in found.items():
            both = more and more[0].shape == first.shape
            outputs.setdefault(name, first + more[0] if both and name.count(".") == 1 else first)
        for name, (first, *more) in found.items():
            if more and more[0].shape == first.shape and name.rpartition(".")[2] in ("input_layernorm", "norm"):
                before = last if name == "norm" else int(name.split(".")[1]) - 1
                outputs[f"layers.{before}"] = more[0]
        for name, rows in outputs.items():
            joined.setdefault(name, []).append(rows)
    joined.pop("", None)
    # Of some releases, a module gives rows of what is no token, which cannot be put one after another.
    joined = {name: rows for name, rows in joined.items() if len({row.shape[1:] for row in rows}) == 1}
    return {name: rows[-1][-1:] if name in _LAST else torch.cat(rows) for name, rows in joined.items()}


def _join_what_counts(passes: Sequence[Mapping[str, Any]], exact: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Join passes; some releases have computed one more token ahead, whose pass, the last, is left out.

    The embeddings show that: they are those of the tokens, or those of the tokens but one.
    """

    def error(joined: Mapping[str, torch.Tensor]) -> float:
        names = {"embed_tokens"} & joined.keys() & exact.keys()
        return max((_error(joined[name], exact[name], True) or 0.0 for name in names), default=0.0)

    return min((_join(some) for some in (passes, passes[:-1]) if some), key=error)


def _counterpart(name: str, engine: Mapping[str, Any], exact: Mapping[str, Any]) -> str | None:
    """Find the engine's module that does what one of the reference model does: of the same name, or in the same layer.

    Upstream's hybrid layers have what is in `self_attn` elsewhere one level higher.
    """
    if name in engine:
        return name
    parts = name.split(".")
    higher = ".".join([*parts[:2], *parts[3:]])
    return higher if len(parts) > 3 and higher in engine and higher not in exact else None


def _error(got: torch.Tensor, wanted: torch.Tensor, scaled: bool) -> float | None:
    """Give the largest difference of a row, relative to the size of the rows; None where they cannot be compared."""
    width = wanted.shape[-1]
    if got.numel() % width or got.numel() > wanted.numel():
        return None
    got = got.reshape(-1, width)
    wanted = wanted.reshape(-1, width)[-len(got) :]
    told = ~wanted.isnan().all(dim=-1)  # elsewhere there is nothing to compare with
    got, wanted = got[told], wanted[told]
    if scaled:
        wanted = wanted * ((got * wanted).sum() / (wanted * wanted).sum().clamp_min(1e-30))
    size = wanted.norm(dim=-1).mean().clamp_min(1e-30)
    error = ((got - wanted).norm(dim=-1).max() / size).item()
    return error if error == error else float("inf")


if __name__ == "__main__":
    main()
