"""A model's shape <-> the metadata of llama.cpp's `deepseek2` architecture. No torch.

llama.cpp reads YaRN's `yarn_log_multiplier` here as a tenth of `mscale_all_dim`, takes `mscale` to
be the same, and knows one group rule; what it cannot say is refused. Next: gguf_names.py.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

from moestro import settings
from moestro.errors import CheckpointError, ConfigError
from moestro.gguf_file import GgufFile, Value
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.rope_config import RopeConfig

ARCHITECTURE = "deepseek2"
_BUDGET_KEY = "moestro.budget"
_SOFTMAX, _SIGMOID = 1, 2
_LOG_MULTIPLIER = 0.1


def read_config(file: GgufFile) -> ModelConfig:
    """Read the shape of the model in a file; CheckpointError says what it lacks."""
    found = file.metadata.get("general.architecture")
    if found != ARCHITECTURE:
        raise CheckpointError(
            f"{file.path}: general.architecture is {found!r}: Moestro reads {ARCHITECTURE}"
        )
    try:
        config = _read(_Keys(file))
        _check_counts(file, config)
        # As from config.json: JSON within may hold any type under any key.
        return settings.build(ModelConfig, settings.to_tables(config))
    except ConfigError as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    except (
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"{file.path}: a value has the wrong type ({error}): convert the model anew"
        ) from error


def _check_counts(file: GgufFile, config: ModelConfig) -> None:
    """Refuse counts that the tensors contradict, before anything is made in such numbers."""
    layers, experts = config.num_hidden_layers, config.n_routed_experts
    name = f"blk.{config.first_k_dense_replace}.ffn_gate_exps.weight"
    place = file.tensors.get(name)
    if layers > len(file.tensors):
        raise ConfigError(f"block_count is {layers}, but there are {len(file.tensors)} tensors")
    if has_experts(config) and (place is None or place.shape[0] != experts):
        shape = "missing" if place is None else f"of shape {list(place.shape)}"
        raise ConfigError(f"expert_count is {experts}, but {name} is {shape}")


def check_expressible(config: ModelConfig) -> None:
    """Raise ConfigError for a shape that llama.cpp's architecture has no words for."""
    stretch = config.rope
    given = stretch.attention_factor
    is_plain = given is None and stretch.mscale and stretch.mscale == stretch.mscale_all_dim
    has_stretch = stretch.kind == "yarn" and stretch.factor > 1
    wrong = {
        "attention_bias is true": config.attention_bias,
        "n_shared_experts is 0": config.n_shared_experts == 0 and has_experts(config),
        "topk_method is 'group_limited_greedy'": config.topk_method == "group_limited_greedy"
        and config.n_group > 1,
        "rope's mscale and mscale_all_dim differ, or an attention_factor is given": has_stretch
        and not is_plain,
        "rope's truncate is false": has_stretch and not stretch.truncate,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(
                f"{what}: llama.cpp's {ARCHITECTURE} has no word for that: write --to hf"
            )


def has_experts(config: ModelConfig) -> bool:
    """Say whether any layer is sparse."""
    return config.first_k_dense_replace < config.num_hidden_layers


def write_config(config: ModelConfig) -> dict[str, Value]:
    """Return the metadata of a shape, without its MTP modules."""
    nope, rotary = config.qk_nope_head_dim, config.qk_rope_head_dim
    has_groups = config.topk_group < config.n_group
    values: dict[str, Value] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "leading_dense_block_count": min(config.first_k_dense_replace, config.num_hidden_layers),
        "attention.head_count": config.num_attention_heads,
        # Absorbed, all heads share one key and one value: the latent, and its rotary part.
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + rotary,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": nope + rotary,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": rotary,
        "rope.freq_base": config.rope.theta,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": float(config.gate_scale),
        "expert_weights_norm": config.has_normalized_gate,
        "expert_gating_func": _SIGMOID if config.model_type == "deepseek_v3" else _SOFTMAX,
        "expert_group_count": config.n_group if has_groups else 1,
        "expert_group_used_count": config.topk_group if has_groups else 1,
    }
    if config.q_lora_rank is not None:
        values["attention.q_lora_rank"] = config.q_lora_rank
    values |= _write_rope(config.rope)
    named = {f"{ARCHITECTURE}.{key}": value for key, value in values.items()}
    return named | _write_budget(config)


def _write_rope(rope: RopeConfig) -> dict[str, Value]:
    if rope.kind != "yarn":
        return {}
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope.factor),
        "rope.scaling.original_context_length": rope.original_max_position_embeddings,
        "rope.scaling.yarn_beta_fast": float(rope.beta_fast),
        "rope.scaling.yarn_beta_slow": float(rope.beta_slow),
        "rope.scaling.yarn_log_multiplier": _LOG_MULTIPLIER * (rope.mscale_all_dim or 0.0),
    }


def _write_budget(config: ModelConfig) -> dict[str, Value]:
    """Keep what is ours in a key that llama.cpp does not know: it takes all experts anyway."""
    if config.min_experts_per_tok is None:
        return {}
    num_layers = max(config.num_hidden_layers - config.first_k_dense_replace, 0)
    table = {
        "min_experts_per_tok": config.min_experts_per_tok,
        "fractions": config.budget.fractions,
        "thresholds": config.budget.thresholds[:num_layers],
    }
    return {_BUDGET_KEY: json.dumps(table)}


class _Keys:
    """The architecture's metadata, each value of the type asked for."""

    def __init__(self, file: GgufFile) -> None:
        self._path: Path = file.path
        # No side of a tensor can be longer than the file that holds it.
        self._largest = file.num_bytes
        self._metadata = file.metadata

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._find(key, default)
        # A count for each layer, as some converters write it, all the same.
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(key, value, "a whole number")
        return value

    def size(self, key: str) -> int:
        value = self.integer(key)
        if value > self._largest:
            raise self._wrong(key, value, f"at most {self._largest}")
        return value

    def optional(self, key: str) -> int | None:
        return self.size(key) if self.has(key) else None

    def number(self, key: str, default: float | None = None) -> float:
        value = self._find(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        if not math.isfinite(value):
            raise self._wrong(key, value, "a finite number")
        # Numbers are float32 there; the shortest decimal that gives it is the one meant.
        return _shortest(float(value))

    def flag(self, key: str) -> bool:
        return self._find(key, default=False) is True

    def text(self, key: str, default: str) -> str:
        value = self._find(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "text")
        return value

    def has(self, key: str) -> bool:
        return f"{ARCHITECTURE}.{key}" in self._metadata

    def table(self, key: str) -> dict[str, Any]:
        return dict(json.loads(str(self._metadata.get(key, "{}"))))

    def token_id(self, name: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if type(value) is int else None

    def length(self, key: str) -> int | None:
        values = self._metadata.get(key)
        return len(values) if isinstance(values, list) else None

    def _find(self, key: str, default: Value | None) -> Value:
        value = self._metadata.get(f"{ARCHITECTURE}.{key}", default)
        if value is None:
            raise CheckpointError(
                f"{self._path}: lacks {ARCHITECTURE}.{key}: convert the model anew"
            )
        return value

    def _wrong(self, key: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: {ARCHITECTURE}.{key} is {str(value)[:100]!r}, expected {wanted}:"
            " convert the model anew"
        )


def _read(keys: _Keys) -> ModelConfig:
    rotary = keys.size("rope.dimension_count")
    is_absorbed = keys.has("attention.key_length_mla")
    suffix = "_mla" if is_absorbed else ""
    is_sigmoid = keys.integer("expert_gating_func", _SOFTMAX) == _SIGMOID
    kind: Literal["deepseek_v3", "deepseek_v2"] = "deepseek_v3" if is_sigmoid else "deepseek_v2"
    num_layers = keys.integer("block_count") - keys.integer("nextn_predict_layers", 0)
    vocab_size = keys.optional("vocab_size") or keys.length("tokenizer.ggml.tokens")
    groups = max(keys.integer("expert_group_count", 1), 1)
    table = keys.table(_BUDGET_KEY)
    # 0 means that nothing is scaled.
    scale = keys.number("expert_weights_scale", 1.0) or 1.0
    config = ModelConfig(
        model_type=kind,
        vocab_size=vocab_size or 0,
        hidden_size=keys.size("embedding_length"),
        intermediate_size=keys.size("feed_forward_length"),
        moe_intermediate_size=keys.size("expert_feed_forward_length"),
        num_hidden_layers=num_layers,
        num_attention_heads=keys.size("attention.head_count"),
        n_routed_experts=keys.size("expert_count"),
        num_experts_per_tok=keys.size("expert_used_count"),
        min_experts_per_tok=table.get("min_experts_per_tok"),
        n_shared_experts=keys.size("expert_shared_count"),
        first_k_dense_replace=keys.integer("leading_dense_block_count", 0),
        n_group=groups,
        topk_group=max(keys.integer("expert_group_used_count", groups), 1),
        topk_method="noaux_tc" if is_sigmoid else "greedy",
        norm_topk_prob=keys.flag("expert_weights_norm"),
        routed_scaling_factor=scale,
        q_lora_rank=keys.optional("attention.q_lora_rank"),
        kv_lora_rank=keys.size("attention.kv_lora_rank"),
        qk_nope_head_dim=keys.size(f"attention.key_length{suffix}") - rotary,
        qk_rope_head_dim=rotary,
        v_head_dim=keys.size(f"attention.value_length{suffix}"),
        max_position_embeddings=keys.integer("context_length"),
        rope=_read_rope(keys),
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        budget=BudgetConfig(
            fractions=tuple(table.get("fractions", ())),
            thresholds=tuple(tuple(row) for row in table.get("thresholds", ())),
        ),
    )
    if config.gate_scale != scale:
        raise ConfigError(
            f"expert_weights_scale is {scale} and expert_weights_norm is true: {kind} normalizes"
            " or scales the weights of experts, not both: convert the model anew"
        )
    bos_id, eos_id = keys.token_id("bos"), keys.token_id("eos")
    return dataclasses.replace(config, bos_token_id=bos_id, eos_token_id=eos_id)


def _read_rope(keys: _Keys) -> RopeConfig:
    theta = keys.number("rope.freq_base", 10000.0)
    kind = keys.text("rope.scaling.type", "none")
    if kind == "none":
        return RopeConfig(theta=theta)
    if kind != "yarn":
        raise ConfigError(f"rope type is {kind!r}: Moestro knows none and yarn")
    scale = _shortest(keys.number("rope.scaling.yarn_log_multiplier", 0.0) / _LOG_MULTIPLIER)
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=keys.number("rope.scaling.factor"),
        original_max_position_embeddings=keys.integer("rope.scaling.original_context_length"),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        mscale=scale or None,
        mscale_all_dim=scale or None,
    )


def _shortest(value: float) -> float:
    return float(f"{value:.7g}")
