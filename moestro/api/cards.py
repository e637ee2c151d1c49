"""What one can know of a model without asking it anything. Next: backend.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# The name that asks a policy to choose.
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model that can be asked, by the name in `id`.

    `fewest_experts` and `most_experts` are the limits of the request field `experts`; both are 0
    where the backend does not know. `num_moe_layers` and `num_experts` give the shape of an x-ray.
    `default_sampling` holds what a silent request is sampled with where that is not OpenAI's own.
    Prices are in dollars per million tokens, None where there are none.
    """

    id: str
    created: int
    owned_by: str = "moestro"
    context_length: int
    fewest_experts: int = 0
    most_experts: int = 0
    has_budget: bool = False
    has_fim: bool = False
    has_chat_template: bool = False
    num_moe_layers: int = 0
    num_experts: int = 0
    num_parameters: int = 0
    num_active_parameters: int = 0
    default_sampling: Mapping[str, float] = field(default_factory=dict)
    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
