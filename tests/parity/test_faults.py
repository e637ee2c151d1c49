"""Native operations are compared with their twins before first use; wrong ones run on torch."""

import ctypes
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from moestro.ops import (
    causal,
    cross_entropy,
    orthogonal,
    picking,
    products,
    rope,
    rowwise,
    scoring,
)
from moestro.ops import training as experts
from moestro.ops.choose import FindFault, native_for
from moestro.ops.native import NativeKernels, load_native
from moestro.train import balance
from tests.parity.chosen import use

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
CHECKS: dict[str, FindFault] = {
    "products": products.find_fault,
    "norms": rowwise.find_fault,
    "rotations": rope.find_fault,
    "attention": causal.find_fault,
    "experts": experts.find_fault,
    "loss": cross_entropy.find_fault,
    "gate": scoring.find_fault,
    "balance": balance.find_fault,
    "orthogonal": orthogonal.find_fault,
    "picking": picking.find_fault,
}
# What each check must notice: a function, and which field of its work says where it writes.
FILLED = [
    ("products", "forward_product", "y"),
    ("products", "backward_product", "dx"),
    ("products", "backward_product", "dweight"),
    ("norms", "forward_norm", "y"),
    ("norms", "backward_norm", "dx"),
    ("norms", "backward_norm", "dweight"),
    ("attention", "forward_attention", "log_totals"),
    ("experts", "forward_experts", "out"),
    ("experts", "backward_experts", "dx"),
    ("experts", "backward_experts", "dweights"),
    ("experts", "backward_experts", "dgate_up"),
    ("experts", "backward_experts", "ddown"),
    ("loss", "differentiate_loss", "nats"),
    ("loss", "differentiate_loss", "dx"),
    ("loss", "differentiate_loss", "dhead"),
    ("gate", "forward_gate", "scores"),
    ("gate", "backward_gate", "dx"),
    ("gate", "backward_gate", "dweight"),
    ("balance", "differentiate_balance", "dlogits"),
    ("balance", "differentiate_balance", "dscores"),
    ("orthogonal", "orthogonalize", "y"),
]


class Spoiled:
    """A library of which one function is changed."""

    def __init__(self, library: Any, name: str, changed: Callable[..., Any]) -> None:
        self._library = library
        self._changed = {name: changed}

    def __getattr__(self, name: str) -> Any:
        return self._changed.get(name) or getattr(self._library, name)


def spoiled(name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> NativeKernels:
    kernels = NativeKernels(NATIVE.instruction_sets()[0], load_native())
    kernels.library = Spoiled(kernels.library, name, change(getattr(kernels.library, name)))
    return kernels


@pytest.mark.parametrize("instruction_set", NATIVE.instruction_sets())
@pytest.mark.parametrize("name", CHECKS)
def test_what_this_machine_runs_agrees_with_its_twins(instruction_set: str, name: str) -> None:
    assert CHECKS[name](NativeKernels(instruction_set, load_native())) is None


def spoil(field: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Change a function so that what it writes to a field begins with what are no numbers."""

    def change(right: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(work: Any, num_threads: int) -> Any:
            result = right(work, num_threads)
            ctypes.memset(getattr(work, field), 0xFF, 16)
            return result

        return wrong

    return change


@pytest.mark.parametrize(("check", "function", "field"), FILLED)
def test_numbers_that_are_wrong_are_found(check: str, function: str, field: str) -> None:
    assert CHECKS[check](spoiled(function, spoil(field))) is not None


def test_a_rotation_the_wrong_way_is_found() -> None:
    def turn_back(right: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(work: Any, num_threads: int) -> None:
            work.is_inverse = not work.is_inverse
            right(work, num_threads)

        return wrong

    assert CHECKS["rotations"](spoiled("rotate", turn_back)) is not None


def test_a_wrong_pick_is_found() -> None:
    def shift(right: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *a: [(token_id ^ 1, *rest) for token_id, *rest in right(*a)]

    assert CHECKS["picking"](spoiled("pick_tokens", shift)) is not None


def test_a_wrong_operation_runs_on_torch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(spoiled("forward_product", spoil("y")), monkeypatch)
    x_TD, weight_ND = torch.randn(5, 32).bfloat16(), torch.randn(32, 32).bfloat16()
    with caplog.at_level(logging.WARNING):
        y_TN = products.linear(x_TD, weight_ND)
        products.linear(x_TD, weight_ND)
    assert torch.equal(y_TN, torch.nn.functional.linear(x_TD, weight_ND))
    assert caplog.text.count("torch runs instead") == 1
    assert "linear layer" in caplog.text
    # The other operations go on natively.
    assert native_for(x_TD, torch.bfloat16, rowwise.find_fault) is not None


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_finds_nothing_wrong_where_its_first_caller_wants_no_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = NativeKernels(NATIVE.instruction_sets()[0], load_native())
    use(kernels, monkeypatch)
    with torch.inference_mode():
        x = torch.zeros(1, dtype=torch.bfloat16)
        assert native_for(x, torch.bfloat16, CHECKS[name]) is kernels
