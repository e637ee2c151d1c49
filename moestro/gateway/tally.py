"""What became of all requests, by model, and the whole fleet as pages show it.

Next: api/fleet_view.py.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from moestro.api.fleet_view import FleetView, ModelView
from moestro.api.record import Record
from moestro.gateway.choosing import Chooser
from moestro.gateway.fleet import AUTO, Fleet, FleetModel
from moestro.gateway.health import Latency
from moestro.gateway.queue import Line


@dataclass
class _Counts:
    num_requests: int = 0
    num_auto: int = 0
    num_errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    latency: Latency = field(default_factory=Latency)


class Tally:
    """Counts records; tells how the fleet is."""

    def __init__(self, fleet: Fleet, lines: Mapping[str, Line], chooser: Chooser) -> None:
        self._fleet = fleet
        self._lines = lines
        self._chooser = chooser
        self._counts = {name: _Counts() for name in fleet.names}
        self._num_requests = 0
        self._num_failovers = 0
        self._num_refused = 0
        self._since = time.time()

    def add(self, record: Record) -> None:
        """Take the next one."""
        self._num_failovers += record.num_failovers
        self._num_refused += record.outcome == "refused"
        counts = self._counts.get(record.model)
        if counts is None:
            return
        if record.outcome == "failed":
            counts.num_errors += 1
        if record.outcome not in ("answered", "left"):
            return
        self._num_requests += 1
        counts.num_requests += 1
        counts.num_auto += record.asked == AUTO
        counts.prompt_tokens += record.prompt_tokens
        counts.completion_tokens += record.completion_tokens
        counts.cost_usd += record.cost_usd
        if record.first_s is not None and record.outcome == "answered":
            counts.latency.first.add(record.first_s)
            counts.latency.whole.add(record.whole_s)

    def view(self) -> FleetView:
        """Return the fleet."""
        return FleetView(
            models=tuple(self._view_model(model) for model in self._fleet.models),
            has_policy=self._chooser.strongest is not None,
            strongest=self._chooser.strongest,
            num_requests=self._num_requests,
            num_failovers=self._num_failovers,
            num_refused=self._num_refused,
            since=self._since,
        )

    def _view_model(self, model: FleetModel) -> ModelView:
        counts, line = self._counts[model.name], self._lines[model.name]
        backends = tuple(member.health.view(line.num_waiting) for member in line.members)
        return ModelView(
            name=model.name,
            is_local=model.is_local,
            is_auto=model.name in self._chooser.auto_models,
            is_up=any(backend.is_up for backend in backends),
            context_length=model.context_length,
            input_usd_per_mtok=model.price.input_usd_per_mtok,
            output_usd_per_mtok=model.price.output_usd_per_mtok,
            share=counts.num_requests / max(1, self._num_requests),
            num_requests=counts.num_requests,
            num_auto=counts.num_auto,
            num_errors=counts.num_errors,
            num_in_flight=sum(backend.num_in_flight for backend in backends),
            num_waiting=line.num_waiting,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            cost_usd=counts.cost_usd,
            latency=counts.latency.view(),
            backends=backends,
        )
