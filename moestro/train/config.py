"""The settings of a training run. No torch; the other components' settings lie beside them.

Next: run.py, loop.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moestro import settings
from moestro.data.config import DataConfig, TokenizerConfig
from moestro.errors import ConfigError
from moestro.model.config import ModelConfig
from moestro.model.presets import preset_tables

# Each step's own seed is made from it, in 64 bits.
_LARGEST_SEED = 2**32 - 1

BalanceMethod = Literal["proportional", "sign", "quantile", "global_aux", "sequence_aux", "none"]


_BESIDE_MUON = 6e-3
# Beyond these no run can be meant, and what follows of them would be told less clearly.
_LARGEST_RATE = 100.0
_MOST_NEWTON_SCHULZ_STEPS = 100
_MOST_TOKENS_PER_STEP = 2**28


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Muon for matrices (AdamW for the rest), or AdamW for all; one learning rate serves both.

    With kind "adamw" all weights have `learning_rate`: best are 4e-3 to 1.2e-2 at a million
    parameters (benchmarks/quality_per_cost.py), less at more. `adamw_learning_rate` is that of
    embeddings, head, gates and norms beside Muon's matrices; another one with "adamw" is refused.
    """

    kind: Literal["muon", "adamw"] = "muon"
    """Which optimizer trains the matrices."""
    learning_rate: float = 8e-3
    """Learning rate at its highest; with kind "adamw" that of all weights. Limits: above 0, at most
    100."""
    adamw_learning_rate: float = _BESIDE_MUON
    """That of embeddings, head, gates and norms when the matrices are Muon's. Limits: above 0, at
    most 100."""
    weight_decay: float = 0.1
    """Decoupled weight decay, times the learning rate. Limits: 0 or more."""
    momentum: float = 0.95
    """Muon's momentum. Limits: 0 or more, below 1."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient. Limits: 0 or more, below 1."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient. Limits: 0 or more, below 1."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm. Limits: above 0."""
    newton_schulz_steps: int = 5
    """Iterations by which Muon makes an update orthogonal. Limits: 1 to 100."""

    def __post_init__(self) -> None:
        """Refuse rates that cannot train."""
        if not 0 < self.clip_norm < math.inf:
            raise ConfigError(f"clip_norm is {self.clip_norm}: it must be above 0, and finite")
        for name in ("learning_rate", "adamw_learning_rate"):
            if not 0 < getattr(self, name) <= _LARGEST_RATE:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}: it must be above 0, finite, and at most"
                    f" {_LARGEST_RATE:g}; usual are 1e-4 to 0.1"
                )
        if self.kind == "adamw" and self.adamw_learning_rate not in (
            self.learning_rate,
            _BESIDE_MUON,
        ):
            raise ConfigError(
                f"adamw_learning_rate is {self.adamw_learning_rate}, but with kind adamw all"
                f" weights have learning_rate, {self.learning_rate}: set that one"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"weight_decay is {self.weight_decay}: it must be 0 or more, and finite"
            )
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must lie in 0 to 1")
        if not 1 <= self.newton_schulz_steps <= _MOST_NEWTON_SCHULZ_STEPS:
            raise ConfigError(
                f"newton_schulz_steps is {self.newton_schulz_steps}: it must lie in 1 to"
                f" {_MOST_NEWTON_SCHULZ_STEPS}; 5 are enough"
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the run; both shapes warm up linearly. Shares are of all steps."""

    kind: Literal["wsd", "cosine"] = "wsd"
    """Warm-up, stable, decay; or a cosine."""
    warmup_share: float = 0.02
    """Share of steps over which the rate rises. Limits: 0 to 1."""
    decay_share: float = 0.5
    """Warm-up-stable-decay only: share of steps over which the rate falls, linearly.
    Limits: 0 to 1, with `warmup_share` not above 1."""
    final_ratio: float = 0.02
    """What the rate falls towards, as a share of the highest; a step after the last would have it.
    Limits: 0 to 1."""

    def __post_init__(self) -> None:
        """Refuse shares that do not fit into one run."""
        for name in ("warmup_share", "decay_share", "final_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must lie in 0 to 1")
        if self.kind == "wsd" and self.warmup_share + self.decay_share > 1:
            raise ConfigError("warmup_share + decay_share is above 1: shorten one of them")


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """How experts are kept equally busy."""

    method: BalanceMethod = "proportional"
    """By the gates' biases (proportional, sign, quantile), by an auxiliary loss (global_aux,
    sequence_aux), or not at all."""
    rate: float = 0.1
    """How far a bias method moves the biases in a step, at the highest learning rate.
    Limits: 0 or more."""
    weight: float = 1e-2
    """Weight of the auxiliary loss. Limits: 0 or more."""
    sequence_weight: float = 2e-2
    """Weight of the sequence-wise loss beside a bias method. Limits: 0 or more."""
    router_z_weight: float = 1e-4
    """Weight of the z-loss, which keeps the gates' logits small. Limits: 0 or more."""

    def __post_init__(self) -> None:
        """Refuse to drive loads apart."""
        for name in ("rate", "weight", "sequence_weight", "router_z_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}: it must be 0 or more, and finite"
                )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a checkpoint is written, and how many are kept."""

    every_s: float = 120.0
    """Seconds between two checkpoints. Limits: 0 or more."""
    every_steps: int | None = None
    """Steps between two checkpoints, instead of seconds. Limits: 1 or more."""
    keep: int = 2
    """How many of the latest are kept. Limits: 1 or more."""

    def __post_init__(self) -> None:
        """Refuse to keep none."""
        if self.every_s < 0:
            raise ConfigError(f"every_s is {self.every_s}: it must be 0 or more")
        if self.keep < 1:
            raise ConfigError(f"keep is {self.keep}: at least 1 checkpoint is kept")
        if self.every_steps is not None and self.every_steps < 1:
            raise ConfigError(f"every_steps is {self.every_steps}: at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batch and arithmetic of a run."""

    steps: int = 1000
    """Steps of the whole run. Limits: 1 or more."""
    seq_len: int = 256
    """Tokens of a sequence. Limits: 1 or more, at most `model.max_position_embeddings`."""
    batch_size: int = 16
    """Sequences of a step. Limits: 1 or more."""
    micro_batch_size: int | None = None
    """Sequences of one forward pass; none takes the whole batch at once. Thresholds of the budget
    are means over passes, so that with drawn budgets a run is near to one in whole batches, not
    equal. Limits: 1 or more, divides `batch_size`."""
    seed: int = 0
    """Decides first weights, the order of the data and the budgets drawn.
    Limits: 0 to 4294967295."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic; auto is the faster of the two on this machine."""
    device: str = "auto"
    """torch's name of the device; auto takes a GPU where there is one."""
    mtp_weight: float = 0.3
    """Weight of the multi-token prediction loss. Limits: 0 or more."""
    is_budget_drawn: bool = True
    """Draw each sequence's budget between the fewest and the most experts; else take the most."""
    is_induction_planted: bool = True
    """Begin with heads that already copy what the text repeats (model/induction.py)."""
    log_every: int = 1
    """Steps between two lines of metrics.jsonl. Limits: 1 or more."""
    evaluate_every: int = 0
    """Steps between two evaluations on held-out text; 0: none before the end. Limits: 0 or more."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    balance: BalanceConfig = BalanceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def __post_init__(self) -> None:
        """Refuse sizes that make no batch."""
        for name in ("steps", "seq_len", "batch_size", "micro_batch_size", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be 1 or more")
        if not 0 <= self.mtp_weight < math.inf:
            raise ConfigError(f"mtp_weight is {self.mtp_weight}: it must be 0 or more, and finite")
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise ConfigError(f"seed is {self.seed}: it must lie between 0 and {_LARGEST_SEED}")
        if self.evaluate_every < 0:
            raise ConfigError(f"evaluate_every is {self.evaluate_every}: it must be 0 or more")
        if self.batch_size % self.micro_batches_of:
            raise ConfigError(
                f"micro_batch_size is {self.micro_batch_size}:"
                f" it must divide batch_size, {self.batch_size}"
            )
        if self.batch_size * self.seq_len > _MOST_TOKENS_PER_STEP:
            raise ConfigError(
                f"batch_size is {self.batch_size}: with {self.seq_len} tokens each it must be at"
                f" most {_MOST_TOKENS_PER_STEP // self.seq_len}"
            )

    @property
    def micro_batches_of(self) -> int:
        """Sequences in one forward pass."""
        return self.micro_batch_size or self.batch_size


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that decides a run: equal configurations give equal weights.

    Saved resolved as `config.toml`.
    """

    preset: str = "demo"
    """A model's shape by name; `[model]` changes it."""
    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        depth = self.model.num_nextn_predict_layers
        if self.train.seq_len <= depth:
            raise ConfigError(
                f"train.seq_len is {self.train.seq_len}, but model.num_nextn_predict_layers is"
                f" {depth}: a sequence must be longer than the modules look ahead"
            )
        if self.train.seq_len > self.model.max_position_embeddings:
            raise ConfigError(
                f"train.seq_len is {self.train.seq_len}, but"
                f" model.max_position_embeddings is {self.model.max_position_embeddings}"
            )
        if self.tokenizer.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"tokenizer.vocab_size is {self.tokenizer.vocab_size}, but"
                f" model.vocab_size is {self.model.vocab_size}: make them equal"
            )


def build_run_config(tables: Mapping[str, Any]) -> RunConfig:
    """Resolve nested tables.

    A preset's shape lies under `[model]`, the model's vocabulary under the tokenizer's.
    """
    tables = dict(tables)
    preset = tables.get("preset", "demo")
    if not isinstance(preset, str):
        raise ConfigError(f"preset: {preset!r} is not a name")
    model = tables.get("model", {})
    if isinstance(model, Mapping):
        model = settings.merge(preset_tables(preset), model)
        vocabulary = {"tokenizer": {"vocab_size": model.get("vocab_size")}}
        tables = settings.merge(vocabulary, tables)
    return settings.build(RunConfig, tables | {"preset": preset, "model": model})
