"""Places at a model's backends, and the line for one: a caller with many requests waits for itself.

Beyond what may wait, or where waiting would take too long, a request is refused at once. Next:
balance.py, attempts.py.
"""

import asyncio
import math
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain

from moestro.api.stats import State
from moestro.errors import BackendError, CapacityError
from moestro.gateway.balance import Candidate, order
from moestro.gateway.config import QueueConfig
from moestro.gateway.health import Health
from moestro.gateway.shared import Shared
from moestro.gateway.upstream import Upstream

# Another worker's place that became free, or a breaker that closed, tells nobody.
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Member:
    """One backend of a model, and how it fares."""

    upstream: Upstream
    health: Health

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.upstream.name


@dataclass(eq=False, slots=True)
class _Waiter:
    caller: str
    tried: Collection[str]
    barred: Collection[str]
    place: "asyncio.Future[Member]"


class Line:
    """All places at one model's backends, and who waits for them."""

    def __init__(
        self,
        model: str,
        members: Sequence[Member],
        config: QueueConfig,
        shared: Shared,
        *,
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.members = tuple(members)
        self.model = model
        self._config = config
        self._shared = shared
        self._chance = chance or random.Random()
        self._clock = clock
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._by_name = {member.name: member for member in members}
        self._looking: asyncio.TimerHandle | None = None

    @property
    def state(self) -> State:
        """How the model is: like the best of its backends, loading where there is none yet."""
        states = [member.health.state for member in self.members] or ["loading"]
        return "ready" if "ready" in states else states[0]

    @property
    def num_waiting(self) -> int:
        """How many requests wait for a place."""
        return sum(map(len, self._waiting.values()))

    async def enter(
        self, caller: str | None, tried: Collection[str] = (), barred: Collection[str] = ()
    ) -> Member:
        """Take a place at the best backend not `barred`, those not in `tried` first; or wait.

        CapacityError where the line is too long or too slow, or backends have too much to do and
        asked to be left alone for a while; BackendError where none can be asked.
        """
        if not self._waiting and (found := self._find_place(tried, barred)) is not None:
            return found
        self._check_open(barred)
        self._check_length()
        waiter = _Waiter(caller or "", tried, barred, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(waiter.caller, deque()).append(waiter)
        # Those before it may all wait for a backend that this one need not have.
        self._serve()
        self._look()
        try:
            async with asyncio.timeout(self._config.max_wait_s):
                return await waiter.place
        except TimeoutError as error:
            self._forget(waiter)
            raise self._full(self._config.max_wait_s) from error
        except asyncio.CancelledError:
            self._forget(waiter)
            raise

    def enter_spare(self, barred: Collection[str]) -> Member:
        """Take a place that nobody waits for, at a backend not `barred`; else CapacityError.

        What may be done as well, beside what must be done, keeps no place from anybody.
        """
        found = None if self._waiting else self._find_place((), barred)
        if found is None:
            raise CapacityError(f"no backend of model {self.model} has a place to spare")
        return found

    def take_over(self, earlier: "Line") -> None:
        """Know of backends what an earlier line for them did."""
        known = {member.upstream.row: member.health for member in earlier.members}
        for member in self.members:
            if (health := known.get(member.upstream.row)) is not None:
                member.health.take_over(health)

    def leave(self, member: Member) -> None:
        """Give a place back: to whoever's turn it is."""
        self._shared.leave(member.upstream.row)
        if self._waiting:
            self._serve()

    def wait_s(self, barred: Collection[str] = ()) -> float:
        """Return how long all backends not `barred` are left alone still."""
        members = (member for member in self.members if member.name not in barred)
        return min((member.health.wait_s() for member in members), default=0.0)

    def _check_open(self, barred: Collection[str]) -> None:
        members = [member for member in self.members if member.name not in barred]
        if any(member.health.may_ask() for member in members):
            return
        wait_s = self.wait_s(barred)
        full = next((member for member in members if member.health.is_overloaded), None)
        if full is not None:
            message = f"{full.name} is asked too much: try again in {wait_s:.1f} s"
            raise CapacityError(message, wait_s)
        trouble = next((m.health.trouble for m in members if m.health.trouble), None)
        because = f" ({trouble})" if trouble else ""
        what = "is loading" if self.state == "loading" else f"does not answer{because}"
        when = f"{math.ceil(wait_s)} s" if wait_s else "a moment"
        raise BackendError(f"model {self.model} {what}: try again in {when}", wait_s or None)

    def _check_length(self) -> None:
        num_waiting = self.num_waiting
        wait_s = self._expect_wait_s(num_waiting)
        if num_waiting >= self._config.max_waiting or wait_s > self._config.max_wait_s:
            raise self._full(wait_s)

    def _full(self, wait_s: float) -> CapacityError:
        num = self.num_waiting
        return CapacityError(
            f"{num} requests wait for model {self.model}, and it is full: try again later",
            max(1.0, wait_s),
        )

    def _expect_wait_s(self, num_waiting: int) -> float:
        means = [mean for each in self.members if (mean := each.health.latency.whole.own_mean())]
        places = sum(member.upstream.config.max_concurrent for member in self.members)
        return (num_waiting + 1) * (sum(means) / len(means)) / places if means else 0.0

    def _find_place(self, tried: Collection[str], barred: Collection[str]) -> Member | None:
        open_to_it = [_describe(each) for each in self.members if each.name not in barred]
        for candidate in order(open_to_it, tried, self._chance):
            member = self._by_name[candidate.name]
            if self._shared.try_enter(member.upstream.row, candidate.max_concurrent):
                # At once: of a backend that recovers, the next one that waits must not get a place.
                member.health.note_sent()
                return member
        return None

    def _serve(self) -> None:
        """Give free places to those who wait, callers in turn."""
        while (found := self._find_turn()) is not None:
            waiter, member = found
            self._remove(waiter)
            if waiter.caller in self._waiting:
                self._waiting.move_to_end(waiter.caller)
            waiter.place.set_result(member)

    def _find_turn(self) -> tuple[_Waiter, Member] | None:
        """Return the first who waits that there is a place for, and the place.

        One that may not go where a place is keeps nobody else from it.
        """
        hopeless: set[frozenset[str]] = set()
        for waiter in chain.from_iterable(self._waiting.values()):
            barred = frozenset(waiter.barred)
            # Who was cancelled a moment ago is still here, and wants nothing.
            if waiter.place.done() or barred in hopeless:
                continue
            member = self._find_place(waiter.tried, barred)
            if member is not None:
                return waiter, member
            hopeless.add(barred)
        return None

    def _look(self) -> None:
        """Look for places again and again while somebody waits."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look_again)

    def _look_again(self) -> None:
        self._looking = None
        self._serve()
        if self._waiting:
            self._look()

    def _forget(self, waiter: _Waiter) -> None:
        if waiter.place.done() and not waiter.place.cancelled():
            # It came at the very moment when nobody wanted it any more.
            member = waiter.place.result()
            member.health.note_left()
            self.leave(member)
        else:
            self._remove(waiter)

    def _remove(self, waiter: _Waiter) -> None:
        line = self._waiting.get(waiter.caller)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._waiting[waiter.caller]


def _describe(member: Member) -> Candidate:
    config = member.upstream.config
    return Candidate(
        name=member.name,
        weight=config.weight,
        num_in_flight=member.health.num_in_flight,
        max_concurrent=config.max_concurrent,
        may_ask=member.health.may_ask(),
    )
