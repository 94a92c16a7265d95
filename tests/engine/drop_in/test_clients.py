"""A client without sglang, with versions of transformers that checkpoints of the overlay are to work with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from reference.cases import cases, read_config

from engine.drop_in.test_install import UV, run

VERSIONS = ("4.57.6", "5.6.0", "5.24.0")
CLIENT = """
import json, sys
from transformers import AutoConfig, AutoTokenizer
found = []
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    try:
        AutoConfig.from_pretrained(folder)
        config = "read"
    except ValueError as error:
        config = str(error)
    found.append([tokenizer.decode(tokenizer.encode("Hi")), text, config])
print(json.dumps(found))
"""


@pytest.fixture(params=VERSIONS)
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Make an environment with nothing but that version of transformers and what templates need."""
    run(sys.executable, "-m", "uv", "venv", "--no-project", "--python", sys.executable, tmp_path)
    python = tmp_path / "bin" / "python"
    run(*UV, "install", "--quiet", "--python", python, f"transformers=={request.param}", "jinja2")
    return python


# Those whose configuration transformers cannot know, each of a folder; other models may take the weights there.
OWN = [
    case
    for case in cases().values()
    if case.ours and case.trained is not None and read_config(case.trained)["model_type"] == case.config["model_type"]
]


def test_a_client_loads_the_tokenizer_and_is_told_that_the_model_is_ours(client: Path) -> None:
    folders = [case.trained for case in OWN if case.trained is not None]
    words: list[str | Path] = [client, "-c", CLIENT, *folders]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for (decoded, text, config), case in zip(json.loads(done.stdout), OWN, strict=True):
        assert decoded == "Hi"
        assert text == "<|im_start|>user\nHi<|im_end|>\n"
        assert (
            f"has model type `{case.config['model_type']}` but Transformers does not recognize this architecture"
            in config
        )
