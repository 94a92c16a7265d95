"""Evaluate models on tasks with lm-eval. It runs by itself, in an engine's environment.

    python evaluate_script.py JOB

JOB is a file of JSON. The first line printed is empty or has the `problems`, where tasks cannot be had. Then each line
read says which model is to answer them: a `server` by its address, or, where there is none, the reference model. It is
answered by the `scores` or the `problem`; `overlay_tools.proving.accuracy.harness` says what is in them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.extend(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["paths"])
sys.path.extend([str(Path(__file__).parents[1]), str(Path(__file__).parent)])

import datasets
import lm_eval
import transformers
from asked_models import (  # type: ignore[import-not-found]  # it is beside this one
    JOB,
    Problem,
    Served,
    check_reference,
    reference_model,
    tokenizer,
)
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from looking import ReferenceProblem, first_line, open_picture  # type: ignore[import-not-found]  # sys.path has it

del sys.path[-2:]  # modules there have the names of others

Documents = Sequence[Mapping[str, Any]]
MORE = 16  # tokens than the longest answer: what is not at its end by then is longer than any


def open_task(task: Mapping[str, Any]) -> list[Any]:
    """Return what lm-eval asks for a task: one task of its own, or all of a group."""
    if task["known"] is None:
        return [own_task(task["name"], task["documents"])]
    manager = manager_of(task["known"])
    if task["known"] not in manager.all_tasks:
        raise Problem(f"lm-eval {lm_eval.__version__} does not know the task {task['name']}, and there is no such file")
    try:
        try:
            found = manager.load([task["known"]])
        except (KeyError, ValueError):  # as of a group that has tasks of other folders
            found = everything().load([task["known"]])
        return list(found["tasks"].values())
    except Exception as error:  # the libraries beneath have many kinds of them
        print(f"{error!r}", file=sys.stderr)
        raise Problem(
            f"{task['name']} cannot be had from the Hugging Face hub: {first_line(error)};"
            " a file of your own, --task FILE, needs no hub"
        ) from None


def manager_of(name: str) -> TaskManager:
    """Return what knows a task: of the folder that it is named after, as most are, or of all ten thousand files."""
    for folder in sorted((Path(lm_eval.__file__).parent / "tasks").iterdir(), reverse=True):
        if folder.is_dir() and f"{name}_".startswith(f"{folder.name}_"):
            found = TaskManager(include_path=str(folder), include_defaults=False)
            if name in found.all_tasks:
                return found
    return everything()


@functools.cache
def everything() -> TaskManager:
    """Return what knows all tasks."""
    return TaskManager()


def own_task(name: str, documents: Documents) -> Any:  # noqa: ANN401  # a task of lm-eval's
    """Make a task of documents: the likeliest of their choices counts, or what is generated on the first line."""
    rows = datasets.Dataset.from_list([dict(document) for document in documents])
    common = {
        "task": name,
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "doc_to_text": lambda document: document["prompt"],
        "doc_to_target": lambda document: document["answer"],
        "target_delimiter": "",  # what is in the file is what is asked
    }
    if "choices" in documents[0]:
        kind = {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda document: document["choices"],
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        return ConfigurableTask(config={**common, **kind})
    if "images" in documents[0]:

        def pictures(document: Mapping[str, Any]) -> list[Any]:
            return [open_picture(Path(path)) for path in document["images"]]

        for document in documents:
            pictures(document)  # what is none is said before anything is asked
        common["doc_to_image"] = pictures
    encode = tokenizer().encode
    longest = max(len(encode(document["answer"], add_special_tokens=False)) for document in documents)
    kind = {
        "output_type": "generate_until",
        "generation_kwargs": {
            "until": ["\n"], "max_gen_toks": longest + MORE, "do_sample": False, "temperature": 0.0
        },
        "process_results": lambda document, results: {
            "exact_match": float(results[0].strip() == document["answer"].strip())
        },
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    return ConfigurableTask(config={**common, **kind})


def evaluate(model: Any, tasks: Mapping[str, Sequence[Any]]) -> dict[str, Any]:  # noqa: ANN401  # of lm-eval's
    """Ask a model all tasks, and return its score on each by name."""
    scores = {}
    for name, of in tasks.items():
        model.asked = hashlib.sha256()
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(of),
            limit=JOB["limit"],
            bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False),
        )["samples"]
        scores[name] = score(name, [sample for each in of for sample in found[each.task_name]], model.asked)
    return scores


def score(name: str, samples: Sequence[Mapping[str, Any]], digest: Any) -> dict[str, Any]:  # noqa: ANN401  # hashlib's
    """Return of each document whether the answer is right, by the first metric of the first filter that says so.

    Parameters: `digest`, that of all tokens asked, which takes prompts, settings and what is right, too.
    """
    first = samples[0]["filter"]
    of_first = [sample for sample in samples if sample["filter"] == first]
    for metric in of_first[0]["metrics"]:
        if all(sample.get(metric) in (0, 1) for sample in of_first):
            break
    else:
        raise Problem(f"{name} has no metric by which a document is right or wrong")
    # In which a picture is a hash of what it shows, and a target may be anything.
    told = [[sample["arguments"], sample["target"]] for sample in of_first]
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return {
        "metric": metric if first == "none" else f"{metric}, {first}",
        "digest": digest.hexdigest(),
        "right": [int(sample[metric]) for sample in of_first],
    }


class Heard(logging.Handler):
    """Keeps the last thing that lm-eval has said of a request: what a server answers is in no exception."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        if record.levelno >= logging.WARNING and "failed" in (said := record.getMessage()):
            self.last = said


def answer(asked: Mapping[str, Any], tasks: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Let a model answer all tasks."""
    heard = Heard()
    logging.getLogger("lm_eval").addHandler(heard)
    try:
        model = Served(asked["server"], asked["at_once"]) if "server" in asked else reference_model()
        return {"scores": evaluate(model, tasks)}
    except (Problem, ReferenceProblem) as problem:
        return {"problem": str(problem)}
    except Exception as error:  # whatever a model, a server or a task of lm-eval's raises
        logging.getLogger("lm_eval").exception("asking a model")
        return {"problem": f"{first_line(error)}{f' ({heard.last[:500]})' if heard.last else ''}"}
    finally:
        logging.getLogger("lm_eval").removeHandler(heard)


def main() -> None:
    """Have the tasks, then answer lines until there are no more."""
    transformers.logging.set_verbosity_error()
    printed, sys.stdout = sys.stdout, sys.stderr  # what a model's own code prints is no answer

    def say(what: Mapping[str, Any]) -> None:
        print(json.dumps(what), file=printed, flush=True)

    try:
        if JOB["beside"]:
            check_reference()  # before anything takes its time
    except ReferenceProblem as problem:
        say({"problems": [str(problem)]})
        return
    tasks, problems = {}, []
    for task in JOB["tasks"]:
        try:
            tasks[task["name"]] = open_task(task)
        except (Problem, ReferenceProblem) as problem:
            problems.append(str(problem))
    if problems:
        say({"problems": problems})
        return
    say({})
    for line in sys.stdin:
        say(answer(json.loads(line), tasks))


if __name__ == "__main__":
    main()
