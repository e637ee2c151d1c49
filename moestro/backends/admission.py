"""How many requests may wait for an engine: one too many is refused at once, never left hanging.

Counts and a clock; knows no text and no engine. Next: local.py.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from moestro.engine.config import QueueConfig
from moestro.errors import CapacityError

_REMEMBERED_STARTS = 32
_LONGEST_S = 60.0


class Ticket:
    """One request's place, given up when its `with` block ends."""

    def __init__(self, admission: "Admission", num_choices: int) -> None:
        self.num_choices = num_choices
        self.num_tokens = 0
        self.has_started = False
        self._admission = admission

    def weigh(self, num_tokens: int) -> None:
        """Say how long the prompt is; CapacityError if that is too much beside what waits."""
        self._admission.check_tokens(num_tokens)
        self.num_tokens = num_tokens

    def start(self) -> None:
        """Say that the engine works on the request: it waits no longer."""
        if not self.has_started:
            self.has_started = True
            self._admission.note_start()

    def __enter__(self) -> "Ticket":
        """Take the place."""
        self._admission.tickets.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the place up."""
        self._admission.tickets.discard(self)


class Admission:
    """The door of one engine that runs `max_batch` choices at once."""

    def __init__(
        self,
        config: QueueConfig,
        max_batch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tickets: set[Ticket] = set()
        self._config = config
        self._max_batch = max_batch
        self._clock = clock
        self._starts: deque[float] = deque(maxlen=_REMEMBERED_STARTS)

    @property
    def num_waiting(self) -> int:
        """How many requests the engine does not work on yet."""
        return sum(not ticket.has_started for ticket in self.tickets)

    @property
    def num_waiting_tokens(self) -> int:
        """How many prompt tokens they have."""
        return sum(ticket.num_tokens for ticket in self.tickets if not ticket.has_started)

    @property
    def num_running(self) -> int:
        """How many requests are being answered."""
        return len(self.tickets) - self.num_waiting

    def enter(self, num_choices: int = 1) -> Ticket:
        """Give a place to a request, to be used as a context; CapacityError if there is none."""
        self.check_room()
        return Ticket(self, num_choices)

    def check_room(self, num_before: int = 0) -> None:
        """Raise CapacityError if there is no place behind so many that are about to enter."""
        waiting = self.num_waiting + num_before
        running = sum(ticket.num_choices for ticket in self.tickets if ticket.has_started)
        # Who need not wait is no burden on the queue.
        limit = self._config.max_requests + max(0, self._max_batch - running)
        if waiting >= limit:
            raise self._refuse(f"{waiting} requests are waiting, limit {limit}")

    def check_tokens(self, num_tokens: int) -> None:
        """Raise CapacityError if a prompt is too long beside those that wait."""
        waiting, limit = self.num_waiting_tokens, self._config.max_tokens
        # Alone, any prompt that the model takes is welcome.
        if waiting and waiting + num_tokens > limit:
            raise self._refuse(
                f"prompts of {waiting} tokens are waiting, and {num_tokens} more pass the limit"
                f" of {limit}"
            )

    def note_start(self) -> None:
        """Remember that a request left the queue now."""
        self._starts.append(self._clock())

    def _refuse(self, reason: str) -> CapacityError:
        retry_after_s = self._wait_s()
        return CapacityError(f"{reason}: try again in {retry_after_s:.0f} s", retry_after_s)

    def _wait_s(self) -> float:
        """Guess when half of what waits will have started, from the pace of the latest starts."""
        if len(self._starts) < 2:
            return 1.0
        pace_s = (self._clock() - self._starts[0]) / len(self._starts)
        return float(min(max(1, math.ceil(pace_s * self.num_waiting / 2)), _LONGEST_S))
