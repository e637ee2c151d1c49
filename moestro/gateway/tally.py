"""What became of all requests, by model, and the whole fleet as pages show it.

Both are of all workers together: counts since the server's start, latencies of late.
Next: api/fleet_view.py.
"""

from collections.abc import Mapping

from moestro.api.cards import AUTO
from moestro.api.fleet_view import FleetView, ModelView
from moestro.api.record import Record
from moestro.gateway.choosing import Chooser
from moestro.gateway.fleet import Fleet, FleetModel
from moestro.gateway.health import Latency
from moestro.gateway.queue import Line
from moestro.gateway.shared import Shared

_FLEET = "fleet"


class Tally:
    """Counts records; tells how the fleet is."""

    def __init__(
        self, fleet: Fleet, lines: Mapping[str, Line], chooser: Chooser, shared: Shared
    ) -> None:
        self._fleet = fleet
        self._lines = lines
        self._chooser = chooser
        self._shared = shared
        self._latencies = {name: Latency(shared, _row(name)) for name in fleet.names}

    def add(self, record: Record) -> None:
        """Take the next one; of an audit only what it cost."""
        if record.is_audit:
            self._count_cost(record, num_requests=0)
            return
        is_answer = record.outcome in ("answered", "left") and record.model in self._latencies
        is_refused = record.outcome == "refused"
        self._shared.count(_FLEET, (is_answer, record.num_failovers, is_refused))
        if record.outcome == "failed" and record.model:
            self._shared.count(_row(record.model), (0, 0, 1))
        if not is_answer:
            return
        self._count_cost(record, num_requests=1)
        if record.first_s is not None and record.outcome == "answered":
            latency = self._latencies[record.model]
            latency.first.add(record.first_s)
            latency.whole.add(record.whole_s)

    def _count_cost(self, record: Record, num_requests: int) -> None:
        spent = (record.prompt_tokens, record.completion_tokens, record.cost_usd)
        is_auto = num_requests and record.asked == AUTO
        if record.model in self._latencies:
            self._shared.count(_row(record.model), (num_requests, is_auto, 0, *spent))

    def view(self) -> FleetView:
        """Return the fleet."""
        num_requests, num_failovers, num_refused, *_ = self._shared.counted(_FLEET)
        return FleetView(
            models=tuple(self._view_model(model, num_requests) for model in self._fleet.models),
            has_policy=self._chooser.strongest is not None,
            strongest=self._chooser.strongest,
            num_requests=int(num_requests),
            num_failovers=int(num_failovers),
            num_refused=int(num_refused),
            since=self._shared.began_at,
        )

    def _view_model(self, model: FleetModel, num_all: float) -> ModelView:
        line, counted = self._lines[model.name], self._shared.counted(_row(model.name))
        num_requests, num_auto, num_errors, num_prompt, num_completion, cost_usd = counted
        backends = tuple(member.health.view(line.num_waiting) for member in line.members)
        return ModelView(
            name=model.name,
            is_local=model.is_local,
            is_auto=model.name in self._chooser.auto_models,
            is_up=any(backend.is_up for backend in backends),
            state=line.state,
            context_length=model.context_length,
            input_usd_per_mtok=model.price.input_usd_per_mtok,
            output_usd_per_mtok=model.price.output_usd_per_mtok,
            share=num_requests / max(1, num_all),
            num_requests=int(num_requests),
            num_auto=int(num_auto),
            num_errors=int(num_errors),
            num_in_flight=sum(backend.num_in_flight for backend in backends),
            num_waiting=line.num_waiting,
            prompt_tokens=int(num_prompt),
            completion_tokens=int(num_completion),
            cost_usd=cost_usd,
            latency=self._latencies[model.name].view(),
            backends=backends,
        )


def _row(model: str) -> str:
    return f"model {model}"
