"""What rounding costs is measured on the text asked for, else on text the model has not seen."""

from pathlib import Path

import pytest

from moestro.lm import rounding
from tests.builders import tiny_config


def test_given_text_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text")
    name, texts = rounding.sample_text(tmp_path, [tmp_path / "a.txt"])
    assert name == str(tmp_path / "a.txt")
    assert texts == ["one text"]


def test_a_folder_that_is_no_run_is_measured_on_pythons_library(tmp_path: Path) -> None:
    name, texts = rounding.sample_text(tmp_path, [])
    assert name == "this Python's library"
    assert 20_000 < sum(len(text.encode()) for text in texts) <= 100_000


@pytest.mark.parametrize(("hidden_size", "fits"), [(16, True), (10_000_000, False)])
def test_a_model_larger_than_memory_is_not_measured(hidden_size: int, fits: bool) -> None:
    assert rounding.fits_in_memory(tiny_config(hidden_size=hidden_size)) is fits
