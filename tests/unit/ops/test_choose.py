"""Kernels run only where they load and agree with their twin; else torch does, and says why."""

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from moestro.errors import ConfigError
from moestro.ops.choose import VARIABLE, choose_kernels, chosen_kernels, find_fault
from moestro.ops.kernels import PackedExperts, TorchKernels, Visits
from moestro.ops.panels import Panels, Rows
from tests.parity.threads import threads


class WrongKernels(TorchKernels):
    """Right but for what a test changes."""

    name = "wrong"

    def __init__(self, wrong: str, by: float) -> None:
        self.wrong, self._by = wrong, by

    def by(self, name: str) -> float:
        return self._by if name == self.wrong else 0.0

    def interleave(self, rows: Sequence[Rows], panels: Panels) -> None:
        super().interleave(rows, panels)
        if self.by("packing"):
            panels.data_HnB[0, 0, 0] += 1

    def multiply(self, x_THD: Tensor, weights: Panels) -> Tensor:
        return super().multiply(x_THD, weights) + self.by("multiply")

    def apply_experts(self, x_TD: Tensor, visits: Visits, experts: PackedExperts) -> Tensor:
        out_TD = super().apply_experts(x_TD, visits, experts)
        return out_TD * (1 + self.by("experts"))

    def sigmoid(self, x: Tensor) -> Tensor:
        return super().sigmoid(x) + self.by("sigmoid")


class ZeroLibrary:
    """A build that loads and computes nothing: results are whatever memory held."""

    def __init__(self, instruction_set: str) -> None:
        self.instruction_set = instruction_set

    def interleave(self, *arguments: Any) -> None: ...

    def multiply(self, *arguments: Any) -> None: ...

    def apply_experts(self, *arguments: Any) -> None: ...

    def fill_sigmoids(self, *arguments: Any) -> None: ...


def load_broken() -> Any:
    structs = ("Matrices", "SourceRows", "PanelPlaces", "Product", "Visits", "Experts")
    return SimpleNamespace(
        instruction_sets=lambda: ["fast", "slow"],
        Library=ZeroLibrary,
        **dict.fromkeys((*structs, "ExpertProduct"), SimpleNamespace),
    )


def load_nothing() -> Any:
    raise ImportError("no such module")


@pytest.mark.parametrize("wrong", ["packing", "multiply", "experts", "sigmoid"])
@pytest.mark.parametrize("by", [0.5, float("nan")])
def test_the_check_finds_a_wrong_function(wrong: str, by: float) -> None:
    fault = find_fault(WrongKernels(wrong, by))
    assert fault is not None
    assert fault.startswith(wrong)


def test_the_check_lets_rounding_pass() -> None:
    assert find_fault(WrongKernels("experts", 1e-6)) is None


def test_the_check_computes_its_twin_on_one_thread_and_ours_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A twin's small products on many threads took seconds at every start on a busy machine.
    seen = []

    def note(self: TorchKernels, x: Tensor) -> Tensor:
        seen.append((self.name, torch.get_num_threads()))
        return torch.sigmoid(x)

    monkeypatch.setattr(TorchKernels, "sigmoid", note)
    with threads(3):
        assert find_fault(WrongKernels("nothing", 0.0)) is None
        assert torch.get_num_threads() == 3
    assert set(seen) == {("wrong", 3), (TorchKernels.name, 1)}


def test_kernels_that_compute_wrongly_do_not_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        chosen = choose_kernels("auto", load_broken)
    assert not chosen.is_native
    assert "failed their check" in chosen.reason
    assert "fast kernels are wrong here" in caplog.text


def test_without_a_build_torch_runs_and_the_reason_is_given() -> None:
    chosen = choose_kernels("auto", load_nothing)
    assert not chosen.is_native
    assert "no such module" in chosen.reason


def test_torch_can_be_asked_for() -> None:
    chosen = choose_kernels("torch", load_broken)
    assert not chosen.is_native
    assert VARIABLE in chosen.reason


def test_unknown_kernels_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'quick'.*fast, slow"):
        choose_kernels("quick", load_broken)


def test_the_choice_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    chosen_kernels.cache_clear()
    first, second = chosen_kernels(), chosen_kernels()
    chosen_kernels.cache_clear()
    assert first is second
    assert first.kernels.name == "torch"


def test_what_this_machine_runs_agrees_with_its_twin() -> None:
    assert find_fault(choose_kernels("auto").kernels) is None
