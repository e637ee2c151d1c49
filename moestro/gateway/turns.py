"""The models chosen, asked in turn until one answers: before the first byte goes on.

A model's refusal is not the last word while another may be asked: it may only have too short a
context. Next: cascade.py, attempts.py.
"""

from collections.abc import Mapping
from dataclasses import replace

from moestro.errors import BackendError, CapacityError, ConfigError
from moestro.gateway.attempts import Attempts, Outgoing
from moestro.gateway.cascade import Sieve, count_written, is_good
from moestro.gateway.choosing import CascadeRule
from moestro.gateway.config import GatewayConfig
from moestro.gateway.faults import Fault
from moestro.gateway.fleet import Price
from moestro.gateway.legs import Leg
from moestro.gateway.trace import Trace


class Turns:
    """Asks the models of a choice, the small one of a cascade first."""

    def __init__(
        self, attempts: Attempts, prices: Mapping[str, Price], config: GatewayConfig
    ) -> None:
        self._attempts = attempts
        self._prices = prices
        self._config = config

    async def open(self, trace: Trace, outgoing: Outgoing) -> Leg:
        """Return an answer's beginning, or where nobody answers a refusal, closed already.

        `trace` says whose it is. The errors are those of Attempts.open.
        """
        assert trace.choice is not None
        if trace.choice.cascade is None:
            return await self._ask_all(trace, outgoing, None)
        leg = await self._sieve(trace, trace.choice.cascade)
        if leg is not None and leg.status == 200:
            return leg
        return await self._ask_all(trace, outgoing, leg)

    async def _sieve(self, trace: Trace, rule: CascadeRule) -> Leg | None:
        """Return the small model's answer if it is kept, or its refusal; None if neither came."""
        assert trace.asked is not None
        assert trace.choice is not None
        choice = trace.choice
        small, *rest = choice.models
        sieve = Sieve(trace.asked)
        trace.choice = replace(choice, models=tuple(rest))
        try:
            leg = await self._attempts.open(small, sieve.outgoing(rule), trace)
        except (BackendError, CapacityError, ConfigError) as error:
            trace.is_stand_in = _may_pass(error)
            trace.reason = f"cascade; {small} did not answer"
            return None
        if leg.status != 200:
            trace.reason = f"cascade; {small} refused"
            return _end_refused(leg)
        if await self._judge(leg, sieve, rule):
            trace.choice = choice
            trace.model, trace.member, trace.reason = small, leg.member, "cascade: kept"
            return leg
        # Its answer is better than none, should nobody else have one.
        trace.choice = replace(choice, models=(*rest, small))
        trace.reason = "cascade: not sure enough"
        trace.wasted_tokens = count_written(leg, sieve)
        num_prompt = trace.asked.estimated_tokens
        trace.extra_usd = self._prices[small].cost_usd(num_prompt, trace.wasted_tokens)
        return None

    async def _judge(self, leg: Leg, sieve: Sieve, rule: CascadeRule) -> bool:
        """Tell whether a small model's answer is kept; end it if not."""
        health = leg.member.health
        try:
            is_kept = await is_good(leg, sieve, rule, self._config)
        except Fault as fault:
            health.note_fault(fault)
            leg.close(fault)
            return False
        except BaseException as error:
            health.note_left()
            leg.close(error)
            raise
        if not is_kept:
            # Not sure enough, but well; of one that is kept, whoever passes it on says so.
            leg.close_well()
        return is_kept

    async def _ask_all(self, trace: Trace, outgoing: Outgoing, refused: Leg | None) -> Leg:
        """Ask the model chosen; if it refuses or none of its backends answers, the next one."""
        assert trace.choice is not None
        error: BackendError | CapacityError | ConfigError | None = None
        for model in trace.choice.models:
            try:
                leg = await self._attempts.open(model, outgoing, trace)
            except (BackendError, CapacityError, ConfigError) as found:
                error = error or found
                trace.is_stand_in |= _may_pass(found)
                trace.reason = f"{trace.reason}; {model} did not answer"
                continue
            if leg.status == 200:
                trace.model, trace.member = model, leg.member
                return leg
            refused = _end_refused(leg)
            if trace.choice.is_auto:
                trace.reason = f"{trace.reason}; {model} refused"
        if refused is None:
            assert error is not None
            raise _explain(error, trace)
        trace.model, trace.member = refused.line.model, refused.member
        return refused


def _may_pass(error: BackendError | CapacityError | ConfigError) -> bool:
    """Tell whether the same request may be answered at another time."""
    is_of_request = isinstance(error, Fault) and error.is_of_request
    return not (is_of_request or isinstance(error, ConfigError))


def _explain(
    error: BackendError | CapacityError | ConfigError, trace: Trace
) -> BackendError | CapacityError | ConfigError:
    """Return the error, or the mistake that it shows of whoever asks a model for what few do."""
    asked = trace.asked
    is_lacking = isinstance(error, Fault) and error.kind == "absent"
    if not is_lacking or asked is None or asked.is_written:
        return error
    return ConfigError(f"{asked.model} has no {asked.path}, say its backends: name another model")


def _end_refused(leg: Leg) -> Leg:
    # Who says what is wrong with a request is well.
    leg.close_well()
    return leg
