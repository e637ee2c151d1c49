"""A fresh model that copies: what is planted, for which shapes, and what stays as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moestro.model.config import ModelConfig
from moestro.model.induction import plant_induction
from moestro.model.initialize import initialize
from moestro.model.model import Transformer
from moestro.model.rope_config import RopeConfig

_SHAPE = {
    "vocab_size": 512, "hidden_size": 96, "intermediate_size": 128, "moe_intermediate_size": 32,
    "num_hidden_layers": 3, "num_attention_heads": 3, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "kv_lora_rank": 48, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "max_position_embeddings": 512,
    "initializer_range": 0.05,
}  # fmt: skip


def fresh(is_planted: bool, seed: int = 0, **changes: object) -> Transformer:
    """Build a model with first weights, the circuit over them or not."""
    model = Transformer(ModelConfig(**(_SHAPE | changes)))  # type: ignore[arg-type]
    initialize(model, seed)
    if is_planted:
        assert plant_induction(model, seed)
    return model


@torch.no_grad()
def readings(model: Transformer) -> tuple[float, float]:
    """Nats per token of random tokens at their first and at their second reading."""
    generator = torch.Generator().manual_seed(3)
    once_BS = torch.randint(model.config.vocab_size, (8, 100), generator=generator)
    twice_BS: Tensor = torch.cat([once_BS, once_BS], dim=1)
    logits_BSV = model.logits(model(twice_BS[:, :-1]))
    nats_BS = F.cross_entropy(logits_BSV.mT, twice_BS[:, 1:], reduction="none")
    return float(nats_BS[:, :99].mean()), float(nats_BS[:, 100:].mean())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q_lora_rank": 64},
        {"rope_interleave": False},
        {"rope": RopeConfig(theta=50_000.0)},
        {"qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "initializer_range": 0.02},
        {"first_k_dense_replace": 3, "num_hidden_layers": 3},
    ],
)
def test_a_fresh_model_predicts_what_it_reads_a_second_time(changes: dict[str, object]) -> None:
    plain_first, plain_second = readings(fresh(is_planted=False, **changes))
    assert plain_second == pytest.approx(plain_first, abs=0.05)
    first, second = readings(fresh(is_planted=True, **changes))
    assert second < first - 0.7
    assert first < plain_first + 0.3


@torch.no_grad()
def test_a_fresh_mtp_module_predicts_what_it_reads_a_second_time() -> None:
    model = fresh(is_planted=True, num_nextn_predict_layers=1)
    once_BS = torch.randint(512, (8, 100), generator=torch.Generator().manual_seed(3))
    twice_BS = torch.cat([once_BS, once_BS], dim=1)
    ahead_BSD = model.look_ahead(model(twice_BS[:, :-2]), twice_BS[:, 1:-1], 0)
    nats_BS = F.cross_entropy(model.logits(ahead_BSD).mT, twice_BS[:, 2:], reduction="none")
    assert float(nats_BS[:, 100:].mean()) < float(nats_BS[:, :98].mean()) - 0.7


def test_a_seed_gives_one_circuit() -> None:
    same, again, other = (fresh(is_planted=True, seed=seed) for seed in (5, 5, 6))
    key = "layers.1.self_attn.q_proj.weight"
    assert torch.equal(same.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(same.state_dict()[key], other.state_dict()[key])


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 1}, {"tie_word_embeddings": True}])
def test_a_shape_without_room_keeps_its_first_weights(changes: dict[str, object]) -> None:
    model, untouched = fresh(is_planted=False, **changes), fresh(is_planted=False, **changes)
    assert not plant_induction(model, 0)
    kept = untouched.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
