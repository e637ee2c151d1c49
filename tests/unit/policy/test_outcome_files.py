"""Outcome files: what is read, and one clear line for what cannot be."""

from pathlib import Path

import numpy as np
import pytest

from moestro.errors import ConfigError, DataError
from moestro.policy.outcome_files import read_outcomes
from tests.unit.policy.made_outcomes import make_outcomes, write_csv, write_json_lines


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_and_json_lines_give_the_same_outcomes(tmp_path: Path) -> None:
    made = make_outcomes(10)
    for path in (write_csv(made, tmp_path / "a.csv"), write_json_lines(made, tmp_path / "a.jsonl")):
        found = read_outcomes([path])
        assert found.prompts == made.prompts
        assert found.models == made.models
        assert np.array_equal(found.scores_NM, made.scores_NM)


def test_several_files_become_one_set_in_groups(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", "prompt,x,y\np,1,0\n")
    second = write(tmp_path / "b.csv", "y,prompt,x\n0.5,q,0.25\n")
    found = read_outcomes([first, second])
    assert found.scores_NM.tolist() == [[1, 0], [0.25, 0.5]]
    assert found.groups_N.tolist() == [0, 1]


def test_responses_are_no_models_and_costs_are_costs(tmp_path: Path) -> None:
    header = "prompt,x,y,x_response,x_cost,cost:y,subject\n"
    found = read_outcomes([write(tmp_path / "a.csv", f"{header}p,True,False,hi,0.5,,math\n")])
    assert found.models == ("x", "y")
    assert found.costs_NM[0, 0] == 0.5
    assert np.isnan(found.costs_NM[0, 1])


def test_rows_keep_their_columns(tmp_path: Path) -> None:
    found = read_outcomes([write(tmp_path / "a.csv", "prompt,x,y\np,1,0\nq,0,1\n")])
    assert found.rows(np.array([1])).prompts == ("q",)


@pytest.mark.parametrize(
    "text",
    [
        "prompt, x , y\na,1,0\n",
        'prompt;x;y\n"a";1;0\n',
        "prompt\tx\ty\na\t1\t0\n",
        "x,y,prompt\n1,0,a\n",
        "x; y; prompt\n1;0;a\n",
    ],
)
def test_a_table_is_read_however_its_program_writes_it(tmp_path: Path, text: str) -> None:
    found = read_outcomes([write(tmp_path / "a.csv", text)])
    assert (found.prompts, found.models) == (("a",), ("x", "y"))
    assert found.scores_NM.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "prompt,z,category,y,x,z_cost,x_cost\np,,math,0,1,free,2\n"),
        (
            "a.jsonl",
            '{"prompt": "p", "scores": {"y": 0, "x": 1, "z": null, "category": "math"},'
            ' "costs": {"x": 2, "z": "free"}}',
        ),
    ],
)
def test_beside_the_models_wanted_nothing_is_looked_at(
    tmp_path: Path, name: str, text: str
) -> None:
    path = write(tmp_path / name, text)
    found = read_outcomes([path], ("x", "y"))
    assert (found.models, found.scores_NM.tolist()) == (("x", "y"), [[1, 0]])
    assert found.costs_NM[0, 0] == 2
    with pytest.raises(ConfigError, match="tiny: no such model in the outcomes: they have "):
        read_outcomes([path], ("x", "tiny"))
    with pytest.raises(DataError, match="score is missing"):
        read_outcomes([path], ("x", "z"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "holds no outcomes"),
        ("a.csv", "prompt,x,y\n", "holds no outcomes"),
        ("a.csv", "question,x\nq,1\n", "no column prompt"),
        ("a.csv", "prompt\nq\n", "no column of scores"),
        ("a.csv", "prompt,x,x\nq,1,1\n", "two columns x"),
        ("a.csv", "prompt,x,y\nq,1,\n", "score is missing"),
        ("a.csv", "prompt,x,y\nq,1\n", "score is missing"),
        ("a.csv", "prompt,x,y\nq,1,1.5\n", "'1.5' is not a score"),
        ("a.csv", "prompt,x,y\nq,1,nan\n", "'nan' is not a score"),
        ("a.csv", "prompt,x,y\nq,1,maybe\n", "'maybe' is not a score"),
        ("a.csv", "prompt,x,y,x_cost\nq,1,1,-2\n", "'-2' is not a cost"),
        ("a.csv", "prompt,x,y\n,1,1\n", "has no prompt"),
        ("a.csv", "prompt,x,y\nq,1,1\na, b,1,1\n", "line 3: has more fields than the header"),
        ("a.jsonl", "{broken", "line 1: not valid JSON"),
        ("a.jsonl", "[1]", "expected an object"),
        ("a.jsonl", '{"prompt": "p", "scores": {}}', "has no scores"),
        ("a.jsonl", '{"prompt": "p", "scores": {"x": null}}', "score is missing"),
        ("a.jsonl", '{"prompt": "p", "scores": {"x": 1}, "costs": [1]}', "costs are"),
        (
            "a.jsonl",
            '{"prompt": "p", "scores": {"x": 1}}\n\n{"prompt": "p", "scores": {"y": 1}}',
            "in some rows only",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_outcomes([write(tmp_path / name, text)])


def test_files_that_are_not_there_or_not_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="no such file"):
        read_outcomes([tmp_path / "a.csv"])
    with pytest.raises(DataError, match="cannot be read"):
        read_outcomes([tmp_path / "b.csv"])
    with pytest.raises(DataError, match="at least one file"):
        read_outcomes([])


def test_a_folder_of_outcomes_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r": is a folder: name the files of outcomes in it$"):
        read_outcomes([tmp_path])


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ConfigError, match="tiny: no such model in the outcomes: they have small"):
        make_outcomes(4).of(["tiny"])
