"""The policy as its page shows it, from the folder that `moestro policy` wrote and the live watch.

Next: api/policy_view.py, gateway_app.py.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moestro.api.policy_view import CurvePoint, FloorView, PolicyView
from moestro.gateway.current import CurrentGateway

if TYPE_CHECKING:
    from moestro.cli.gateway_app import LivePolicies


class PolicyPage:
    """Tells how the policy does."""

    def __init__(self, gateway: CurrentGateway, live: "LivePolicies") -> None:
        self._gateway = gateway
        self._live = live

    def view(self) -> PolicyView | None:
        """Return how it is now, None without a policy."""
        policy, config = self._live.policy, self._gateway.fleet.policy
        if policy is None or config is None:
            return None
        floor = policy.evidence.get("floor", 0.95)
        # A policy without prices counts every model as free.
        has_costs = any(point["cost_usd"] > 0 for point in policy.curve)
        return PolicyView(
            name=config.path.name,
            digest=self._live.digest,
            # By the fleet's names, as everything else on the pages.
            models=tuple(config.names.get(name, name) for name in policy.models),
            strongest=config.names.get(policy.strongest, policy.strongest),
            curve=tuple(_point(point, has_costs) for point in policy.curve),
            curve_rows=policy.training.get("num_rows"),
            has_cascade=policy.asks_weak_first,
            threshold=policy.threshold,
            floor=_floor(policy.evidence),
            watches=self._live.watches.view(),
            audit_share=config.audit.share,
            judge=config.audit.judge,
            recalibrate=f"moestro policy calibrate {config.path} OUTCOMES --floor {floor}",
        )


def _point(point: Mapping[str, Any], has_costs: bool) -> CurvePoint:
    # Of 1,000 requests, as people think of them.
    return CurvePoint(
        strong_share=point["shares"][-1],
        quality=point["score"],
        cost_usd=1000 * point["cost_usd"] if has_costs else None,
        threshold=point.get("threshold"),
    )


def _floor(evidence: Mapping[str, Any]) -> FloorView | None:
    names = FloorView.__dataclass_fields__
    known = {name: evidence[name] for name in names if name in evidence}
    return FloorView(**known) if "floor" in known else None
