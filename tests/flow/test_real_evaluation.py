"""The public evaluation harness, lm_eval, against a real server: as a program, unmodified.

Its likelihoods and answers are held against those that `moestro.load` computes from the same
folder. Next: moestro/server/completions.py.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moestro.lm.language_model import LanguageModel
from tests.flow.real import KEY, NAME, Served, prompt_ids

pytest_plugins = ["tests.flow.real_server"]
pytestmark = pytest.mark.slow

CHOICES = ["radius", "height * 3", "area of it", "return 7"]
QUESTIONS = [f"def area_{number}(radius):\n    return" for number in range(8)]
NUM_TOKENS = 12


@dataclass(frozen=True)
class Outcome:
    """What the harness wrote: a task's metrics, and what it was answered for each document."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]


def write_task(folder: Path, task: dict[str, Any], docs: Sequence[Any]) -> None:
    """Describe a task of these documents, as its own user would."""
    data = folder / "data.jsonl"
    data.write_text("".join(f"{json.dumps(doc)}\n" for doc in docs))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    # What is JSON is YAML too.
    (folder / "shapes.yaml").write_text(
        json.dumps({"task": "shapes", "test_split": "test"} | source | task)
    )


def evaluate(folder: Path, model: str, url: str, *arguments: str) -> Outcome:
    """Run the folder's task; arguments are the model's, or flags."""
    own = [argument for argument in arguments if not argument.startswith("--")]
    flags = [argument for argument in arguments if argument.startswith("--")]
    model_args = ",".join((f"base_url={url}", f"model={NAME}", "max_retries=1", *own))
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--tasks", "shapes"]
    command += ["--model_args", model_args, "--include_path", str(folder), *flags]
    command += ["--output_path", str(folder / "out"), "--log_samples"]
    environment = {"OPENAI_API_KEY": KEY, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = folder.glob("out/**/results_*.json")
    (samples,) = folder.glob("out/**/samples_shapes_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    return Outcome(
        json.loads(results.read_text())["results"]["shapes"],
        sorted(found, key=lambda sample: int(sample["doc_id"])),
    )


def likelihood(lm: LanguageModel, ids: Sequence[int], num_known: int) -> float:
    """Sum the log-probabilities of the tokens behind the first `num_known`."""
    logits = lm.logits(ids).astype("float64")
    places = range(num_known - 1, len(ids) - 1)
    return sum(
        float(logits[place, ids[place + 1]]) - math.log(sum(map(math.exp, logits[place])))
        for place in places
    )


@pytest.mark.parametrize("has_ids", [False, True])
def test_likelihoods_and_accuracy_are_the_models_own(
    real_server: Served, real_lm: LanguageModel, tmp_path: Path, has_ids: bool
) -> None:
    expected = []
    for question in QUESTIONS:
        # Token ids are taken as they are; text is behind the token that begins a document.
        known = (
            real_lm.tokenizer.encode(question)
            if has_ids
            else prompt_ids(real_lm.tokenizer, question)
        )
        rows = ([*known, *real_lm.tokenizer.encode(f" {choice}")] for choice in CHOICES)
        expected.append([likelihood(real_lm, ids, len(known)) for ids in rows])
    best = [row.index(max(row)) for row in expected]
    docs = [
        # The first half is right by the model, the second by none.
        {"question": question, "choices": CHOICES, "answer": (choice + index // 4) % 4}
        for index, (question, choice) in enumerate(zip(QUESTIONS, best, strict=True))
    ]
    task = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    write_task(tmp_path, task, docs)
    outcome = evaluate(
        tmp_path,
        "local-completions",
        f"{real_server.url}/v1/completions",
        f"tokenizer={real_server.folder}",
        f"tokenized_requests={has_ids}",
    )
    assert outcome.metrics["acc,none"] == 0.5
    for sample, row in zip(outcome.samples, expected, strict=True):
        found = [float(value) for value, _ in sample["filtered_resps"]]
        assert found == pytest.approx(row, abs=1e-4)


def test_chats_are_answered_as_the_model_answers(
    real_server: Served, real_lm: LanguageModel, tmp_path: Path
) -> None:
    expected = [greedy(real_lm, question) for question in QUESTIONS]
    docs = [
        {"question": question, "answer": answer if index < 4 else "something else"}
        for index, (question, answer) in enumerate(zip(QUESTIONS, expected, strict=True))
    ]
    task = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["never said"], "max_gen_toks": NUM_TOKENS},
        "metric_list": [{"metric": "exact_match"}],
    }
    write_task(tmp_path, task, docs)
    url = f"{real_server.url}/v1/chat/completions"
    outcome = evaluate(tmp_path, "local-chat-completions", url, "--apply_chat_template")
    assert [sample["resps"][0][0] for sample in outcome.samples] == expected
    assert outcome.metrics["exact_match,none"] == 0.5


def greedy(lm: LanguageModel, question: str) -> str:
    """Answer a question one likeliest token at a time, without any cache."""
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    ids = lm.tokenizer.encode_trusted(text)
    for _ in range(NUM_TOKENS):
        ids.append(int(lm.logits(ids)[-1].argmax()))
    return lm.tokenizer.decode(ids[-NUM_TOKENS:])
