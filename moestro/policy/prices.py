"""What a request costs with each model: recorded, or from a list of prices and a length.

Knows dollars and tokens, not scores. Next: policy.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moestro.errors import CheckpointError, ConfigError
from moestro.files import read_json

# A prompt's tokens are guessed from its length; an answer's are not known before it is there.
CHARS_PER_TOKEN = 4.0
ANSWER_TOKENS = 256.0
_INPUT = ("input_usd_per_mtok", "input_price", "input")
_OUTPUT = ("output_usd_per_mtok", "output_price", "output")


@dataclass(frozen=True, kw_only=True)
class Price:
    """Dollars per million tokens read and written, and dollars per request whatever its length."""

    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    usd_per_request: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0.0 <= value < math.inf:
                raise ConfigError(f"{name} is {value:g}: give a price from 0 on")

    def cost_usd(self, num_chars: int) -> float:
        """Guess what a prompt of this length and its answer cost."""
        tokens_usd = num_chars / CHARS_PER_TOKEN * self.input_usd_per_mtok
        return (tokens_usd + ANSWER_TOKENS * self.output_usd_per_mtok) / 1e6 + self.usd_per_request


def read_prices(path: Path) -> dict[str, Price]:
    """Read a JSON object of models, each with `input_price` and `output_price` per million tokens.

    A plain number is a price for input and output alike.
    """
    try:
        return build_prices(read_json(path))
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def build_prices(table: Mapping[str, Any]) -> dict[str, Price]:
    """Turn a table of prices, as files and `--set prices.NAME=` give it, into prices."""
    return {name: _price(name, value) for name, value in table.items()}


def _price(name: str, value: object) -> Price:
    table = value if isinstance(value, Mapping) else {"input": value, "output": value}
    read, written = (_number(name, _first(table, names)) for names in (_INPUT, _OUTPUT))
    try:
        return Price(input_usd_per_mtok=read, output_usd_per_mtok=written)
    except ConfigError as error:
        raise ConfigError(f"prices.{name}: {error}") from error


def _first(table: Mapping[str, Any], names: Sequence[str]) -> object:
    return next((table[name] for name in names if name in table), None)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"prices.{name}: {value!r} is not a price: give a number per million tokens, or "
            "input_price and output_price"
        )
    return float(value)
