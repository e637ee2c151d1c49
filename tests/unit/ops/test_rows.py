"""The measured multiple of rows does what it is measured for."""

import torch
import torch.nn.functional as F

from moestro.ops.rows import measure_row_multiple, round_up


def test_a_product_keeps_a_rows_bits_at_every_multiple() -> None:
    multiple = measure_row_multiple([(1, 48, 32), (3, 100, 24)], torch.float32)
    assert multiple is not None
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(2))
    whole = F.linear(x, weight)
    for count in range(multiple, 200, multiple):
        assert torch.equal(F.linear(x[:count], weight), whole[:count])


def test_rounding_up_reaches_the_next_multiple() -> None:
    assert [round_up(number, 4) for number in (0, 1, 4, 5)] == [0, 4, 4, 8]
