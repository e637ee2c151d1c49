"""Baselines: the n-gram model's probabilities are proper, and its figure is what they say."""

import gzip
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moestro.data import baselines
from moestro.data.baselines import NgramModel, pack
from moestro.data.corpus import Document
from moestro.errors import ConfigError
from tests.unit.data.conftest import make_document


@given(train=st.binary(max_size=200), context=st.binary(min_size=5, max_size=5))
def test_probabilities_sum_to_one_after_any_context(train: bytes, context: bytes) -> None:
    model = NgramModel.fit(train + context[2:] + train, order=5)
    for before in (context, (train + b"\0" * 5)[:5]):
        every_byte = np.concatenate([pack(before + bytes([byte]), 5) for byte in range(256)])
        chances = model.probabilities(every_byte)
        assert chances.sum() == pytest.approx(1, abs=1e-9)
        assert (chances > 0).all()


def test_the_figure_is_the_mean_surprise_of_each_byte() -> None:
    train, texts = b"abracadabra " * 20, [b"abra", b"cadabra zebra"]
    model = NgramModel.fit(train, order=3)
    surprise = 0.0
    for text in texts:
        padded = b"\0" * 3 + text
        for place in range(len(text)):
            surprise -= math.log2(model.probabilities(pack(padded[place : place + 4], 3))[0])
    num_bytes = sum(map(len, texts))
    figure = baselines.ngram_bits_per_byte(train, texts, order=3)
    assert figure == pytest.approx(surprise / num_bytes)


def test_text_that_was_seen_is_cheap_and_noise_is_not() -> None:
    train = "".join(make_document(number).text for number in range(50)).encode()
    noise = np.random.default_rng(0).bytes(4000)
    assert baselines.ngram_bits_per_byte(train, [make_document(60).text.encode()]) < 1.5
    assert baselines.ngram_bits_per_byte(train, [noise]) > 7.9
    assert baselines.ngram_bits_per_byte(b"", [noise]) == pytest.approx(8)


def test_more_context_helps_on_text() -> None:
    train = "".join(make_document(number).text for number in range(50)).encode()
    held_out = [make_document(60).text.encode()]
    figures = [baselines.ngram_bits_per_byte(train, held_out, order) for order in (0, 1, 3, 5)]
    assert figures == sorted(figures, reverse=True)


def test_a_text_is_predicted_without_the_text_before_it() -> None:
    train, texts = b"the cat and the dog " * 10, [b"the cat", b"the dog"]
    both = baselines.ngram_bits_per_byte(train, texts)
    assert baselines.ngram_bits_per_byte(train, texts[::-1]) == pytest.approx(both)


def test_an_order_that_does_not_fit_a_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="order is 8"):
        NgramModel.fit(b"text", order=8)


def test_every_baseline_is_measured_on_the_same_bytes() -> None:
    training = [make_document(number) for number in range(40)]
    held_out = [make_document(number) for number in range(40, 45)]
    figures = baselines.measure(training, held_out, max_training_bytes=5000)
    joined = "".join(document.text for document in held_out).encode()
    assert figures["gzip"] == 8 * len(gzip.compress(joined, 9, mtime=0)) / len(joined)
    assert {*figures} == {"gzip", "xz", "ngram"}
    assert all(0 < figure < 8 for figure in figures.values())


def test_training_text_stops_at_its_limit() -> None:
    training = [Document(text="a" * 100, name="a", domain="x")] * 5
    held_out = [Document(text="b" * 100, name="b", domain="x")]
    assert baselines.measure(training, held_out, max_training_bytes=1)["ngram"] > 8
