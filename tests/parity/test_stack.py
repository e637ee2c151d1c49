"""The native stack computes what the modules do, on every instruction set that this machine has.

Shapes: T rows, D width, L layers, A blocks, Z tokens per block.
"""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from moestro.api.sampling import Sampling
from moestro.model.cache import ContiguousCache
from moestro.model.config import ModelConfig
from moestro.model.model import Transformer
from moestro.model.prepare import prepare
from moestro.ops.native import NativeKernels, load_native
from moestro.ops.panels import WeightKind
from moestro.ops.picking import PickRow
from moestro.ops.stack import NativeStack, StackStep
from tests.builders import linear_budget, random_model, random_tokens, tiny_config

NATIVE = pytest.importorskip("moestro.ops._native", reason="built without a compiler")
BLOCK = 4
CONFIGS = [
    {},
    {"q_lora_rank": 12, "attention_bias": True},
    {"n_shared_experts": 2, "first_k_dense_replace": 2},
    {"n_shared_experts": 0, "n_routed_experts": 8, "n_group": 4, "topk_group": 2},
    {"kv_lora_rank": 30, "v_head_dim": 10, "qk_nope_head_dim": 6, "hidden_size": 50},
    {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy", "n_group": 2,
     "topk_group": 1, "n_routed_experts": 8, "norm_topk_prob": False},
    {"rope_interleave": False, "norm_topk_prob": False, "routed_scaling_factor": 2.5},
]  # fmt: skip
# Every width one of whole tiles.
TILED = {
    "hidden_size": 64, "q_lora_rank": 32, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32, "v_head_dim": 32, "moe_intermediate_size": 32, "intermediate_size": 96,
}  # fmt: skip


@pytest.fixture(params=NATIVE.instruction_sets())
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(request.param, load_native())


class Pages:
    """Pages for some sequences, whose blocks lie in no order."""

    def __init__(
        self, stack: NativeStack, config: ModelConfig, num_sequences: int, block_size: int = BLOCK
    ) -> None:
        width = config.kv_lora_rank + config.qk_rope_head_dim
        num_blocks, self.block_size = 400, block_size
        shape = (len(stack.layers), num_blocks, block_size, width)
        self.pages_LAZW = torch.zeros(shape, dtype=stack.cache_dtype)
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1))
        self.tables = order.view(num_sequences, -1)

    def step(
        self,
        parts: Sequence[tuple[int, int, int]],
        fractions_T: Tensor | None = None,
        may_expand: bool = False,
    ) -> StackStep:
        """Lay out rows `start` to `end` of some sequences."""
        positions, slots, sequences = [], [], []
        for number, start, end in parts:
            sequences.append([len(positions), end - start, number * self.tables.shape[1]])
            positions += range(start, end)
            table = self.tables[number].tolist()
            size = self.block_size
            slots += [table[p // size] * size + p % size for p in range(start, end)]
        return StackStep(
            torch.tensor(positions),
            torch.tensor(slots),
            fractions_T,
            torch.tensor(sequences),
            self.tables.flatten(),
            self.pages_LAZW,
            may_expand,
        )


def native(model: Transformer, kernels: NativeKernels, kind: WeightKind) -> Transformer:
    twin = copy.deepcopy(model)
    prepare(twin, kernels, kind)
    return twin


def run(model: Transformer, tokens: Tensor, step: StackStep) -> Tensor:
    assert model.stack is not None
    x_TD = model.embed(tokens).clone()
    model.stack.run(x_TD, range(model.config.num_hidden_layers), step, has_final_norm=True)
    return x_TD


WRONG: dict[str, tuple[str, int, str]] = {
    "slot": ("slots_T", 10**6, "slot is outside the pages"),
    "position": ("positions_T", -1, "position is below zero"),
    "far": ("positions_T", 10**6, "table is too short"),
    "page": ("tables", 400, "page that is not there"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_step_that_leaves_its_memory_is_refused(kernels: NativeKernels, name: str) -> None:
    model = native(random_model(tiny_config()), kernels, "float32")
    assert model.stack is not None
    step = Pages(model.stack, model.config, 1).step([(0, 0, 3)])
    field, value, message = WRONG[name]
    getattr(step, field)[0] = value
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        run(model, torch.tensor([1, 2, 3]), step)


@pytest.mark.parametrize("changes", CONFIGS)
def test_the_stack_equals_the_modules(kernels: NativeKernels, changes: dict[str, object]) -> None:
    config = tiny_config(**changes)
    if config.model_type == "deepseek_v3":
        config = config.with_budget(linear_budget(config))
    model = random_model(config)
    other = native(model, kernels, "float32")
    assert other.stack is not None
    tokens_BS, pages = random_tokens(config, 1, 13), Pages(other.stack, config, 1)
    budgets = [2.5] * 13 if config.has_budget else None
    budget_BT = None if budgets is None else torch.tensor([budgets])
    fractions_T = None if budget_BT is None else model.fractions(budget_BT, tokens_BS)
    with torch.no_grad():
        expected_TD = model(tokens_BS, budget=budget_BT)[0]
        found_TD = run(other, tokens_BS[0], pages.step([(0, 0, 13)], fractions_T))
    torch.testing.assert_close(found_TD, expected_TD, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize(
    ("changes", "length", "most"), [({"q_lora_rank": 12}, 40, 0.02), (TILED, 200, 0.05)]
)
def test_rounded_kinds_stay_close_to_their_modules(
    kernels: NativeKernels, kind: WeightKind, changes: dict[str, int], length: int, most: float
) -> None:
    config = tiny_config(**changes)
    model = native(random_model(config), kernels, kind)
    assert model.stack is not None
    tokens_BS, pages = random_tokens(config, 1, length), Pages(model.stack, config, 1)
    with torch.no_grad():
        expected_TD = model(tokens_BS)[0]
        found_TD = run(model, tokens_BS[0], pages.step([(0, 0, length)]))
    # Latents, queries and attention's weights are bfloat16 in the stack, float32 in the modules.
    error = (found_TD - expected_TD).norm() / expected_TD.norm()
    assert error < most


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize(
    ("changes", "block_size"), [({"q_lora_rank": 12}, BLOCK), (TILED, BLOCK), (TILED, 64)]
)
def test_rows_keep_their_bits_however_they_come(
    kernels: NativeKernels, kind: WeightKind, changes: dict[str, int], block_size: int
) -> None:
    config = tiny_config(**changes)
    model = native(random_model(config), kernels, kind)
    assert model.stack is not None
    length = 1100 if kernels.name != "portable" else 70
    tokens = random_tokens(config, 1, length)[0]
    pages = Pages(model.stack, config, 1, block_size)
    with torch.no_grad():
        whole_TD = run(model, tokens, pages.step([(0, 0, length)]))
        for chunk in (1, 7, 300):
            start = length - 3 * chunk if chunk < 100 else 0
            for first in range(max(start, 0), length, chunk):
                last = min(first + chunk, length)
                part_TD = run(model, tokens[first:last], pages.step([(0, first, last)]))
                assert torch.equal(part_TD, whole_TD[first:last]), (chunk, first)


@pytest.mark.parametrize(("kind", "changes"), [("float32", {}), ("int4", {}), ("bfloat16", TILED)])
def test_rows_keep_their_bits_beside_others(
    kernels: NativeKernels, kind: WeightKind, changes: dict[str, int]
) -> None:
    config = tiny_config(**changes)
    model = native(random_model(config), kernels, kind)
    assert model.stack is not None
    lengths = [3, 17, 1, 64, 65, 9, 90, 40]
    tokens = [random_tokens(config, 1, length, seed=length)[0] for length in lengths]
    pages = Pages(model.stack, config, len(lengths))
    with torch.no_grad():
        alone = [
            run(model, ids, pages.step([(number, 0, len(ids))]))
            for number, ids in enumerate(tokens)
        ]
        parts = [(number, 0, len(ids)) for number, ids in enumerate(tokens)]
        together_TD = run(model, torch.cat(tokens), pages.step(parts))
    assert torch.equal(together_TD, torch.cat(alone))


def test_an_mtp_module_equals_its_twin(kernels: NativeKernels) -> None:
    config = tiny_config(num_nextn_predict_layers=2)
    model = random_model(config)
    other = native(model, kernels, "float32")
    assert other.stack is not None
    tokens_BS, pages = random_tokens(config, 1, 9), Pages(other.stack, config, 1)
    hidden_BSD = torch.randn(1, 9, config.hidden_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for depth in (0, 1):
            expected_TD = model.look_ahead(hidden_BSD, tokens_BS, depth)[0]
            found_TD = other.embed(tokens_BS[0])
            layer = config.num_hidden_layers + depth
            other.stack.draft(found_TD, hidden_BSD[0], layer, pages.step([(0, 0, 9)]))
            torch.testing.assert_close(found_TD, expected_TD, atol=1e-4, rtol=1e-4)


def test_decoding_continues_from_the_pages(kernels: NativeKernels) -> None:
    config = tiny_config(q_lora_rank=12)
    model = random_model(config)
    other = native(model, kernels, "float32")
    assert other.stack is not None
    tokens_BS, pages = random_tokens(config, 1, 20), Pages(other.stack, config, 1)
    cache = ContiguousCache(config, 20)
    with torch.no_grad():
        for first, last in ((0, 11), (11, 12), (12, 20)):
            expected_TD = model(tokens_BS[:, first:last], cache=cache)[0]
            found_TD = run(other, tokens_BS[0, first:last], pages.step([(0, first, last)]))
            torch.testing.assert_close(found_TD, expected_TD, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [*CONFIGS, TILED])
def test_an_expanded_prompt_equals_the_modules(
    kernels: NativeKernels, changes: dict[str, object]
) -> None:
    config = tiny_config(**changes)
    model = random_model(config)
    other = native(model, kernels, "float32")
    assert other.stack is not None
    other.stack.expand_prompts()
    tokens_BS = random_tokens(config, 1, 400)
    pages, cache = Pages(other.stack, config, 1), ContiguousCache(config, 400)
    # A prompt in two pieces, and an answer's token behind it.
    with torch.no_grad():
        for first, last in ((0, 290), (290, 399), (399, 400)):
            expected_TD = model(tokens_BS[:, first:last], cache=cache)[0]
            step = pages.step([(0, first, last)], may_expand=True)
            found_TD = run(other, tokens_BS[0, first:last], step)
            torch.testing.assert_close(found_TD, expected_TD, atol=2e-4, rtol=2e-4)
        absorbed_TD = run(other, tokens_BS[0, :290], pages.step([(0, 0, 290)]))
        step = pages.step([(0, 0, 290)], may_expand=True)
        assert not torch.equal(absorbed_TD, run(other, tokens_BS[0, :290], step))


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("changes", [{"q_lora_rank": 12}, TILED])
def test_only_a_long_prompt_is_expanded_and_stays_close(
    kernels: NativeKernels, kind: WeightKind, changes: dict[str, int]
) -> None:
    config = tiny_config(**changes)
    model = native(random_model(config), kernels, kind)
    assert model.stack is not None
    model.stack.expand_prompts()
    tokens, found = random_tokens(config, 1, 304)[0], []
    parts = [(0, 0, 300), (1, 0, 1), (2, 0, 3)]
    with torch.no_grad():
        for may_expand in (False, True):
            pages = Pages(model.stack, config, 4)
            found.append(run(model, tokens, pages.step(parts, may_expand=may_expand)))
    absorbed_TD, expanded_TD = found
    assert torch.equal(absorbed_TD[300:], expanded_TD[300:])
    error = (expanded_TD - absorbed_TD)[:300].norm() / absorbed_TD[:300].norm()
    assert 0 < error < 0.05


def test_more_groups_and_rotary_numbers_than_any_model_has(kernels: NativeKernels) -> None:
    config = tiny_config(
        n_routed_experts=600, n_group=300, topk_group=150, moe_intermediate_size=4,
        qk_rope_head_dim=1040, num_hidden_layers=2, first_k_dense_replace=1,
    )  # fmt: skip
    model = random_model(config)
    other = native(model, kernels, "float32")
    assert other.stack is not None
    tokens_BS, pages = random_tokens(config, 1, 5), Pages(other.stack, config, 1)
    with torch.no_grad():
        expected_TD = model(tokens_BS)[0]
        found_TD = run(other, tokens_BS[0], pages.step([(0, 0, 5)]))
    torch.testing.assert_close(found_TD, expected_TD, atol=1e-4, rtol=1e-4)


def test_a_sequence_without_rows_changes_nothing(kernels: NativeKernels) -> None:
    config = tiny_config()
    model = native(random_model(config), kernels, "float32")
    assert model.stack is not None
    tokens = random_tokens(config, 1, 9)[0]
    found = []
    for parts in ([(1, 0, 9)], [(0, 0, 0), (1, 0, 9), (0, 3, 3)]):
        with torch.no_grad():
            found.append(run(model, tokens, Pages(model.stack, config, 2).step(parts)))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("kind", "changes", "last"),
    [("float32", {}, 6), ("bfloat16", {}, 6), ("bfloat16", TILED, 6), ("bfloat16", TILED, 130)],
)
def test_a_token_without_numbers_leaves_those_before_it_as_they_are(
    kernels: NativeKernels, kind: WeightKind, changes: dict[str, int], last: int
) -> None:
    config = tiny_config(**changes)
    model = native(random_model(config), kernels, kind)
    assert model.stack is not None
    x_TD, layers = torch.randn(last + 1, config.hidden_size), range(config.num_hidden_layers)
    found = []
    for number in (0.5, float("nan")):
        found.append(x_TD.clone())
        found[-1][last] = number
        step = Pages(model.stack, config, 1).step([(0, 0, last + 1)])
        model.stack.run(found[-1], layers, step, has_final_norm=True)
    assert bool(found[1][last].isnan().all())
    assert torch.equal(found[0][:last], found[1][:last])


def test_rows_of_nothing_but_nan_choose_every_expert_once(kernels: NativeKernels) -> None:
    config = tiny_config()
    model = native(random_model(config), kernels, "float32")
    assert model.stack is not None
    x_TD = torch.full((3, config.hidden_size), float("nan"))
    pages = Pages(model.stack, config, 1)
    layers = range(config.num_hidden_layers)
    experts_LTK = model.stack.run(x_TD, layers, pages.step([(0, 0, 3)]), True).experts_LTK
    ordered_LTK = experts_LTK.sort(dim=-1).values
    assert bool((ordered_LTK.diff(dim=-1) > 0).all())
    assert bool(x_TD.isnan().all())


def test_a_step_that_does_not_fit_its_rows_is_refused(kernels: NativeKernels) -> None:
    config = tiny_config()
    model = native(random_model(config), kernels, "float32")
    assert model.stack is not None
    step = Pages(model.stack, config, 1).step([(0, 0, 4)])
    with pytest.raises(AssertionError):
        run(model, random_tokens(config, 1, 5)[0], step)


def test_no_layers_leave_but_the_final_norm(kernels: NativeKernels) -> None:
    model = native(random_model(tiny_config(num_nextn_predict_layers=1)), kernels, "float32")
    assert model.stack is not None
    step = Pages(model.stack, model.config, 1).step([(0, 0, 3)])
    x_TD = model.embed(torch.tensor([1, 2, 3])).detach()
    num_layers = len(model.stack.layers)
    for layers in (range(0), range(num_layers, num_layers)):
        found_TD = x_TD.clone()
        model.stack.run(found_TD, layers, step, has_final_norm=True)
        torch.testing.assert_close(found_TD, model.norm(x_TD).detach())


@pytest.mark.parametrize(
    ("token", "num_steps", "error", "message"),
    [(-1, 1, IndexError, "no such token"), (10**6, 1, IndexError, "no such token"),
     (1, 0, ValueError, "by a step at least")],
)  # fmt: skip
def test_answers_that_cannot_go_on_are_refused(
    kernels: NativeKernels, token: int, num_steps: int, error: type[Exception], message: str
) -> None:
    model = native(random_model(tiny_config()), kernels, "float32")
    assert model.stack is not None
    layers = range(model.config.num_hidden_layers)
    step = Pages(model.stack, model.config, 1).step([(0, 0, 1)])
    row = PickRow(0, Sampling(temperature=0.0), seed=0, position=0)
    with pytest.raises(error, match=message):
        model.stack.decode(torch.tensor([token]), layers, step, [row], [()], num_steps)
