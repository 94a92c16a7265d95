"""What a row says to the server, on real ones: parsers, a chat template and arguments, and what the user says instead.

The model that is served says a text that its weights spell out: each of its pieces is a token, after which the next one
is certain. The last token of the prompt is what the answer begins after, so there is one for each template.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from overlay_tools.engines.loopback import open_directly, openai_client
from overlay_tools.engines.server import Server
from packaging.version import Version
from reference.cases import make_checkpoint
from reference.checkpoints import VOCAB_SIZE, change_tensors
from reference.greedy import encode
from tokenizers import AddedToken, Tokenizer

from engine.harness import OURS, PACKAGE, RELEASE, flush, post, run_first, server

NAME = "llama-logit-shaping"
ARCHITECTURE = OURS[NAME].architecture
QUESTION = "What is the weather in Ulm?"
REASONS, SAYS, CALL = "Someone asks about rain.", "I look.", {"name": "weather", "arguments": {"city": "Ulm"}}
TOOL = {
    "type": "function",
    "function": {
        "name": CALL["name"],
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

# What the overlay has of its own: parsers, each with marks of its own, and a template.
PARTS = """
from sglang.srt.function_call.qwen25_detector import Qwen25Detector
from sglang.srt.parser.conversation import Conversation, SeparatorStyle
from sglang.srt.parser.reasoning_parser import Qwen3Detector

class Pondering(Qwen3Detector):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.think_start_token, self.think_end_token = "<ponder>", "</ponder>"

class Calling(Qwen25Detector):
    def __init__(self):
        super().__init__()
        self.bot_token, self.eot_token = "<call>\\n", "\\n</call>"

def template():
    return Conversation(
        name="weather-talk",
        system_message="You know the weather.",
        roles=("USER", "ASSISTANT"),
        sep_style=SeparatorStyle.ADD_COLON_SINGLE,
        sep="\\n",
    )
"""
CHANGE_ROW = """
def say(module):
    import dataclasses
    module.ROW = dataclasses.replace(module.ROW, **{row!r})

CHANGES[{module!r}] = say
"""
# What upstream adds to the prompt of a template like that, for all but three parsers of its own.
ADDED = "<think>" if Version("0.5.12") > RELEASE else ""
THEIR_TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} {% endfor %}assistant>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """A server, and what is to become of a question to it.

    - `row`: what the model's row says; `user`: what the server's user does.
    - `marks`: what the model puts around its reasoning and its call, which the parsers that hold take away.
    - `prompt`: the question as the template that holds writes it.
    - `holds`: arguments as the server has them.
    """

    row: Mapping[str, Any]
    user: Mapping[str, Any]
    marks: tuple[str, str, str, str]
    prompt: str
    holds: Mapping[str, Any]


ROW: dict[str, Any] = {
    "chat_template": "row_parts:template",
    "arguments": {
        "served_model_name": "weather",
        "enable_cache_report": True,
        "chunked_prefill_size": 48,
        "max_running_requests": 3,  # every server here is told 8
    },
}
TALKS = {
    "the row says": Talk(
        row={**ROW, "reasoning_parser": "row_parts:Pondering", "tool_call_parser": "qwen"},
        user={},
        marks=("<ponder>", "</ponder>", "<tool_call>\n", "\n</tool_call>"),
        prompt=f"You know the weather.\nUSER: {QUESTION}\nASSISTANT:" + ADDED,
        holds={
            "reasoning_parser": ARCHITECTURE.lower(),
            "tool_call_parser": "qwen",
            "chat_template": "weather-talk",
            "served_model_name": "weather",
            "enable_cache_report": True,
            "chunked_prefill_size": 48,
            "max_running_requests": 8,
        },
    ),
    "the user says": Talk(
        row={**ROW, "reasoning_parser": "deepseek-r1", "tool_call_parser": "row_parts:Calling"},
        user={
            "reasoning_parser": "qwen3",
            "chat_template": "theirs.jinja",
            "served_model_name": "theirs",
            "chunked_prefill_size": 32,
        },
        marks=("<think>", "</think>", "<call>\n", "\n</call>"),
        prompt=f"[user] {QUESTION} assistant>",
        holds={
            "reasoning_parser": "qwen3",
            "tool_call_parser": ARCHITECTURE.lower(),
            "chat_template": "theirs.jinja",
            "served_model_name": "theirs",
            "enable_cache_report": True,
            "chunked_prefill_size": 32,
            "max_running_requests": 8,
        },
    ),
}


def write_checkpoint(talk: Talk, folder: Path) -> None:
    """Write a model that answers the prompt of a talk with a text, and has no chat template of its own."""
    think, thought, begin, end = talk.marks
    words = [word + " " for word in REASONS.split()]
    pieces = [think, *words, thought, SAYS, begin, *json.dumps(CALL).partition(", "), end]
    assert len({*pieces}) == len(pieces)
    assert not any(piece in talk.prompt for piece in pieces)
    make_checkpoint(NAME, folder, {"vocab_size": VOCAB_SIZE + len(pieces)})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    # From the prompt's last token over all pieces to the end of the text.
    chain = [encode(talk.prompt)[-1], *range(VOCAB_SIZE, VOCAB_SIZE + len(pieces)), 0]

    def spell(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Let layers add nothing, and the head know each token from the one before it."""
        silent = {
            k: torch.zeros_like(v) for k, v in tensors.items() if k.endswith(("o_proj.weight", "down_proj.weight"))
        }
        embeddings = torch.zeros_like(tensors["model.embed_tokens.weight"])
        head = torch.zeros_like(tensors["lm_head.weight"])
        for place, (token, following) in enumerate(itertools.pairwise(chain)):
            embeddings[token, place] = head[following, place] = 1.0
        return {
            **tensors,
            **silent,
            "model.norm.weight": torch.ones_like(tensors["model.norm.weight"]),
            "model.embed_tokens.weight": embeddings,
            "lm_head.weight": head,
        }

    change_tensors(folder, spell)


@pytest.fixture(scope="module", params=TALKS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Talk]]:
    """Run the server of a talk."""
    talk = TALKS[request.param]
    folder = tmp_path_factory.mktemp("row")
    write_checkpoint(talk, folder / "model")
    (folder / "row_parts.py").write_text(PARTS, encoding="utf-8")
    (folder / "theirs.jinja").write_text(THEIR_TEMPLATE, encoding="utf-8")
    row = f"{PACKAGE}.overlay_models.{NAME.replace('-', '_')}"
    environment = run_first(CHANGE_ROW.format(row=talk.row, module=row), folder)
    user = {**talk.user}
    if "chat_template" in user:
        user["chat_template"] = folder / user["chat_template"]
    with server(folder / "model", folder / "log", user, environment) as running:
        yield running, talk


def asked(talk: Talk) -> dict[str, Any]:
    """Give what a client asks."""
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": talk.holds["served_model_name"], "messages": messages, "tools": [TOOL], "temperature": 0}


def test_the_answer_is_parsed(served: tuple[Server, Talk]) -> None:
    running, talk = served
    [choice] = openai_client(running.url, timeout=120).chat.completions.create(**asked(talk)).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.reasoning_content.strip() == REASONS  # sglang's own field
    assert (choice.message.content or "").strip() == SAYS
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert {"name": call.function.name, "arguments": json.loads(call.function.arguments)} == CALL


def test_the_answer_is_parsed_while_it_comes(served: tuple[Server, Talk]) -> None:
    running, talk = served
    parts: dict[str, list[str]] = {"reasoning_content": [], "content": [], "name": [], "arguments": []}
    for chunk in openai_client(running.url, timeout=120).chat.completions.create(**asked(talk), stream=True):
        for choice in chunk.choices:
            for key in ("reasoning_content", "content"):
                parts[key].append(getattr(choice.delta, key, None) or "")
            for call in choice.delta.tool_calls or []:
                parts["name"].append(call.function.name or "")
                parts["arguments"].append(call.function.arguments or "")
    said = {key: "".join(pieces).strip() for key, pieces in parts.items()}
    assert said["reasoning_content"] == REASONS
    assert said["content"] in (SAYS, "")  # upstream's parser drops what comes in one piece with the mark of a call
    assert {"name": said["name"], "arguments": json.loads(said["arguments"])} == CALL


def test_the_prompt_is_what_the_template_makes(served: tuple[Server, Talk]) -> None:
    running, talk = served
    prompt = encode(talk.prompt)
    flush(running)
    usage = openai_client(running.url, timeout=120).chat.completions.create(**asked(talk)).usage
    assert usage is not None
    assert usage.prompt_tokens == len(prompt)
    # What is in the cache is the prompt that the server made: one that has the same tokens is all there.
    again = post(running.url, "/generate", input_ids=prompt, sampling_params={"max_new_tokens": 1})
    assert again["meta_info"]["cached_tokens"] == len(prompt) - 1


def test_arguments_are_the_rows_unless_the_user_says_otherwise(served: tuple[Server, Talk]) -> None:
    running, talk = served
    with open_directly(f"{running.url}/get_server_info", timeout=60) as response:
        info = json.load(response)
    found = {name: info[name] for name in talk.holds}
    assert found | {"chat_template": Path(found["chat_template"]).name} == talk.holds
    client = openai_client(running.url, timeout=120)
    assert [model.id for model in client.models.list()] == [talk.holds["served_model_name"]]
    usage = client.chat.completions.create(**asked(talk)).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None  # as `enable_cache_report` has it
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    # Each default that was taken is in the log, and no other.
    log = running.log.read_text(encoding="utf-8")
    taken = {name for name in talk.holds if f"{ARCHITECTURE}: {name} is " in log}
    assert taken == {name for name in talk.holds if name not in talk.user and name != "max_running_requests"}
