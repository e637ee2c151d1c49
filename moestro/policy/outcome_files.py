"""Files of outcomes, CSV or JSON lines, as people and public recordings write them.

Knows files and columns, and refuses what is no score. Next: outcomes.py.
"""

import csv
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moestro.errors import DataError
from moestro.policy.cascade import mean_logprob
from moestro.policy.outcomes import Outcomes, check_known

# What recordings carry beside scores.
_ANSWERS = ("_response", "_answer", "_output")
_BESIDE = (*_ANSWERS, "_tokens", "_latency")
_LOGPROB = "_logprob"
_NAMELESS = {"", "id", "index", "subject", "task", "task_name", "dataset", "split", "source"}
# As spreadsheets write them; the first whose header has a prompt.
_DELIMITERS = (";", "\t", ",")
_WORDS = {"true": 1.0, "false": 0.0}
# By model, its column.
_Named = dict[str, str]


@dataclass(frozen=True)
class _Row:
    where: str
    prompt: str
    scores: dict[str, float]
    costs: dict[str, float]
    logprobs: dict[str, float]
    answers: dict[str, str]


def read_outcomes(paths: Sequence[Path], only: Collection[str] = ()) -> Outcomes:
    """Read CSV and JSON lines files as one set; every row must score every model.

    Of models in `only`, if there are any; what is beside them in the files is then not looked at.
    """
    rows: list[_Row] = []
    groups: list[int] = []
    for group, path in enumerate(paths):
        before = len(rows)
        rows += list(_read_file(path, only))
        groups += [group] * (len(rows) - before)
        if len(rows) == before:
            raise DataError(f"{path}: holds no outcomes: give a file with rows")
    if not rows:
        raise DataError("no outcomes: give at least one file")
    models = tuple(rows[0].scores)
    for row in rows:
        if set(row.scores) != set(models):
            odd = sorted(set(row.scores) ^ set(models))[0]
            raise DataError(
                f"{row.where}: {odd} has a score in some rows only: score every model in every row"
            )
    return Outcomes(
        tuple(row.prompt for row in rows),
        models,
        np.array([[row.scores[name] for name in models] for row in rows]),
        np.array([[row.costs.get(name, math.nan) for name in models] for row in rows]),
        np.array(groups),
        np.array([[row.logprobs.get(name, math.nan) for name in models] for row in rows]),
        np.array([[row.answers.get(name) for name in models] for row in rows], dtype=np.object_),
    )


def _read_file(path: Path, only: Collection[str]) -> Iterator[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file of outcomes: name one that exists") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder: name the files of outcomes in it") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: grant access to it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read ({error}): give CSV or JSON lines") from error
    is_json = path.suffix in (".jsonl", ".ndjson", ".json") or text.lstrip()[:1] == "{"
    return (_read_json_lines if is_json else _read_csv)(path, text, only)


def _read_json_lines(path: Path, text: str, only: Collection[str]) -> Iterator[_Row]:
    is_first = True
    # Not splitlines(), which also breaks at characters that may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get("scores"), dict):
            raise DataError(f"{where}: expected an object with prompt and scores")
        scores = record["scores"]
        if is_first:
            check_known(only, scores)
        is_first = False
        beside = {name: record.get(name) or {} for name in ("costs", "logprobs", "answers")}
        for name, value in beside.items():
            if not isinstance(value, dict):
                raise DataError(f"{where}: {name} are {value!r}: give those of each model")
        wanted = only or scores
        its = {
            what: {name: value for name, value in values.items() if name in wanted}
            for what, values in beside.items()
        }
        yield _row(where, record.get("prompt"), {name: scores.get(name) for name in wanted}, **its)


def _read_csv(path: Path, text: str, only: Collection[str]) -> Iterator[_Row]:
    csv.field_size_limit(1 << 30)
    for delimiter in _DELIMITERS:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = [name.strip() for name in reader.fieldnames or []]
        if "prompt" in columns:
            break
    if not columns:
        return
    reader.fieldnames = columns
    if "prompt" not in columns:
        raise DataError(f"{path}: has no column prompt: it has {', '.join(columns)}")
    doubled = [name for name in columns if columns.count(name) > 1]
    if doubled:
        raise DataError(f"{path}: has two columns {doubled[0]}: name each model once")
    scored, costed, logged, answered = _columns(columns, only)
    if not scored:
        raise DataError(f"{path}: has no column of scores: give one for each model")
    try:
        for record in reader:
            where = f"{path}, line {reader.line_num}"
            if None in record:
                raise DataError(
                    f"{where}: has more fields than the header: quote what has {delimiter!r} in it"
                )
            yield _row(
                where,
                record["prompt"],
                {name: record[name] for name in scored},
                costs={model: record[name] for model, name in costed.items() if record[name]},
                logprobs={model: record[name] for model, name in logged.items() if record[name]},
                answers={model: record[name] for model, name in answered.items()},
            )
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def _columns(
    columns: Sequence[str], only: Collection[str]
) -> tuple[list[str], _Named, _Named, _Named]:
    """Tell columns of scores from those of costs, log-probabilities and answers.

    Costs are `cost:NAME`, or NAME with `_cost` or `|cost`; mean log-probabilities NAME_logprob;
    answers NAME with `_response`, `_answer` or `_output`. NAME_tokens and the like are nothing.
    """
    costed = {}
    for name in columns:
        if name.startswith("cost:"):
            costed[name.removeprefix("cost:")] = name
        for ending in ("_cost", "|total_cost", "|cost"):
            if name.endswith(ending):
                costed[name.removesuffix(ending)] = name
    logged = {name.removesuffix(_LOGPROB): name for name in columns if name.endswith(_LOGPROB)}
    scored = [
        name
        for name in columns
        if name != "prompt"
        and name not in (*costed.values(), *logged.values())
        and name.lower() not in _NAMELESS
        and not name.endswith(_BESIDE)
        and "|" not in name
    ]
    if only:
        check_known(only, scored)
        scored = list(only)
        costed = {model: name for model, name in costed.items() if model in only}
        logged = {model: name for model, name in logged.items() if model in only}
    answered = {
        model: name
        for ending in reversed(_ANSWERS)
        for model in scored
        if (name := model + ending) in columns
    }
    return scored, costed, logged, answered


def _row(
    where: str,
    prompt: object,
    scores: Mapping[str, Any],
    *,
    costs: Mapping[str, Any],
    logprobs: Mapping[str, Any],
    answers: Mapping[str, Any],
) -> _Row:
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{where}: has no prompt: remove the row or fill it in")
    if not scores:
        raise DataError(f"{where}: has no scores: give one for each model")
    return _Row(
        where,
        prompt,
        {name: _score(f"{where}, {name}", value) for name, value in scores.items()},
        {name: _cost(f"{where}, cost of {name}", value) for name, value in costs.items()},
        {name: _logprob(f"{where}, {name}", value) for name, value in logprobs.items()},
        {name: answer for name, answer in answers.items() if isinstance(answer, str)},
    )


def _score(where: str, value: object) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: the score is missing: score every model, or remove the row")
    number = _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    number = _number(value) if number is None else number
    if number is None or not 0.0 <= number <= 1.0:
        raise DataError(f"{where}: {value!r} is not a score: give True, False or 0 to 1")
    return number


def _cost(where: str, value: object) -> float:
    number = _number(value)
    if number is None or not 0.0 <= number < math.inf:
        raise DataError(f"{where}: {value!r} is not a cost: give a number from 0 on")
    return number


def _logprob(where: str, value: object) -> float:
    tokens = value if isinstance(value, list) else [value]
    numbers = [_number(token) for token in tokens]
    known = [number for number in numbers if number is not None and number <= 0.0]
    if not known or len(known) != len(numbers):
        raise DataError(
            f"{where}: {str(value)[:60]} is no log-probability: give the mean of an answer's"
            " tokens, 0 or below, or a list of them"
        )
    return mean_logprob(known)


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
