"""A fleet: models by name, the backends that serve each, what they cost, and the policy's limits.

The tables `[[models]]`, `[policy]` and `[gateway]` of a fleet's file, checked once. Knows no
connection. Next: gateway.py, config.py.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from moestro import settings
from moestro.api.cards import AUTO, ModelCard
from moestro.errors import ConfigError
from moestro.gateway.config import GatewayConfig

Dialect = Literal["openai", "anthropic"]

_TOKENS_PER_PRICE = 1e6


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a model's tokens cost, in dollars per million."""

    input_usd_per_mtok: float = 0.0
    """Dollars per million prompt tokens. Limits: 0 or more."""
    output_usd_per_mtok: float = 0.0
    """Dollars per million tokens of answers. Limits: 0 or more."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value}: a price is 0 or more dollars")

    @classmethod
    def dearest(cls, prices: Sequence["Price"]) -> "Price":
        """Return a price that no tokens at any of these exceed; one model may read cheaply only."""
        return cls(
            input_usd_per_mtok=max(each.input_usd_per_mtok for each in prices),
            output_usd_per_mtok=max(each.output_usd_per_mtok for each in prices),
        )

    def __add__(self, other: "Price") -> "Price":
        """Return the price of tokens that two models read and write."""
        return Price(
            input_usd_per_mtok=self.input_usd_per_mtok + other.input_usd_per_mtok,
            output_usd_per_mtok=self.output_usd_per_mtok + other.output_usd_per_mtok,
        )

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what an answer cost."""
        spent = prompt_tokens * self.input_usd_per_mtok
        return (spent + completion_tokens * self.output_usd_per_mtok) / _TOKENS_PER_PRICE


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """One server of a model, as a fleet's file names it."""

    url: str
    """Its address up to the version, like http://10.0.0.5:8000/v1.
    Limits: http or https, without user, password or query."""
    model: str = ""
    """The model's name there; empty: the same as here."""
    key: str | None = None
    """`env:` and the variable that holds the key, never the key itself."""
    dialect: Dialect = "openai"
    """Which API it speaks."""
    weight: float = 1.0
    """Its share of the requests beside the model's other backends. Limits: above 0."""
    max_concurrent: int = 64
    """Requests that it is given at once. Limits: 1 or more."""
    can_continue: bool = True
    """Whether it can be given the beginning of an answer to go on from."""
    checks_model: bool = False
    """Refuse its answer if it comes from another model than was asked for; else that is a
    warning."""

    def __post_init__(self) -> None:
        _check_url(self.url)
        kind, _, variable = (self.key or "env:_").partition(":")
        if kind != "env" or not variable:
            # The text is not shown: it may be the key itself.
            raise ConfigError('key is not the name of a variable: write "env:" and its name')
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"weight is {self.weight}: it must be above 0")
        if self.max_concurrent < 1:
            raise ConfigError(f"max_concurrent is {self.max_concurrent}: it must be 1 or more")

    @property
    def address(self) -> str:
        """Scheme, host and port: what may be shown."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def read_key(self) -> str | None:
        """Return the key from its variable; ConfigError if that is not set."""
        return None if self.key is None else settings.secret(self.key.partition(":")[2])


@dataclass(frozen=True, kw_only=True)
class FleetModel:
    """One model: a checkpoint for a child process to serve, or the servers that have it."""

    name: str
    """What clients call it. Limits: not `auto`, each once."""
    path: Path | None = None
    """A run, a checkpoint or a Hugging Face folder on this machine, instead of backends."""
    backends: tuple[BackendConfig, ...] = ()
    context_length: int = 0
    """Tokens of its context: `auto` does not choose it for what is clearly longer; 0 where that is
    not known, and a local model's checkpoint tells it.
    Limits: 0 or more."""
    price: Price = Price()

    def __post_init__(self) -> None:
        if not self.name or self.name == AUTO:
            raise ConfigError(f"name is {self.name!r}: give the model one, other than {AUTO}")
        if (self.path is None) != bool(self.backends):
            raise ConfigError(
                f"{self.name} needs a path or backends, one of the two: the path of a checkpoint,"
                " or [[models.backends]] with a url each"
            )
        if self.context_length < 0:
            raise ConfigError(f"context_length is {self.context_length}: it must be 0 or more")

    @property
    def is_local(self) -> bool:
        """Whether a child process serves it."""
        return self.path is not None


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """The floor's live check, against the strongest model's answers."""

    share: float = 0.0
    """Share of requests that the strongest model answers, too. Limits: 0 to 1."""
    judge: str = "outcomes"
    """Where the two scores come from: `outcomes` that are posted, `match` of the two answers, or a
    model's name."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share is {self.share}: it must be 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ShiftConfig:
    """How unlike the calibration rows requests may be before `auto` goes to the strongest model."""

    tolerance: float = 0.1
    """By how much the share of requests below any estimated score or gain may differ; 1 tolerates
    everything.
    Limits: 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1:
            raise ConfigError(f"tolerance is {self.tolerance}: it must be 0 to 1")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Which policy chooses for `auto`, and among which models."""

    path: Path
    """The folder that `moestro policy fit` made."""
    names: dict[str, str] = field(default_factory=dict)
    """The fleet's names of models by the policy's, where they differ."""
    models: tuple[str, ...] = ()
    """The models that `auto` may choose; empty: all that the policy knows."""
    cascade: bool = True
    """Let the weak model answer first where the policy knows how to judge its answer."""
    audit: AuditConfig = AuditConfig()
    shift: ShiftConfig = ShiftConfig()


@dataclass(frozen=True, kw_only=True)
class LocalServer:
    """Where a local model is served, like http://127.0.0.1:4711/v1, and what is known of it."""

    url: str
    card: ModelCard


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All models, the policy that chooses for `auto`, and how requests are passed on.

    Models that have a path are served by child processes: `local` says where, once they run, and
    `local_key` names the variable that holds the key they ask for.
    """

    models: tuple[FleetModel, ...]
    policy: PolicyConfig | None = None
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    local: Mapping[str, LocalServer] = field(default_factory=dict)
    local_key: str | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("models: none given: add a table [[models]] for each")
        names = [model.name for model in self.models]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"models: two have the name {twice[0]}: give each its own")
        if self.policy is not None:
            _check_policy(self.policy, names)

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names."""
        return tuple(model.name for model in self.models)

    def with_local(self, servers: Mapping[str, LocalServer], key: str | None = None) -> "Fleet":
        """Return the fleet with the servers of its local models."""
        return replace(self, local={**self.local, **servers}, local_key=key)

    def backends_of(self, model: FleetModel) -> tuple[BackendConfig, ...]:
        """Return a model's servers: none of a local one that does not run yet."""
        if not model.is_local:
            return model.backends
        server = self.local.get(model.name)
        if server is None:
            return ()
        key = None if self.local_key is None else f"env:{self.local_key}"
        return (BackendConfig(url=server.url, model=model.name, key=key),)

    def may_hold(self, name: str, num_prompt: int, num_answer: int) -> bool:
        """Tell whether a model's context has room for so many tokens, as far as it is known."""
        local = self.local.get(name)
        if local is not None:
            # Ours ends a longer answer where the context does; others refuse to begin it.
            return num_prompt < local.card.context_length
        (length,) = (model.context_length for model in self.models if model.name == name)
        return not length or num_prompt + num_answer <= length

    def check_keys(self) -> None:
        """Raise ConfigError, naming model and variable, if a backend's key is not there."""
        for model in self.models:
            for index, backend in enumerate(model.backends):
                try:
                    backend.read_key()
                except ConfigError as error:
                    raise ConfigError(f"models.{model.name}.backends[{index}]: {error}") from error

    def check_policy_models(self, models: Collection[str]) -> None:
        """Raise ConfigError if a policy knows a model, by its own name, that the fleet lacks."""
        given = self.policy.names if self.policy is not None else {}
        for name in models:
            if given.get(name, name) not in self.names:
                raise ConfigError(
                    f"the policy chooses among models of which {name} is not in the fleet: add it,"
                    f" or say under policy.names which of {', '.join(self.names)} it is"
                )


def _check_policy(policy: PolicyConfig, names: Collection[str]) -> None:
    judges = [] if policy.audit.judge in ("outcomes", "match") else [policy.audit.judge]
    for name in (*policy.models, *policy.names.values(), *judges):
        if name not in names:
            raise ConfigError(
                f"policy names the model {name}, which the fleet lacks: it has {', '.join(names)}"
            )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and _has_port(parts)
    except ValueError:
        is_whole = False
        parts = urlsplit("")
    if parts.username is not None or parts.password is not None:
        # Not shown: it may hold a secret.
        raise ConfigError("url has a user or a password in it: name a variable in key instead")
    if not is_whole or parts.query or parts.fragment:
        raise ConfigError(f"url is {url!r}: it should be like http://10.0.0.5:8000/v1")


def _has_port(parts: SplitResult) -> bool:
    # Raises ValueError where it is no port at all.
    return parts.port is None or parts.port > 0
