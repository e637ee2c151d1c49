"""The shape of a model, in the checkpoint's own words. No torch, no files.

`from_hf` and `to_hf` read and write the mapping in `config.json`. Next: rope_config.py,
presets.py, model.py.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from moestro.errors import ConfigError
from moestro.model.rope_config import RopeConfig

ModelType = Literal["deepseek_v3", "deepseek_v2"]
TopkMethod = Literal["noaux_tc", "greedy", "group_limited_greedy"]

# Spellings of the same key: transformers 5's on the left, DeepSeek's on the right.
_ALIASES = {"num_mtp_layers": "num_nextn_predict_layers", "num_local_experts": "n_routed_experts"}
# Published under other names, with DeepSeek-V3's architecture.
_SAME_ARCHITECTURE = {"kimi_k2": "deepseek_v3"}
_ARCHITECTURES = {"deepseek_v3": "DeepseekV3ForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM"}


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """The learned table of thresholds; written by training and `moestro convert --calibrate`.

    A further expert's selection score, less that of the last expert that its token always takes,
    must be above its threshold. An empty table means that the model always takes
    `num_experts_per_tok` experts.
    """

    fractions: tuple[float, ...] = ()
    """The grid of budgets: `min + fractions[i] * (max - min)`."""
    thresholds: tuple[tuple[float, ...], ...] = ()
    """`thresholds[layer][i]` belongs to the i-th budget; MTP modules' layers follow the main ones.
    Limits: at most 0 each."""

    def __post_init__(self) -> None:
        """Refuse a table that was made for scores as such, not for distances."""
        highest = max((value for row in self.thresholds for value in row), default=0.0)
        if highest > 0:
            raise ConfigError(
                f"budget: a threshold is {highest}, but no further expert's score is above the"
                " last certain one's: calibrate the model anew"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A DeepSeek-V3 or -V2 shape. Names and meanings are those of the published `config.json`."""

    model_type: ModelType = "deepseek_v3"
    """The architecture; deepseek_v2 gates by softmax, deepseek_v3 by sigmoid."""
    vocab_size: int
    """Tokens of the vocabulary. Limits: 1 or more."""
    hidden_size: int
    """Width of the residual stream. Limits: 1 or more."""
    intermediate_size: int
    """Width of a dense layer's feed-forward. Limits: 1 or more."""
    moe_intermediate_size: int
    """Width of one expert. Limits: 1 or more."""
    num_hidden_layers: int
    """Layers, MTP modules not counted. Limits: 1 or more."""
    num_attention_heads: int
    """Attention heads. Limits: 1 or more."""
    n_routed_experts: int
    """Experts of a layer to choose among. Limits: 1 or more."""
    num_experts_per_tok: int
    """The most experts that a token takes. Limits: 1 or more, at most `n_routed_experts`."""
    min_experts_per_tok: int | None = None
    """Experts that every token takes, whatever the budget; none: as many as the most.
    Limits: 1 or more, at most `num_experts_per_tok`."""
    n_shared_experts: int = 1
    """Experts that every token visits besides. Limits: 0 or more."""
    first_k_dense_replace: int = 0
    """The first layers that are dense, without experts.
    Limits: 0 or more, at most `num_hidden_layers`."""
    n_group: int = 1
    """Groups that the experts are divided into. Limits: 1 or more, divides `n_routed_experts`."""
    topk_group: int = 1
    """Groups that a token may choose from. Limits: 1 or more, at most `n_group`."""
    topk_method: TopkMethod = "noaux_tc"
    """How experts are chosen: noaux_tc is deepseek_v3's, the others deepseek_v2's."""
    norm_topk_prob: bool = True
    """Make the weights of a token's experts sum to 1."""
    routed_scaling_factor: float = 1.0
    """What the weights of a token's experts are multiplied by. Limits: above 0."""
    q_lora_rank: int | None = None
    """Width of the compressed query; none leaves queries whole. Limits: 1 or more."""
    kv_lora_rank: int
    """Width of the latent that keys and values are made from, which the cache holds.
    Limits: 1 or more."""
    qk_nope_head_dim: int
    """Width of a head's query and key without positions. Limits: 1 or more."""
    qk_rope_head_dim: int
    """Width of a head's query and key with rotary positions. Limits: 2 or more, even."""
    v_head_dim: int
    """Width of a head's value. Limits: 1 or more."""
    attention_bias: bool = False
    """Whether attention's projections have biases."""
    max_position_embeddings: int = 4096
    """The longest context, in tokens. Limits: 1 or more."""
    rope: RopeConfig = RopeConfig()
    rope_interleave: bool = True
    """Whether rotary pairs lie side by side, as DeepSeek's do."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in every norm. Limits: above 0."""
    num_nextn_predict_layers: int = 0
    """MTP modules, each of which looks one more token ahead. Limits: 0 or more."""
    tie_word_embeddings: bool = False
    """Whether the head shares the embeddings' weights."""
    initializer_range: float = 0.02
    """Standard deviation of first weights. Limits: above 0."""
    bos_token_id: int | None = None
    """The token that begins a text."""
    eos_token_id: int | None = None
    """The token that ends a text."""
    budget: BudgetConfig = BudgetConfig()
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys of a `config.json` that have no meaning here, kept for whoever reads it next."""

    def __post_init__(self) -> None:
        """Refuse a shape that no model can have."""
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("n_shared_experts", "num_nextn_predict_layers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("routed_scaling_factor", "rms_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ConfigError(f"{name} is {value!r}: it must be a finite number above 0")
        if self.q_lora_rank is not None and self.q_lora_rank < 1:
            raise ConfigError(f"q_lora_rank is {self.q_lora_rank}: leave it out for none")
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"qk_rope_head_dim is {self.qk_rope_head_dim}: rotary pairs need an even number"
            )
        if not 0 <= self.first_k_dense_replace <= self.num_hidden_layers:
            raise ConfigError(
                f"first_k_dense_replace is {self.first_k_dense_replace},"
                f" but there are {self.num_hidden_layers} layers"
            )
        _check_gate(self)
        _check_budget(self)

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """Layers with a gate, MTP modules included."""
        return self.num_hidden_layers - self.first_k_dense_replace + self.num_nextn_predict_layers

    @property
    def scoring_func(self) -> Literal["sigmoid", "softmax"]:
        """What turns the gate's logits to affinities."""
        return "sigmoid" if self.model_type == "deepseek_v3" else "softmax"

    @property
    def has_balance_bias(self) -> bool:
        """Whether the gate holds DeepSeek-V3's `e_score_correction_bias`."""
        return self.model_type == "deepseek_v3"

    @property
    def has_normalized_gate(self) -> bool:
        """Whether the weights of a token's experts are made to sum to 1, before `gate_scale`."""
        # DeepSeek-V2's code leaves a single expert's weight as it is.
        is_single = self.model_type == "deepseek_v2" and self.num_experts_per_tok == 1
        return self.norm_topk_prob and not is_single

    @property
    def gate_scale(self) -> float:
        """What the weights of a token's experts are multiplied by."""
        # DeepSeek-V3's code normalizes and scales, DeepSeek-V2's does the one or the other.
        is_unscaled = self.model_type == "deepseek_v2" and self.has_normalized_gate
        return 1.0 if is_unscaled else self.routed_scaling_factor

    @property
    def has_budget(self) -> bool:
        """Whether a token may take fewer than `num_experts_per_tok` experts."""
        return bool(self.budget.thresholds)

    @property
    def fewest_experts(self) -> int:
        """Experts that every token takes, whatever the budget."""
        fewest = self.min_experts_per_tok
        return self.num_experts_per_tok if fewest is None else fewest

    def with_budget(self, budget: BudgetConfig) -> "ModelConfig":
        """Return the same shape with another budget table."""
        return dataclasses.replace(self, budget=budget)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "ModelConfig":
        """Read the mapping in a `config.json`; keys without a meaning here are kept in `extra`."""
        kind = _SAME_ARCHITECTURE.get(raw.get("model_type", ""), raw.get("model_type"))
        if kind not in _ARCHITECTURES:
            raise ConfigError(f"model_type is {kind!r}: Moestro loads deepseek_v3 and deepseek_v2")
        values = {_ALIASES.get(key, key): value for key, value in raw.items()}
        values["model_type"] = kind
        known = {item.name for item in dataclasses.fields(cls)} - {"rope", "budget", "extra"}
        chosen = _V2_DEFAULTS | values if kind == "deepseek_v2" else _V3_DEFAULTS | values
        missing = [name for name in _REQUIRED if chosen.get(name) is None]
        if missing:
            raise ConfigError(f"{missing[0]} is missing from the model's configuration")
        wrong = [name for name in _REQUIRED if type(chosen[name]) is not int]
        if wrong:
            raise ConfigError(f"{wrong[0]} is {chosen[wrong[0]]!r}: expected a whole number")
        _check_supported(chosen)
        eos = chosen.get("eos_token_id")
        chosen["eos_token_id"] = eos[0] if isinstance(eos, list) else eos
        chosen["n_shared_experts"] = chosen.get("n_shared_experts", 1) or 0
        arguments = {
            key: value
            for key, value in chosen.items()
            if key in known and (value is not None or key in _NULLABLE)
        }
        extra = {
            key: value
            for key, value in raw.items()
            if _ALIASES.get(key, key) not in known | _RENDERED | _OF_ITS_CODE
        }
        if isinstance(eos, list):
            extra["eos_token_id"] = eos
        return cls(
            **arguments, rope=RopeConfig.from_hf(values), budget=_read_budget(values), extra=extra
        )

    def to_hf(self) -> dict[str, Any]:
        """Write the mapping for a `config.json`, in the spelling that DeepSeek published."""
        kind = self.model_type
        own = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name not in ("rope", "budget", "extra", "min_experts_per_tok")
        }
        values = dict(self.extra) | {"architectures": [_ARCHITECTURES[kind]]} | own
        values["scoring_func"] = self.scoring_func
        values |= {"hidden_act": "silu", "moe_layer_freq": 1}
        values["num_key_value_heads"] = self.num_attention_heads
        values |= {"rope_theta": self.rope.theta, "rope_scaling": self.rope.to_hf()}
        if self.min_experts_per_tok is not None:
            values["min_experts_per_tok"] = self.min_experts_per_tok
        if self.has_budget:
            values["budget"] = {
                "fractions": list(self.budget.fractions),
                "thresholds": [list(row) for row in self.budget.thresholds],
            }
        if "eos_token_id" in self.extra:
            values["eos_token_id"] = self.extra["eos_token_id"]
        return values


_REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size",
    "num_hidden_layers", "num_attention_heads", "n_routed_experts", "num_experts_per_tok",
    "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
)  # fmt: skip
_POSITIVE = (*_REQUIRED, "n_group", "topk_group", "max_position_embeddings")
_NULLABLE = {"q_lora_rank", "bos_token_id", "eos_token_id"}
# Keys that `to_hf` derives from others, so that keeping the old value could contradict the new one.
_RENDERED = {
    "rope_theta", "rope_scaling", "rope_parameters", "budget", "architectures", "scoring_func",
    "hidden_act", "moe_layer_freq", "num_key_value_heads", "head_dim", "qk_head_dim",
    "quantization_config", "torch_dtype", "dtype",
}  # fmt: skip
# Names Python files that what is written does not come with: nobody must look for them there.
_OF_ITS_CODE = {"auto_map"}
# What the published modelling code assumes where a key is absent.
_V3_DEFAULTS: dict[str, Any] = {"n_group": 1, "topk_group": 1, "topk_method": "noaux_tc"}
_V2_DEFAULTS: dict[str, Any] = _V3_DEFAULTS | {"topk_method": "greedy", "norm_topk_prob": False}


def _check_gate(config: ModelConfig) -> None:
    chosen, experts = config.num_experts_per_tok, config.n_routed_experts
    if chosen > experts:
        raise ConfigError(f"num_experts_per_tok is {chosen}, but there are {experts} experts")
    if experts % config.n_group:
        raise ConfigError(f"n_group is {config.n_group}: {experts} experts do not divide into it")
    if config.topk_group > config.n_group:
        raise ConfigError(
            f"topk_group is {config.topk_group}, but there are {config.n_group} groups"
        )
    # A greedy choice looks at no groups, whatever the configuration says of them.
    reachable = experts // config.n_group * config.topk_group
    if config.topk_method != "greedy" and chosen > reachable:
        raise ConfigError(
            f"num_experts_per_tok is {chosen}, but topk_group leaves {reachable} experts"
        )
    is_v3 = config.model_type == "deepseek_v3"
    if is_v3 != (config.topk_method == "noaux_tc"):
        raise ConfigError(
            f"topk_method is {config.topk_method!r}: not one of {config.model_type}'s"
        )
    if is_v3 and config.n_group > 1 and experts // config.n_group < 2:
        raise ConfigError(f"n_group is {config.n_group}: a group is scored by its best 2 experts")


def _check_budget(config: ModelConfig) -> None:
    fewest = config.min_experts_per_tok
    if fewest is not None and not 1 <= fewest <= config.num_experts_per_tok:
        raise ConfigError(
            f"min_experts_per_tok is {fewest}: it must lie between 1 and"
            f" num_experts_per_tok, {config.num_experts_per_tok}"
        )
    table = config.budget
    if any(len(row) != len(table.fractions) for row in table.thresholds):
        raise ConfigError(f"budget: each row of thresholds needs {len(table.fractions)} numbers")
    if config.has_budget and len(table.thresholds) != config.num_moe_layers:
        raise ConfigError(
            f"budget: {len(table.thresholds)} rows of thresholds,"
            f" but {config.num_moe_layers} MoE layers"
        )


def _check_supported(values: Mapping[str, Any]) -> None:
    kind = values["model_type"]
    scoring = "sigmoid" if kind == "deepseek_v3" else "softmax"
    wanted = {"hidden_act": "silu", "scoring_func": scoring, "moe_layer_freq": 1}
    for key, only in wanted.items():
        if values.get(key, only) != only:
            raise ConfigError(f"{key} is {values[key]!r}: a {kind} model has {only!r}")
    heads = values.get("num_key_value_heads") or values["num_attention_heads"]
    if heads != values["num_attention_heads"]:
        raise ConfigError(
            f"num_key_value_heads is {heads}: latent attention has one per query head"
        )


def _read_budget(values: Mapping[str, Any]) -> BudgetConfig:
    table = values.get("budget") or {}
    return BudgetConfig(
        fractions=tuple(table.get("fractions", ())),
        thresholds=tuple(tuple(row) for row in table.get("thresholds", ())),
    )
