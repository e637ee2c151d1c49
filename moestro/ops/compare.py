"""Native operations beside their twins on small random input: values, and gradients.

Each operation has such a check beside it, which `choose.native_for` asks before the operation's
first native call. Next: choose.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# Results are bfloat16, right to 1 in 512, and so is what gradients are made of.
TOLERANCE = 0.03

Outputs = Tensor | Sequence[Tensor]


def compare(
    name: str,
    native: Callable[..., Outputs],
    twin: Callable[..., Outputs],
    inputs: Sequence[Tensor],
    tolerance: float = TOLERANCE,
) -> str | None:
    """Say what is wrong with a native function of some inputs, None if nothing is.

    The twin gets them in float64. Both differentiate the same of them, if any.
    """
    with torch.enable_grad():
        ours = _run(native, [each.clone() for each in inputs])
        with one_thread():
            theirs = _run(twin, [each.double() for each in inputs])
    for (part, found), (_, expected) in zip(ours, theirs, strict=True):
        off = float((found.double() - expected).abs().max() / expected.abs().max())
        # Not "off > tolerance": a NaN must count as a fault.
        if not off <= tolerance:
            return f"{part} of {name} is off by {off:.1e} of the largest number"
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one thread: a twin's small products take longer to share than to do.

    Its threads wait for each other at the end of every operation: on a machine that others use too,
    or in a container with less time than cores, for a time slice each.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw(
    *shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """Return random numbers, bfloat16 unless asked otherwise; they leave the user's seed alone."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return numbers.to(dtype or torch.bfloat16)


def _run(function: Callable[..., Outputs], inputs: list[Tensor]) -> list[tuple[str, Tensor]]:
    leaves = [each.requires_grad_() for each in inputs]
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    found = [("a result", each.detach()) for each in outputs]
    made = [each for each in outputs if each.requires_grad]
    if made:
        toward = (draw(*each.shape, seed=9, dtype=torch.float32) for each in made)
        total = torch.stack(
            [(each * weight).sum() for each, weight in zip(made, toward, strict=True)]
        ).sum()
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        found += [("a gradient", each) for each in gradients if each is not None]
    return found
