"""What the machine says of itself is of a plausible size."""

import torch

from moestro.ops.machine import default_device, fastest_dtype, measure_flops, measure_peak


def test_a_machine_does_between_a_million_and_a_quintillion_operations_a_second() -> None:
    assert 1e6 < measure_flops(torch.float32, "cpu") < 1e18


def test_the_fastest_dtype_is_one_that_a_run_can_use() -> None:
    assert fastest_dtype("cpu") in (torch.float32, torch.bfloat16)


def test_the_default_device_is_there() -> None:
    assert torch.zeros(1, device=default_device()).item() == 0


def test_the_peak_is_no_less_than_what_one_dtype_reaches() -> None:
    # Measured twice on a machine that others share: half is enough to tell.
    assert measure_peak("cpu").flops > measure_flops(torch.float32, "cpu") / 2
