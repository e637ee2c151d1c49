"""The native kernels equal their torch twin, and give a row the same bits in any company.

Shapes: T tokens, H matrices, D inputs or width, N outputs, K slots per token, E experts, F width.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moestro.ops.kernels import Kernels, PackedExperts, TorchKernels, Visits
from moestro.ops.native import FORMATS, NativeKernels, load_native
from moestro.ops.packing import PanelWriter, pack, pack_gate_up
from moestro.ops.panels import KINDS, WeightKind, strip_bytes, unpack
from moestro.ops.quantize import (
    Kind,
    Quantized,
    codes_shape,
    dequantize,
    quantize,
    scales_shape,
)
from tests.parity.threads import threads

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
TWIN = TorchKernels()
MAPS = Path("/proc/self/maps")
# Rows around the size of a block, depths around that of a chunk, columns around that of a panel.
PRODUCTS = [
    (1, 1, 1, 1),
    (1, 1, 64, 48),
    (2, 1, 7, 16),
    (3, 4, 33, 17),
    (6, 1, 256, 64),
    (7, 2, 257, 130),
    (13, 1, 300, 15),
    (100, 1, 520, 200),
    (0, 1, 8, 8),
]
EXPERTS = [
    (1, 1, 8, 1, 4),
    (1, 4, 64, 8, 40),
    (5, 2, 33, 3, 17),
    (40, 3, 300, 6, 70),
    (0, 2, 8, 4, 4),
]


@pytest.fixture(params=NATIVE.instruction_sets())
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return NativeKernels(request.param, load_native())


@pytest.fixture(params=["float32", "bfloat16", "int8", "int4"])
def kind(request: pytest.FixtureRequest) -> WeightKind:
    return request.param


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def visits(num_tokens: int, num_slots: int, num_experts: int, seed: int = 3) -> Visits:
    """Draw different experts for each token, some of the slots not in use."""
    generator = torch.Generator().manual_seed(seed)
    chances_TE = torch.rand(num_tokens, num_experts, generator=generator)
    weights_TK = torch.rand(num_tokens, num_slots, generator=generator)
    is_used_TK = torch.rand(num_tokens, num_slots, generator=generator) > 0.3
    return Visits(chances_TE.topk(num_slots).indices, weights_TK, is_used_TK)


def layer(D: int, E: int, F: int, kind: WeightKind) -> PackedExperts:
    # Scaled so that numbers stay around 1, whatever the shape.
    gate_up_EGD, down_EDF = draw(E, 2 * F, D, seed=1) / D**0.5, draw(E, D, F, seed=2) / F**0.5
    return PackedExperts(pack_gate_up(gate_up_EGD, kind, TWIN), pack(down_EDF, kind, TWIN))


def rows(whole: Visits, part: slice) -> Visits:
    return Visits(whole.experts_TK[part], whole.weights_TK[part], whole.is_used_TK[part])


@pytest.mark.parametrize("depth", [1, 31, 32, 33, 704])
def test_both_sides_agree_on_the_size_of_a_panel(kind: WeightKind, depth: int) -> None:
    assert NATIVE.strip_bytes(FORMATS[kind], depth) == strip_bytes(kind, depth)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 17, 33), (3, 32, 64)])
def test_packing_loses_nothing(kind: WeightKind, shape: tuple[int, int, int]) -> None:
    weight_HND = draw(*shape, seed=0).to(KINDS[kind]).float()
    assert torch.equal(unpack(pack(weight_HND, kind, TWIN)), weight_HND)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 17, 33), (3, 32, 64)])
def test_packing_keeps_every_code(kind: Kind, shape: tuple[int, int, int]) -> None:
    weight_HND = draw(*shape, seed=0)
    assert torch.equal(unpack(pack(weight_HND, kind, TWIN)), dequantize(quantize(weight_HND, kind)))


# Matrices, outputs, inputs: around whole panels, strips, words and groups.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 17, 33), (3, 32, 64), (1, 50, 257), (1, 128, 512)]
)
def test_packing_gives_the_twins_bits(
    kernels: Kernels, kind: WeightKind, shape: tuple[int, int, int]
) -> None:
    H, N, D = shape
    for num_threads in (1, 3):
        with threads(num_threads):
            found = pack(draw(H, N, D, seed=0), kind, kernels)
            halves = pack_gate_up(draw(H, 2 * N, D, seed=1), kind, kernels)
        assert torch.equal(found.data_HnB, pack(draw(H, N, D, seed=0), kind, TWIN).data_HnB)
        expected = pack_gate_up(draw(H, 2 * N, D, seed=1), kind, TWIN)
        assert torch.equal(halves.data_HnB, expected.data_HnB)


def test_matrices_that_do_not_fit_their_panels_are_refused(
    kernels: Kernels, kind: WeightKind
) -> None:
    # An input too many, an output too many, a matrix too many.
    for N, D, matrix in ((16, 34, 0), (33, 33, 0), (16, 33, 1)):
        writer = PanelWriter(kernels, kind, 1, (16, 33))
        with pytest.raises(AssertionError):
            put_and_finish(writer, draw(N, D, seed=0), matrix)


def put_and_finish(writer: PanelWriter, weight_ND: Tensor, matrix: int) -> None:
    writer.put(weight_ND, matrix)
    writer.finish()


@pytest.mark.parametrize("shape", PRODUCTS)
def test_products_equal_the_twins(
    kernels: Kernels, kind: WeightKind, shape: tuple[int, int, int, int]
) -> None:
    T, H, D, N = shape
    x_THD, weights = draw(T, H, D, seed=0), pack(draw(H, N, D, seed=1) / D**0.5, kind, TWIN)
    found, expected = kernels.multiply(x_THD, weights), TWIN.multiply(x_THD, weights)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# The least and the greatest code, which a checkpoint from elsewhere may be full of.
@pytest.mark.parametrize(
    ("kind", "code"), [("int8", -128), ("int8", 127), ("int4", 0x00), ("int4", 0xFF)]
)
@pytest.mark.parametrize("T", [1, 3, 6])
def test_sums_of_the_largest_codes_fit(kernels: Kernels, kind: Kind, code: int, T: int) -> None:
    N, D = 40, 96
    dtype = torch.int8 if kind == "int8" else torch.uint8
    codes = torch.full(codes_shape((N, D), kind), code, dtype=dtype)
    scales = torch.ones(scales_shape((N, D)), dtype=torch.float16)
    writer = PanelWriter(TWIN, kind, 1, (N, D))
    writer.put_codes(Quantized(codes, scales, D, kind), matrix=0)
    weights = writer.finish()
    for sign in (-1.0, 1.0):
        x_T1D = torch.full((T, 1, D), sign)
        expected = TWIN.multiply(x_T1D, weights)
        torch.testing.assert_close(kernels.multiply(x_T1D, weights), expected)


@pytest.mark.parametrize("shape", EXPERTS)
def test_experts_equal_the_twins(
    kernels: Kernels, kind: WeightKind, shape: tuple[int, int, int, int, int]
) -> None:
    T, K, D, E, F = shape
    x_TD, experts = draw(T, D, seed=0), layer(D, E, F, kind)
    chosen = visits(T, K, E)
    found = kernels.apply_experts(x_TD, chosen, experts)
    # A hidden activation next to a border is rounded to either side.
    atol = 1e-5 if kind == "float32" else 1e-3
    torch.testing.assert_close(
        found, TWIN.apply_experts(x_TD, chosen, experts), atol=atol, rtol=1e-5
    )


@pytest.mark.parametrize("expert", [0, 4])
def test_all_tokens_on_one_expert(kernels: Kernels, kind: WeightKind, expert: int) -> None:
    T, D, E, F = 23, 40, 5, 24
    x_TD, experts = draw(T, D, seed=0), layer(D, E, F, kind)
    one = torch.ones(T, 1)
    chosen = Visits(torch.full((T, 1), expert), one, one.bool())
    found = kernels.apply_experts(x_TD, chosen, experts)
    torch.testing.assert_close(
        found, TWIN.apply_experts(x_TD, chosen, experts), atol=1e-5, rtol=1e-5
    )


def test_tokens_without_an_expert_get_zeros(kernels: Kernels, kind: WeightKind) -> None:
    chosen = visits(9, 2, 4)
    nobody = Visits(chosen.experts_TK, chosen.weights_TK, torch.zeros_like(chosen.is_used_TK))
    found = kernels.apply_experts(draw(9, 20, seed=0), nobody, layer(20, 4, 12, kind))
    assert torch.equal(found, torch.zeros(9, 20))


@pytest.mark.parametrize("extreme", [100.0, 1e4])
def test_large_numbers_saturate_as_the_twins_do(kernels: Kernels, extreme: float) -> None:
    x_TD, experts = draw(5, 16, seed=0) * extreme, layer(16, 3, 20, "float32")
    chosen = visits(5, 2, 3)
    found = kernels.apply_experts(x_TD, chosen, experts)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(
        found, TWIN.apply_experts(x_TD, chosen, experts), atol=1e-5 * extreme**2, rtol=1e-5
    )


@pytest.mark.parametrize("number", [0, 1, 7, 8, 13])
def test_sigmoids_equal_the_twins_wherever_they_lie(kernels: Kernels, number: int) -> None:
    x = draw(number, seed=0) * 30
    found = kernels.sigmoid(x)
    torch.testing.assert_close(found, TWIN.sigmoid(x), atol=0, rtol=1e-6)
    assert all(torch.equal(kernels.sigmoid(x[i:]), found[i:]) for i in range(number))


def test_not_a_number_stays_one(kernels: Kernels) -> None:
    x_TD = draw(3, 16, seed=0)
    x_TD[1, 5] = float("nan")
    chosen = Visits(torch.tensor([[0], [1], [0]]), torch.ones(3, 1), torch.ones(3, 1).bool())
    found = kernels.apply_experts(x_TD, chosen, layer(16, 2, 20, "float32"))
    assert found.isnan().all(dim=1).tolist() == [False, True, False]


def test_an_expert_that_is_not_there_is_refused(kernels: Kernels) -> None:
    chosen = Visits(torch.tensor([[2]]), torch.ones(1, 1), torch.ones(1, 1).bool())
    with pytest.raises(IndexError, match="no such expert"):
        kernels.apply_experts(draw(1, 16, seed=0), chosen, layer(16, 2, 20, "float32"))


def test_a_call_that_wants_too_much_memory_is_not_the_end_of_those_after_it(
    kernels: Kernels,
) -> None:
    assert isinstance(kernels, NativeKernels)
    x_THD, weights = draw(3, 1, 20, seed=0), pack(draw(1, 8, 20, seed=1), "float32", TWIN)
    expected = kernels.multiply(x_THD, weights)
    endless = kernels.native.Product(x=0, num_rows=2**50, weights=kernels.matrices(weights), y=0)
    with pytest.raises(MemoryError):
        kernels.library.multiply(endless, 1)
    for _ in range(2):
        assert torch.equal(kernels.multiply(x_THD, weights), expected)


def test_threads_that_call_at_once_share_no_scratch_memory(kernels: Kernels) -> None:
    inputs, weights = draw(8, 2, 64, 300, seed=0), pack(draw(2, 70, 300, seed=1), "int8", TWIN)
    expected = [kernels.multiply(x_THD.transpose(0, 1), weights) for x_THD in inputs]

    def is_same(index: int) -> bool:
        found = kernels.multiply(inputs[index].transpose(0, 1), weights)
        return torch.equal(found, expected[index])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_same, [index % len(inputs) for index in range(400)]))


def test_what_a_kernel_takes_is_given_by_name_and_whole(kernels: Kernels) -> None:
    assert isinstance(kernels, NativeKernels)
    weights = kernels.matrices(pack(draw(1, 8, 20, seed=1), "float32", TWIN))
    product = kernels.native.Product(x=0, num_rows=0, weights=weights, y=0)
    assert (product.num_rows, product.weights.depth) == (0, 20)
    with pytest.raises(TypeError):
        kernels.native.Product(0, 0, weights, 0)
    with pytest.raises(TypeError):
        kernels.native.Product(x=0, weights=weights, y=0)


def test_experts_whose_shapes_do_not_fit_are_refused(kernels: Kernels) -> None:
    chosen = visits(4, 2, 3)
    narrow, wide = layer(16, 3, 20, "float32"), layer(16, 3, 40, "float32")
    with pytest.raises(AssertionError):
        kernels.apply_experts(draw(4, 16, seed=0), chosen, PackedExperts(narrow.gate_up, wide.down))
    with pytest.raises(AssertionError):
        kernels.apply_experts(draw(5, 16, seed=0), chosen, narrow)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_alone_has_the_bits_it_has_among_others(
    kernels: Kernels, kind: WeightKind, num_threads: int
) -> None:
    T, H, D, N = 37, 2, 530, 70
    x_THD, weights = draw(T, H, D, seed=0), pack(draw(H, N, D, seed=1), kind, TWIN)
    whole = kernels.multiply(x_THD, weights)
    with threads(num_threads):
        for count in (1, 2, 3, 4, 5, 6, 7, 11, 20, 36):
            assert torch.equal(kernels.multiply(x_THD[-count:], weights), whole[-count:])


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_token_alone_has_the_bits_it_has_among_others(
    kernels: Kernels, kind: WeightKind, num_threads: int
) -> None:
    T, K, D, E, F = 61, 3, 300, 4, 290
    x_TD, experts, chosen = draw(T, D, seed=0), layer(D, E, F, kind), visits(T, K, E)
    whole = kernels.apply_experts(x_TD, chosen, experts)
    with threads(num_threads):
        for count in (1, 2, 5, 9, 24, 60):
            part = slice(T - count, T)
            found = kernels.apply_experts(x_TD[part], rows(chosen, part), experts)
            assert torch.equal(found, whole[part])


@pytest.mark.slow
def test_fewer_threads_than_asked_for_give_the_same_bits() -> None:
    program = (
        "import torch; from moestro.ops.choose import chosen_kernels as chosen;"
        "from moestro.ops.packing import pack; torch.set_num_threads(3); torch.manual_seed(0);"
        "x, w = torch.randn(20, 1, 70), torch.randn(1, 200, 70);"
        "kernels = chosen().kernels;"
        "print(kernels.multiply(x, pack(w, 'int4', kernels)).numpy().tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"OMP_THREAD_LIMIT": limit},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for limit in ("1", "2", "8")
    }
    assert len(outputs) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_fork_goes_on_without_its_parents_threads() -> None:
    program = (
        "import os, threading, torch; from moestro.ops.choose import chosen_kernels as chosen;"
        "from moestro.ops.packing import pack; torch.set_num_threads(2);"
        "kernels = chosen().kernels; assert chosen().is_native;"
        "x, w = torch.randn(20, 1, 70), pack(torch.randn(1, 200, 70), 'int4', kernels);"
        "expected = kernels.multiply(x, w); child = os.fork();"
        "check = lambda: print(torch.equal(kernels.multiply(x, w), expected), flush=True);"
        "other = threading.Thread(target=check);"
        "child or [check(), other.start(), other.join(), os._exit(0)];"
        "os.waitpid(child, 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["True", "True"]


@pytest.mark.skipif(not MAPS.exists(), reason="Linux lists a process's libraries, others do not")
def test_there_is_one_pool_of_threads() -> None:
    program = (
        "from moestro.ops.choose import chosen_kernels as chosen; import pathlib, re;"
        f"assert chosen().is_native; maps = pathlib.Path('{MAPS}').read_text();"
        "print(*{line.split()[-1] for line in maps.splitlines() if re.search('lib[gi]?omp', line)})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.split()) == 1, done.stdout
