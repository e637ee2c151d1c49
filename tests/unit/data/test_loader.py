"""Batches: every window once an epoch, and a batch is a function of its step alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.data.loader import Loader
from moestro.errors import ConfigError, DataError


def windows(loader: Loader, num_steps: int) -> list[tuple[int, ...]]:
    return [tuple(row) for step in range(num_steps) for row in loader.batch(step).tolist()]


@given(
    num_tokens=st.integers(12, 200),
    seq_len=st.integers(1, 10),
    num_extra=st.integers(0, 2),
    seed=st.integers(0, 100),
)
def test_an_epoch_covers_every_window_exactly_once(
    num_tokens: int, seq_len: int, num_extra: int, seed: int
) -> None:
    tokens = np.arange(num_tokens, dtype=np.uint16)
    loader = Loader(tokens, batch_size=1, seq_len=seq_len, num_extra=num_extra, seed=seed)
    num_windows = loader.num_windows
    assert num_windows == num_tokens // seq_len
    for epoch in range(2):
        steps = range(epoch * num_windows, (epoch + 1) * num_windows)
        rows = [loader.batch(step)[0] for step in steps]
        inputs = np.concatenate([row[:seq_len] for row in rows]).tolist()
        assert len(inputs) == len({*inputs}) > num_tokens - seq_len
        assert all(((row - row[0]) % num_tokens == np.arange(len(row))).all() for row in rows)


@given(step=st.integers(0, 50), batch_size=st.integers(1, 30))
def test_a_batch_does_not_depend_on_those_before(step: int, batch_size: int) -> None:
    tokens = np.arange(100, dtype=np.uint16)
    walked = Loader(tokens, batch_size=batch_size, seq_len=7, num_extra=2, seed=3)
    for before in range(step):
        walked.batch(before)
    fresh = Loader(tokens, batch_size=batch_size, seq_len=7, num_extra=2, seed=3)
    assert np.array_equal(walked.batch(step), fresh.batch(step))


@given(batch_size=st.integers(1, 30))
def test_the_size_of_a_batch_does_not_change_the_order(batch_size: int) -> None:
    tokens = np.arange(100, dtype=np.uint16)
    alone = windows(Loader(tokens, batch_size=1, seq_len=7), 60)
    together = windows(Loader(tokens, batch_size=batch_size, seq_len=7), -(-60 // batch_size))
    assert together[:60] == alone


def test_a_batch_is_the_same_after_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(np.random.default_rng(0).integers(0, 999, 500).astype("<u2").tobytes())
    batches = [
        Loader(np.memmap(path, dtype="<u2", mode="r"), batch_size=4, seq_len=16).batch(9)
        for _ in range(2)
    ]
    assert np.array_equal(*batches)
    assert batches[0].dtype == np.int64
    assert batches[0].shape == (4, 17)


def test_epochs_differ_in_phase_and_order() -> None:
    loader = Loader(np.arange(1000, dtype=np.uint16), batch_size=100, seq_len=10, seed=0)
    first, second = loader.batch(0), loader.batch(1)
    assert {*(first[:, 0] % 10)} != {*(second[:, 0] % 10)}
    assert loader.epoch(2) == 2.0


def test_seeds_differ() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    first, second = (Loader(tokens, batch_size=4, seq_len=10, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.batch(0), second.batch(0))


def test_barely_one_window_is_enough_and_less_is_an_error() -> None:
    tokens = np.arange(10, dtype=np.uint16)
    loader = Loader(tokens, batch_size=3, seq_len=8, num_extra=2)
    assert loader.batch(5).shape == (3, 10)
    with pytest.raises(DataError, match="has 10 tokens, but one window takes 11"):
        Loader(tokens, batch_size=3, seq_len=8, num_extra=3)


def test_an_impossible_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Loader(np.arange(10, dtype=np.uint16), batch_size=0, seq_len=2)
