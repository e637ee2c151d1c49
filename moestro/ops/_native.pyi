# What native/module.cpp offers: addresses and sizes in, results written to the last address.

def instruction_sets() -> list[str]: ...

class Library:
    def __init__(self, instruction_set: str) -> None: ...
    def multiply(
        self,
        x: int,
        num_rows: int,
        num_matrices: int,
        weights: int,
        format: int,
        depth: int,
        num_panels: int,
        y: int,
        num_threads: int,
        /,
    ) -> None: ...
    def fill_sigmoids(self, x: int, number: int, y: int, /) -> None: ...
    def apply_experts(
        self,
        x: int,
        experts: int,
        scales: int,
        is_used: int,
        num_rows: int,
        num_slots: int,
        num_experts: int,
        width: int,
        gate_up: int,
        gate_up_panels: int,
        down: int,
        down_panels: int,
        format: int,
        depth: int,
        out: int,
        num_threads: int,
        /,
    ) -> None: ...
