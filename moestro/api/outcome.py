"""How good an answer was, as an application says it afterwards. Next: record_view.py."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class PostedOutcome:
    """A score from 0 to 1 of the answer to a request.

    With `strongest_score`, which the strongest model's answer to the same request got, it counts
    for the floor.
    """

    request_id: str
    score: float
    caller: str | None = None
    model: str | None = None
    strongest_score: float | None = None
    note: str | None = None


class OutcomeBook(Protocol):
    """Keeps outcomes."""

    async def add(self, outcome: PostedOutcome) -> int:
        """Keep one and return its number; DataError for what cannot be, StorageError if lost."""
