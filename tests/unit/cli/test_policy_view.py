"""What the policy page is told: nothing without one, else its curve, its floor, its watches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from moestro.cli.policy_view import PolicyPage
from moestro.cli.watches import Watches
from moestro.gateway.fleet import AuditConfig, PolicyConfig
from moestro.policy.monitor import FloorMonitor
from moestro.policy.shift import ShiftMonitor, describe_signs

EVIDENCE = {
    "floor": 0.95,
    "confidence": 0.9,
    "method": "exact",
    "promise": "at least 95 %",
    "num_rows": 500,
    "threshold": 0.2,
    "strong_share": 0.4,
    "quality_kept": 0.97,
    "what the page does not know": 1,
}


def page(config: PolicyConfig | None, watches: Watches | None = None, **changes: Any) -> PolicyPage:
    values: dict[str, Any] = {
        "models": ("small", "large"),
        "strongest": "large",
        "curve": ({"shares": [0.6, 0.4], "score": 0.8, "cost_usd": 0.002, "threshold": 0.2},),
        "training": {"num_rows": 900},
        "threshold": 0.2,
        "evidence": EVIDENCE,
        "asks_weak_first": False,
        **changes,
    }
    policy = None if config is None else SimpleNamespace(**values)
    live = SimpleNamespace(policy=policy, digest="d1", watches=watches or Watches())
    gateway = SimpleNamespace(fleet=SimpleNamespace(policy=config))
    return PolicyPage(gateway, live)  # type: ignore[arg-type]


CONFIG = PolicyConfig(path=Path("policies/mine"), audit=AuditConfig(share=0.02, judge="match"))


def test_without_a_policy_there_is_no_view() -> None:
    assert page(None).view() is None


def test_a_policy_is_shown_with_its_curve_and_its_floor() -> None:
    view = page(CONFIG).view()
    assert view is not None
    assert (view.name, view.digest, view.strongest) == ("mine", "d1", "large")
    [point] = view.curve
    assert (point.strong_share, point.quality, point.threshold) == (0.4, 0.8, 0.2)
    assert point.cost_usd == 2.0
    assert view.curve_rows == 900
    assert view.floor is not None
    assert (view.floor.floor, view.floor.quality_kept) == (0.95, 0.97)
    assert (view.audit_share, view.judge) == (0.02, "match")
    assert view.recalibrate == "moestro policy calibrate policies/mine OUTCOMES --floor 0.95"
    assert (view.watches, view.has_cascade) == ((), False)


def test_what_a_policy_without_prices_costs_is_unknown_and_not_nothing() -> None:
    view = page(CONFIG, curve=({"shares": [0.6, 0.4], "score": 0.8, "cost_usd": 0.0},)).view()
    assert view is not None
    assert [point.cost_usd for point in view.curve] == [None]


def test_models_have_the_names_that_the_fleet_gives_them() -> None:
    view = page(PolicyConfig(path=Path("p"), names={"large": "gpt"})).view()
    assert view is not None
    assert (view.models, view.strongest) == (("small", "gpt"), "gpt")


def test_a_policy_that_was_not_calibrated_has_no_floor() -> None:
    view = page(CONFIG, evidence={}, asks_weak_first=True).view()
    assert view is not None
    assert view.floor is None
    assert view.has_cascade


def test_the_watches_are_shown_as_they_are_now() -> None:
    floor = FloorMonitor(0.95)
    shift = ShiftMonitor(describe_signs([{"gain": 0.1}, {"gain": 0.2}] * 50))
    watching = [
        SimpleNamespace(monitor=floor, is_held=False, lost_at=7.0),
        SimpleNamespace(monitor=shift, is_held=True, lost_at=None),
    ]
    shown = page(CONFIG, Watches(*watching))
    for _ in range(40):
        floor.observe(0.0, 1.0)
    shift.observe({"gain": 0.15})
    view = shown.view()
    assert view is not None
    first, second = view.watches
    assert (first.name, first.is_held, first.lost_at) == ("floor", False, 7.0)
    assert first.evidence >= first.alarm_at == 20
    assert first.num_observed == floor.num_audits
    assert (second.name, second.is_held, second.num_observed) == ("shift", True, 1)
    assert second.alarm_at == 200
