"""Muon's updates are orthogonal, for stacked experts and for each half of a shared tensor alike.

Shapes: N stacked matrices, R rows, C columns.
"""

import pytest
import torch
from torch import Tensor, nn

from moestro.ops.orthogonal import orthogonalize
from moestro.train.muon import Muon

SHAPES = [(12, 12), (8, 30), (30, 8), (1, 5), (64, 20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_orthogonalized_matrix_has_singular_values_near_one(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    steps_NRC = orthogonalize(random(3, *shape).to(dtype), num_steps=5)
    values = torch.linalg.svdvals(steps_NRC.float())
    assert float(values.max()) < 1.3
    # The smallest of a square matrix start near zero and are lifted last.
    is_lifted = values > 0.3 if shape[0] == shape[1] else values > 0.6
    assert float(is_lifted.float().mean()) > 0.9


def test_it_keeps_the_singular_vectors() -> None:
    update_NRC = random(1, 10, 6)
    u, _, vh = torch.linalg.svd(update_NRC, full_matrices=False)
    torch.testing.assert_close(orthogonalize(update_NRC, num_steps=30), u @ vh, atol=0.35, rtol=0)
    aligned = (u.mT @ orthogonalize(update_NRC, num_steps=5) @ vh.mT)[0]
    assert float((aligned - aligned.diag().diag()).abs().max()) < 1e-4


def test_the_size_of_a_gradient_does_not_matter_and_zero_stays_zero() -> None:
    update_NRC = random(2, 6, 9)
    steps = orthogonalize(update_NRC, 5)
    torch.testing.assert_close(orthogonalize(1000 * update_NRC, 5), steps, atol=1e-4, rtol=1e-4)
    assert not orthogonalize(torch.zeros(2, 6, 9), 5).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_stacked_experts_are_orthogonalized_one_by_one(shape: tuple[int, int]) -> None:
    stacked_NRC = random(4, *shape)
    together = orthogonalize(stacked_NRC, 5)
    alone = torch.cat([orthogonalize(part, 5) for part in stacked_NRC.split(1)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_experts_in_one_tensor_move_as_experts_in_many() -> None:
    start, gradient = random(3, 6, 4), random(3, 6, 4, seed=1)
    stacked = nn.Parameter(start.clone())
    single = [nn.Parameter(part.clone()) for part in start]
    stacked.grad = gradient.clone()
    for parameter, part in zip(single, gradient, strict=True):
        parameter.grad = part.clone()
    for parameters in ([stacked], single):
        muon(parameters).step()
    torch.testing.assert_close(stacked.detach(), torch.stack([p.detach() for p in single]))


@pytest.mark.parametrize("shape", [(8, 5), (3, 8, 5)])
def test_the_gate_and_the_up_half_of_a_tensor_are_orthogonalized_separately(
    shape: tuple[int, ...],
) -> None:
    start, gradient = random(*shape), random(*shape, seed=1)
    joined = nn.Parameter(start.clone())
    joined.num_matrices = 2  # type: ignore[attr-defined]
    joined.grad = gradient.clone()
    halves = [nn.Parameter(part.clone()) for part in start.chunk(2, dim=-2)]
    for half, part in zip(halves, gradient.chunk(2, dim=-2), strict=True):
        half.grad = part.clone()
    muon([joined]).step()
    muon(halves).step()
    torch.testing.assert_close(joined.detach(), torch.cat([h.detach() for h in halves], dim=-2))


def test_tensors_of_one_shape_with_one_and_two_matrices_do_not_mix() -> None:
    alone, beside = nn.Parameter(random(8, 5)), nn.Parameter(random(8, 5))
    joined = nn.Parameter(random(8, 5, seed=2))
    joined.num_matrices = 2  # type: ignore[attr-defined]
    for parameter in (alone, beside):
        parameter.grad = random(8, 5, seed=1)
    joined.grad = random(8, 5, seed=3)
    muon([alone]).step()
    muon([beside, joined]).step()
    torch.testing.assert_close(beside.detach(), alone.detach())


def test_a_step_has_the_size_of_adamws() -> None:
    for shape in ((40, 40), (20, 80), (80, 20)):
        parameter = nn.Parameter(torch.zeros(shape))
        parameter.grad = random(*shape)
        muon([parameter], lr=1.0).step()
        # About 0.2 for each element, whatever the shape.
        assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.3)


def test_momentum_remembers_and_weights_decay() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    optimizer = muon([parameter], lr=0.1, weight_decay=0.5)
    parameter.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((4, 4), 0.95))
    parameter.grad = random(4, 4)
    optimizer.step()
    kept = optimizer.state[parameter]["momentum"]
    torch.testing.assert_close(kept, 0.05 * random(4, 4))


def test_a_parameter_without_gradient_stays() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    muon([parameter]).step()
    assert bool((parameter == 1).all())


def muon(parameters: list[nn.Parameter], lr: float = 0.1, weight_decay: float = 0.0) -> Muon:
    return Muon(parameters, lr=lr, momentum=0.95, weight_decay=weight_decay, num_steps=5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
