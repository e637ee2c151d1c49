"""Recent decisions as the Ledger page asks for them: filters, pages, and a table to download.

Knows no HTTP. Next: fleet_pages.py.
"""

import csv
import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from moestro.api.record import Outcome
from moestro.api.record_view import DecisionFilter, RecordedDecision, RecordView

PAGE_ROWS = 50
MOST_PAGE_ROWS = 200
MOST_TABLE_ROWS = 10_000
# What the store cannot filter by is looked for in so many rows per request, then the page asks on.
_MOST_SCANNED = 2_000

COLUMNS = (
    "began_at", "request_id", "caller", "asked", "model", "backend", "reason", "outcome", "status",
    "is_streamed", "threshold", "prompt_tokens", "cached_tokens", "completion_tokens",
    "wasted_tokens", "is_estimated", "cost_usd", "strongest_cost_usd", "first_s", "whole_s",
    "num_attempts", "num_failovers", "error",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to show; `reason` is any part of one, in small or capital letters."""

    caller: str | None = None
    asked: str | None = None
    model: str | None = None
    outcome: Outcome | None = None
    since: float | None = None
    reason: str | None = None
    status: int | None = None

    def fits(self, decision: RecordedDecision) -> bool:
        """Tell whether a decision fits what the store does not filter by."""
        record = decision.record
        is_reason = not self.reason or self.reason.lower() in record.reason.lower()
        return is_reason and (self.status is None or self.status == record.status)

    def to_filter(self) -> DecisionFilter:
        """Return what the store filters by."""
        return DecisionFilter(
            caller=self.caller,
            asked=self.asked,
            model=self.model,
            outcome=self.outcome,
            since=self.since,
        )


async def find_page(
    records: RecordView, search: Search, *, before: int | None, limit: int
) -> dict[str, Any]:
    """Return a page of decisions, newest first, and where the next one begins."""
    limit = max(1, min(limit, MOST_PAGE_ROWS))
    found: list[RecordedDecision] = []
    num_scanned = 0
    while True:
        page = await records.decisions(search.to_filter(), before=before, limit=MOST_PAGE_ROWS)
        num_scanned += len(page.decisions)
        found += [each for each in page.decisions if search.fits(each)]
        before = page.before
        if len(found) > limit:
            found, before = found[:limit], found[limit - 1].id
        if len(found) >= limit or before is None or num_scanned >= _MOST_SCANNED:
            return {"decisions": [_row(each) for each in found], "before": before}


async def write_table(records: RecordView, search: Search) -> AsyncIterator[str]:
    """Write what was found as CSV, newest first, up to `MOST_TABLE_ROWS` rows."""
    yield _line(COLUMNS)
    before, num_rows = None, 0
    while True:
        page = await records.decisions(search.to_filter(), before=before, limit=MOST_PAGE_ROWS)
        rows = [each for each in page.decisions if search.fits(each)]
        rows = rows[: MOST_TABLE_ROWS - num_rows]
        num_rows += len(rows)
        yield "".join(map(_line, map(_cells, rows)))
        before = page.before
        if before is None or num_rows >= MOST_TABLE_ROWS:
            return


def _row(decision: RecordedDecision) -> dict[str, Any]:
    # Hashes of conversations and of requests are nobody's business but the store's.
    record = asdict(decision.record)
    del record["conversation"], record["digest"]
    return {"id": decision.id, **record}


def _cells(decision: RecordedDecision) -> Iterator[str]:
    for name in COLUMNS:
        value = getattr(decision.record, name)
        if name == "began_at":
            yield datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds")
        elif isinstance(value, str):
            yield _as_text(value)
        else:
            yield "" if value is None else str(value)


def _as_text(text: str) -> str:
    # A spreadsheet would take such a cell for a formula, and these words come from outside.
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _line(cells: Iterator[str] | tuple[str, ...]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()
