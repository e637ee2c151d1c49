# What native/module.cpp offers: addresses and sizes in, results written to addresses.

def instruction_sets() -> list[str]: ...
def strip_bytes(format: int, depth: int, /) -> int: ...

class Matrices:
    def __init__(
        self,
        data: int,
        format: int,
        num_matrices: int,
        num_outputs: int,
        depth: int,
        num_panels: int,
        bias: int,
        /,
    ) -> None: ...

class Visits:
    def __init__(
        self, experts: int, weights: int, is_used: int, num_rows: int, num_slots: int, /
    ) -> None: ...

class TrainedExperts:
    def __init__(
        self, gate_up: int, down: int, num_experts: int, width: int, hidden_width: int, /
    ) -> None: ...

class AttentionShape:
    def __init__(
        self,
        num_sequences: int,
        length: int,
        num_heads: int,
        nope: int,
        rotary: int,
        value: int,
        scale: float,
        /,
    ) -> None: ...

class HeadRows:
    def __init__(self, data: int, row_step: int, head_step: int, /) -> None: ...

class AttentionParts:
    def __init__(
        self,
        query_nope: HeadRows,
        query_rope: HeadRows,
        key_nope: HeadRows,
        key_rope: HeadRows,
        value: HeadRows,
        /,
    ) -> None: ...

class NormRows:
    def __init__(
        self, x: int, step: int, num_rows: int, width: int, weight: int, epsilon: float, /
    ) -> None: ...

class ChoiceRule:
    num_slots: int
    fewest: int
    num_expert_groups: int
    topk_group: int
    best_of_group: int
    is_sigmoid: bool
    is_normalized: bool
    routed_scaling_factor: float
    num_fractions: int
    fractions: int

class GateRows:
    def __init__(
        self,
        x: int,
        num_rows: int,
        width: int,
        weight: int,
        num_experts: int,
        rule: ChoiceRule,
        bias: int,
        thresholds: int,
        fractions: int,
        /,
    ) -> None: ...

class Norm:
    def __init__(self, weight: int, epsilon: float, /) -> None: ...

class Gate:
    def __init__(self, weight: Matrices, bias: int, thresholds: int, /) -> None: ...

class Experts:
    def __init__(self, gate_up: Matrices, down: Matrices, /) -> None: ...

class Mtp:
    def __init__(self, enorm: Norm, hnorm: Norm, eh_proj: Matrices, norm: Norm, /) -> None: ...

class Layer:
    input_norm: Norm
    query_a: Matrices
    query_norm: Norm
    query: Matrices
    latent: Matrices
    latent_norm: Norm
    w_uk: Matrices
    w_uv: Matrices
    out: Matrices
    post_norm: Norm
    gate: Gate
    routed: Experts
    shared: Experts
    mtp: Mtp

class Shape(ChoiceRule):
    hidden: int
    num_heads: int
    nope: int
    rotary: int
    value: int
    latent: int
    softmax_scale: float
    is_interleaved: bool
    frequencies: int
    rotary_factor: float

class Library:
    def __init__(self, instruction_set: str) -> None: ...
    def multiply(
        self, x: int, num_rows: int, weights: Matrices, y: int, num_threads: int, /
    ) -> None: ...
    def fill_sigmoids(self, x: int, number: int, y: int, /) -> None: ...
    def apply_experts(
        self,
        x: int,
        experts: int,
        weights: int,
        is_used: int,
        num_rows: int,
        num_slots: int,
        gate_up: Matrices,
        down: Matrices,
        out: int,
        num_threads: int,
        /,
    ) -> None: ...
    def forward_experts(
        self,
        x: int,
        before: int,
        also_before: int,
        visits: Visits,
        experts: TrainedExperts,
        hidden: int,
        out: int,
        num_threads: int,
        /,
    ) -> None: ...
    def backward_experts(
        self,
        x: int,
        before: int,
        hidden: int,
        dout: int,
        visits: Visits,
        experts: TrainedExperts,
        dx: int,
        dweights: int,
        dgate_up: int,
        ddown: int,
        num_threads: int,
        /,
    ) -> None: ...
    def forward_product(
        self,
        x: int,
        weight: int,
        num_rows: int,
        width: int,
        num_outputs: int,
        y: int,
        num_threads: int,
        /,
    ) -> None: ...
    def backward_product(
        self,
        x: int,
        weight: int,
        num_rows: int,
        width: int,
        num_outputs: int,
        dy: int,
        dx: int,
        dweight: int,
        num_threads: int,
        /,
    ) -> None: ...
    def forward_attention(
        self,
        shape: AttentionShape,
        inputs: AttentionParts,
        out: HeadRows,
        log_totals: int,
        num_threads: int,
        /,
    ) -> None: ...
    def backward_attention(
        self,
        shape: AttentionShape,
        inputs: AttentionParts,
        out: HeadRows,
        dout: HeadRows,
        log_totals: int,
        gradients: AttentionParts,
        dkey_ropes: int,
        num_threads: int,
        /,
    ) -> None: ...
    def forward_norm(
        self, norm: NormRows, more: int, sum: int, y: int, num_threads: int, /
    ) -> None: ...
    def backward_norm(
        self,
        norm: NormRows,
        dy: int,
        drows: int,
        dx: int,
        dx_step: int,
        dweight: int,
        num_threads: int,
        /,
    ) -> None: ...
    def rotate(
        self,
        x: HeadRows,
        num_rows: int,
        length: int,
        num_heads: int,
        num_pairs: int,
        cosines: int,
        sines: int,
        is_interleaved: bool,
        is_inverse: bool,
        y: HeadRows,
        num_threads: int,
        /,
    ) -> None: ...
    def differentiate_loss(
        self,
        x: int,
        head: int,
        targets: int,
        weights: int,
        num_rows: int,
        width: int,
        vocabulary: int,
        nats: int,
        dx: int,
        dhead: int,
        num_threads: int,
        /,
    ) -> None: ...
    def forward_gate(
        self,
        gate: GateRows,
        logits: int,
        scores: int,
        selection: int,
        ranked: int,
        experts: int,
        weights: int,
        is_used: int,
        num_threads: int,
        /,
    ) -> None: ...
    def backward_gate(
        self,
        gate: GateRows,
        scores: int,
        experts: int,
        weights: int,
        is_used: int,
        dlogits: int,
        dscores: int,
        dweights: int,
        dx: int,
        dweight: int,
        num_threads: int,
        /,
    ) -> None: ...
    def differentiate_balance(
        self,
        logits: int,
        scores: int,
        experts: int,
        is_used: int,
        num_rows: int,
        num_experts: int,
        num_slots: int,
        num_sequences: int,
        sequence_weight: float,
        z_weight: float,
        dlogits: int,
        dscores: int,
        num_threads: int,
        /,
    ) -> float: ...

class Stack:
    def __init__(self, library: Library, shape: Shape, layers: list[Layer]) -> None: ...
    def set_final_norm(self, norm: Norm) -> None: ...
    def run(
        self,
        first_layer: int,
        last_layer: int,
        x: int,
        num_rows: int,
        positions: int,
        slots: int,
        fractions: int,
        sequences: int,
        num_sequences: int,
        hidden: int,
        tables: int,
        pages: int,
        cache_format: int,
        layer_slots: int,
        block_size: int,
        experts: int,
        weights: int,
        is_used: int,
        has_final_norm: bool,
        num_threads: int,
        /,
    ) -> None: ...
