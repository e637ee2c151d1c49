"""How positions turn queries and keys, in the checkpoint's own words. No torch.

Next: config.py, moestro/ops/rope.py for the arithmetic.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moestro.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions: the base, and YaRN's stretch (arXiv 2309.00071) if `factor` is above 1."""

    theta: float = 10000.0
    """Base of the rotary frequencies. Limits: above 1."""
    kind: Literal["default", "yarn"] = "default"
    """As trained, or stretched by YaRN; all below is YaRN's."""
    factor: float = 1.0
    """How many times longer than its training the context is. Limits: 1 or more."""
    original_max_position_embeddings: int = 4096
    """Tokens of the context before the stretch. Limits: above 0."""
    beta_fast: float = 32.0
    """Turns within the original context above which a frequency is kept. Limits: above 0."""
    beta_slow: float = 1.0
    """Turns below which a frequency is stretched whole. Limits: above 0."""
    mscale: float | None = None
    """Scale of the attention's temperature, as DeepSeek has it. Limits: 0 or more."""
    mscale_all_dim: float | None = None
    """The same, for what is not rotary, too. Limits: 0 or more."""
    attention_factor: float | None = None
    """The temperature itself, instead of one made from `factor`. Limits: 0 or more."""
    truncate: bool = True
    """Round the bounds of the stretched frequencies to whole ones."""

    def __post_init__(self) -> None:
        """Refuse a base or a stretch that has no meaning."""
        if not 1 < self.theta < math.inf:
            raise ConfigError(f"rope theta is {self.theta}: it must be above 1, and finite")
        if self.kind != "yarn":
            return
        if not 1 <= self.factor < math.inf:
            raise ConfigError(f"rope factor is {self.factor}: YaRN stretches by 1 or more")
        for name in ("original_max_position_embeddings", "beta_fast", "beta_slow"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"rope {name} is {getattr(self, name)}: it must be a finite number above 0"
                )
        for name in ("mscale", "mscale_all_dim", "attention_factor"):
            value = getattr(self, name)
            # Published configurations have an mscale of 0 where there is none.
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"rope {name} is {value}: it must be 0 or more, and finite")

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "RopeConfig":
        """Read what a `config.json` says of it, in either spelling."""
        parameters = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
        theta = parameters.pop("rope_theta", None) or values.get("rope_theta") or 10000.0
        kind = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
        parameters.pop("type", None)
        if kind not in ("default", "yarn"):
            raise ConfigError(f"rope type is {kind!r}: Moestro knows default and yarn")
        if kind == "default":
            return cls(theta=float(theta))
        names = {item.name for item in dataclasses.fields(cls)}
        known = {
            key: value for key, value in parameters.items() if key in names and value is not None
        }
        original = known.setdefault(
            "original_max_position_embeddings", values.get("max_position_embeddings", 4096)
        )
        length = values.get("max_position_embeddings", original)
        # A length of 0 is refused below.
        known.setdefault("factor", length / (original or 1))
        return cls(theta=float(theta), kind="yarn", **known)

    def to_hf(self) -> dict[str, Any] | None:
        """Write `rope_scaling`, as DeepSeek published it; the base has a key of its own."""
        if self.kind == "default":
            return None
        values = {
            key: value for key, value in dataclasses.asdict(self).items() if value is not None
        }
        del values["theta"], values["kind"]
        return {"type": "yarn", **values}
