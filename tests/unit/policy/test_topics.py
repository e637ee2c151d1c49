"""Topics: prompts of one matter are alike though they share no words, and few rows tell few."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moestro.errors import CheckpointError
from moestro.policy.build import build_pair
from moestro.policy.estimate import TOPIC_PLACES, fold_words
from moestro.policy.features import NUM_BUCKETS, read
from moestro.policy.learn import LearnConfig, find_topics, fit_encoder
from moestro.policy.store import WEIGHTS_FILE, load_policy, save_policy
from tests.unit.policy.made_outcomes import make_outcomes, write_weights_of_before

MATTERS = ("river lake stream delta flood", "court judge appeal verdict statute")
CONFIG = LearnConfig(num_topics=4)


def _prompts(num: int) -> list[str]:
    draw = np.random.default_rng(0)
    words = [matter.split() for matter in MATTERS]
    return [" ".join(draw.permutation(words[row % 2])[:3]) for row in range(num)]


def test_prompts_of_one_matter_are_alike_though_they_share_no_words() -> None:
    features = [read(prompt) for prompt in _prompts(80)]
    encoder = fit_encoder(features)
    texts = [(row.buckets, encoder.text(row)) for row in features]
    topics_HK = find_topics(texts, LearnConfig(num_topics=len(MATTERS)))

    def about(prompt: str) -> np.ndarray:
        row = read(prompt)
        places, text = fold_words(row.buckets, encoder.text(row))
        topics_K: np.ndarray = text @ topics_HK.take(places, axis=0)
        return topics_K / np.linalg.norm(topics_K)

    assert about("river lake") @ about("stream flood") > 0.8
    assert abs(about("river lake") @ about("judge appeal")) < 0.4


def test_signs_make_buckets_of_one_place_cancel_out() -> None:
    buckets = np.arange(NUM_BUCKETS)
    places, signed = fold_words(buckets, np.ones(NUM_BUCKETS, dtype=np.float32))
    assert np.array_equal(np.unique(places), np.arange(TOPIC_PLACES))
    np.testing.assert_array_equal(np.bincount(places, weights=signed), 0.0)


@pytest.mark.parametrize(("num_rows", "expected"), [(24, 2), (80, 4)])
def test_there_is_at_most_one_topic_for_ten_rows(num_rows: int, expected: int) -> None:
    policy = build_pair(make_outcomes(num_rows), "small", "large", {}, CONFIG)
    assert policy.estimator.encoder.topics_HK.shape == (TOPIC_PLACES, expected)


def test_words_that_are_all_alike_leave_a_policy_that_works() -> None:
    made = make_outcomes(40)
    same = type(made)(**(vars(made) | {"prompts": ("the same",) * 40}))
    policy = build_pair(same, "small", "large", {}, CONFIG)
    scores = policy.decide("the same", policy.models).scores
    np.testing.assert_allclose(list(scores.values()), same.scores_NM.mean(0), atol=0.01)


@pytest.mark.parametrize("cut", [np.s_[:-1], np.s_[:, 0]])
def test_topics_of_another_shape_are_refused(cut: Any, tmp_path: Path) -> None:
    save_policy(build_pair(make_outcomes(40), "small", "large", {}, CONFIG), tmp_path)
    arrays = dict(np.load(tmp_path / WEIGHTS_FILE))
    arrays["topics_HK"] = arrays["topics_HK"][cut]
    write_weights_of_before(tmp_path, arrays)
    with pytest.raises(CheckpointError, match="topics have shape"):
        load_policy(tmp_path)
