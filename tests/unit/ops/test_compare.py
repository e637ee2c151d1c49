"""A native function that differs from its twin is found, in values and in gradients."""

import torch
from torch import Tensor

from moestro.ops.compare import compare, draw


class Scaled(torch.autograd.Function):
    """Twice its input, with a gradient that may be wrong."""

    @staticmethod
    def forward(ctx: object, x: Tensor, slope: float) -> Tensor:
        ctx.slope = slope  # type: ignore[attr-defined]
        return 2 * x

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.slope * grads[0], None  # type: ignore[attr-defined]


def twice(x: Tensor) -> Tensor:
    return 2 * x


def test_what_is_right_up_to_rounding_has_no_fault() -> None:
    assert compare("doubling", lambda x: 2 * x.float(), twice, [draw(5, 7)]) is None
    assert compare("doubling", lambda x: Scaled.apply(x, 2.0), twice, [draw(5, 7)]) is None


def test_a_wrong_value_is_found() -> None:
    fault = compare("doubling", lambda x: 2.1 * x, twice, [draw(5, 7)])
    assert fault is not None
    assert fault.startswith("a result of doubling")


def test_a_single_wrong_number_of_many_is_found() -> None:
    def spoil(x: Tensor) -> Tensor:
        return 2 * x + torch.nn.functional.one_hot(torch.tensor(9), x.numel()).view_as(x)

    assert compare("doubling", spoil, twice, [draw(50, 70)]) is not None


def test_a_wrong_gradient_is_found() -> None:
    fault = compare("doubling", lambda x: Scaled.apply(x, 2.2), twice, [draw(5, 7)])
    assert fault is not None
    assert fault.startswith("a gradient of doubling")


def test_what_is_no_number_is_found() -> None:
    assert compare("doubling", lambda x: x * float("nan"), twice, [draw(5, 7)]) is not None


def test_it_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert compare("doubling", lambda x: Scaled.apply(x, 2.0), twice, [draw(5, 7)]) is None


def test_the_users_seed_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    compare("doubling", twice, twice, [draw(5, 7)])
    assert torch.equal(torch.rand(1), expected)
