"""What a policy promises and how it does, as a page shows it: curve, floor, live watches.

Plain values; None where something is not known. Knows no estimator. Next: fleet_view.py.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One threshold on the rows that the policy was measured on.

    `strong_share` is the part of requests to the strongest model, `quality` the mean score, with
    the limits of its interval; `cost_usd` is for 1,000 requests.
    """

    strong_share: float
    quality: float
    quality_low: float | None = None
    quality_high: float | None = None
    cost_usd: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class FloorView:
    """What `moestro policy calibrate` found; `promise` says it in words.

    `level` is the error rate of the test, `bound` the quality kept that it could show, as a share
    of the strongest model's. `calibrated_at` is in seconds since 1970.
    """

    floor: float
    confidence: float
    method: str
    promise: str
    num_rows: int
    threshold: float
    strong_share: float
    quality_kept: float
    is_always_strongest: bool = False
    level: float | None = None
    p_value: float | None = None
    bound: float | None = None
    num_rows_needed: int | None = None
    calibrated_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class WatchView:
    """A test on live traffic: `evidence` are odds against what it watches, an alarm at `alarm_at`.

    `name` is "floor" (audited requests) or "shift" (requests that stopped looking like the
    calibration rows). `lost_at` is in seconds since 1970, None while it holds or where unknown.
    """

    name: str
    is_held: bool
    evidence: float
    alarm_at: float
    num_observed: int
    lost_at: float | None = None
    quality_kept: float | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyView:
    """A policy at work. The curve goes from never to always the strongest model.

    `audit_share` is the part of requests that the strongest model answers too, `judge` who scores
    them. `recalibrate` is the command that makes a new floor.
    """

    name: str
    digest: str
    models: tuple[str, ...]
    strongest: str
    curve: tuple[CurvePoint, ...] = ()
    curve_rows: int | None = None
    has_cascade: bool = False
    threshold: float | None = None
    floor: FloorView | None = None
    watches: tuple[WatchView, ...] = ()
    audit_share: float = 0.0
    judge: str | None = None
    recalibrate: str | None = None


class PolicyWatch(Protocol):
    """Whoever can tell how the policy does."""

    def view(self) -> PolicyView | None:
        """Return how it is now, None without a policy; cheap enough for every second."""
