"""Divergence has its known values, and a knock-out reaches the gates and leaves no trace."""

import dataclasses

import numpy as np
import pytest
import torch

from moestro.lm.language_model import LanguageModel
from moestro.lm.specialization import divergence, favorites, knock_out, switched_off
from moestro.train.evaluate import Evaluation, TokenDocument, evaluate
from tests.unit.lm import tiny


def evaluation(load: list[list[float]]) -> Evaluation:
    zeros = np.zeros((len(load), 6))
    return Evaluation(1, 1, 1, 1.0, np.array(load, dtype=float), zeros[:, :5], zeros)


def by_domain(lm: LanguageModel) -> dict[str, list[TokenDocument]]:
    found: dict[str, list[TokenDocument]] = {}
    for document in tiny.documents():
        ids = lm.tokenizer.encode(document.text)
        found.setdefault(document.domain, []).append(TokenDocument(ids, len(document.text)))
    return found


def measure(
    lm: LanguageModel, documents: dict[str, list[TokenDocument]], budget: float | None = None
) -> dict[str, Evaluation]:
    start_id = lm.tokenizer.bos_id
    return {
        name: evaluate(lm.model, part, start_id=start_id, budget=budget)
        for name, part in documents.items()
    }


def test_same_loads_diverge_by_nothing_and_disjoint_ones_by_one_bit() -> None:
    parts = {
        "a": evaluation([[10, 10, 0, 0], [5, 5, 5, 5]]),
        "b": evaluation([[0, 0, 3, 3], [1, 1, 1, 1]]),
    }
    found = divergence(parts)
    assert found is not None
    assert found.layers_LNN.shape == (2, 2, 2)
    assert found.layers_LNN[0] == pytest.approx(np.array([[0, 1], [1, 0]]))
    assert found.layers_LNN[1] == pytest.approx(np.zeros((2, 2)))
    assert found.to_dict()["mean"] == [[0.0, pytest.approx(0.5)], [pytest.approx(0.5), 0.0]]


def test_divergence_agrees_with_entropies() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.1, 0.8])
    found = divergence({"a": evaluation([list(70 * p)]), "b": evaluation([list(20 * q)])})

    def entropy(x: np.ndarray) -> float:
        return float(-(x * np.log2(x)).sum())

    assert found is not None
    wanted = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert found.mean_NN[0, 1] == pytest.approx(wanted)
    assert found.mean_NN[1, 0] == pytest.approx(wanted)


def test_one_domain_or_a_dense_model_has_nothing_to_compare() -> None:
    one = {"a": evaluation([[1, 2]])}
    assert divergence(one) is None
    lm = tiny.language_model(**tiny.DENSE)
    documents = by_domain(lm)
    assert divergence(measure(lm, documents)) is None
    assert knock_out(lm.model, documents, measure(lm, documents), start_id=0) is None


def test_the_favorite_is_the_expert_with_most_load_beyond_the_others() -> None:
    parts = {"a": evaluation([[50, 49, 1]]), "b": evaluation([[60, 40, 0]])}
    assert favorites(parts, "a") == [1]
    assert favorites(parts, "b") == [0]


@pytest.mark.parametrize("changes", [{}, tiny.GREEDY], ids=["bias", "no bias"])
def test_a_switched_off_expert_serves_nobody_and_the_rest_serve_as_many(
    changes: dict[str, str],
) -> None:
    lm = tiny.language_model(**changes)
    documents = by_domain(lm)
    before = measure(lm, documents)["python"]
    with switched_off(lm.model, [3, 5]):
        during = measure(lm, documents)["python"]
    assert before.load_LE[0, 3] > 0
    assert during.load_LE[0, 3] == during.load_LE[1, 5] == 0
    assert during.load_LE.sum() == before.load_LE.sum()
    assert measure(lm, documents)["python"].nats == before.nats


def test_gates_get_their_own_biases_back_even_after_an_error() -> None:
    lm = tiny.language_model()
    gates = lm.model.gates()
    state = {name: value.clone() for name, value in lm.model.state_dict().items()}
    kept = [gate.e_score_correction_bias for gate in gates]
    with pytest.raises(RuntimeError, match="stop"), switched_off(lm.model, [0, 1]):
        raise RuntimeError("stop")
    assert all(gate.e_score_correction_bias is bias for gate, bias in zip(gates, kept, strict=True))
    after = lm.model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], value) for name, value in state.items())


@pytest.mark.parametrize("budget", [None, 3.0])
def test_the_rise_is_the_difference_of_two_evaluations(budget: float | None) -> None:
    lm = tiny.language_model()
    documents = by_domain(lm)
    loads = measure(lm, documents, budget)
    found = knock_out(lm.model, documents, loads, start_id=lm.tokenizer.bos_id, budget=budget)
    assert found is not None
    assert [each.domain for each in found] == ["python", "c", "prose"]
    first = found[0]
    with switched_off(lm.model, favorites(loads, "python")):
        after = measure(lm, documents, budget)
    for name in documents:
        rise = after[name].nats_per_token - loads[name].nats_per_token
        assert first.rise[name] == pytest.approx(rise, abs=1e-9)
    assert first.own == first.rise["python"]
    assert first.others == pytest.approx((first.rise["c"] + first.rise["prose"]) / 2)


def test_no_ratio_where_the_others_lose_nothing() -> None:
    lm = tiny.language_model()
    documents = by_domain(lm)
    found = knock_out(lm.model, documents, measure(lm, documents), start_id=0)
    assert found is not None
    harmless = dataclasses.replace(found[0], rise={"python": 0.5, "c": -0.1, "prose": 0.0})
    harmful = dataclasses.replace(found[0], rise={"python": 0.5, "c": 0.1, "prose": 0.1})
    assert harmless.ratio is None
    assert harmful.ratio == pytest.approx(5.0)


def test_a_model_that_uses_all_its_experts_cannot_lose_one() -> None:
    lm = tiny.language_model(n_routed_experts=4, **tiny.FIXED)
    documents = by_domain(lm)
    assert knock_out(lm.model, documents, measure(lm, documents), start_id=0) is None
