"""Charts of a review: what the model predicts how well, and how its experts share that work.

Reads a review as `review.json` holds it. Next: charts.py for the curves of training, report.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moestro.lm.charts import Chart, axes

Table = Mapping[str, Any]
_WHOLE = "all text"


def quality_charts(review: Table) -> list[Chart]:
    """Draw how well the text is predicted, beside what others make of the same bytes."""
    return [_comparison(review), _by_domain(review)]


def expert_charts(review: Table, first_layer: int) -> list[Chart]:
    """Draw the experts' work; nothing for a dense model. `first_layer` is the first sparse one."""
    if not review["held_out"]["load"]:
        return []
    charts = [_load(review, first_layer)]
    if review["at_budget"] is not None:
        charts += [
            _curve(review),
            _histogram(review, first_layer),
            _correlation(review, first_layer),
        ]
    if review["divergence"]:
        charts.append(_divergence(review["divergence"], first_layer))
    if review["knock_out"]:
        charts.append(_knock_out(review["knock_out"]))
    return charts


def _comparison(review: Table) -> Chart:
    names = {"gzip": "gzip -9", "xz": "xz -9e", "ngram": "5-gram model"}
    others = {names.get(name, name): bits for name, bits in review["baselines"].items()}
    ours = {}
    if review["at_budget"] is not None:
        label = f"this model, {review['budget']:g} experts"
        ours[label] = review["at_budget"]["held_out"]["bits_per_byte"]
    ours["this model"] = review["held_out"]["bits_per_byte"]
    return Chart(
        name="comparison",
        title="Bits per byte on text that training never saw",
        hint="Shorter is better: all of them are measured on the very same bytes.",
        choices={"": [_comparison_bars(ours), _comparison_bars(others)]},
        layout=axes(
            "bits per byte",
            "",
            barmode="overlay",
            showlegend=False,
            yaxis={"categoryorder": "array", "categoryarray": [*others, *ours]},
        ),
        height=110 + 38 * len({**others, **ours}),
    )


def _comparison_bars(values: Table) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "x": list(values.values()),
        "y": list(values),
        "text": [f"{bits:.3f}" if bits is not None else "" for bits in values.values()],
        "textposition": "auto",
        "hovertemplate": "%{y}: %{x:.4f} bits per byte<extra></extra>",
    }


def _by_domain(review: Table) -> Chart:
    traces = [_domain_bars(review["domains"], "all experts")]
    if review["at_budget"] is not None:
        traces.append(_domain_bars(review["at_budget"]["domains"], f"{review['budget']:g} experts"))
    return Chart(
        name="by-domain",
        title="Bits per byte by domain",
        hint="A domain with little training text stands out here first.",
        choices={"": traces},
        layout=axes("domain", "bits per byte", barmode="group"),
    )


def _domain_bars(domains: Table, name: str) -> dict[str, Any]:
    values = [part["bits_per_byte"] for part in domains.values()]
    return {"type": "bar", "name": name, "x": list(domains), "y": values}


def _load(review: Table, first_layer: int) -> Chart:
    parts = {_WHOLE: review["held_out"], **review["domains"]}
    choices = {name: [_load_map(part["load"], first_layer)] for name, part in parts.items()}
    num_layers = len(review["held_out"]["load"])
    return Chart(
        name="load",
        title="Load of each expert",
        hint="For all text every square should be pale; for one domain, bright ones are its"
        " specialists. An expert at -100 % is never chosen.",
        choices=choices,
        layout=axes("expert", "layer", yaxis=_layer_axis(num_layers)),
        height=min(900, 170 + 26 * num_layers),
    )


def _load_map(load: Sequence[Sequence[float]], first_layer: int) -> dict[str, Any]:
    rows = []
    for row in load:
        fair = max(sum(row) / len(row), 1e-9)
        rows.append([round(100 * (count / fair - 1), 1) for count in row])
    return {
        "type": "heatmap",
        "z": rows,
        "y": [first_layer + index for index in range(len(rows))],
        "zmid": 0,
        "autocolorscale": True,
        "colorbar": {"title": {"text": "% over<br>the mean"}, "thickness": 12},
        "hovertemplate": "layer %{y}, expert %{x}: %{z:+.0f} % <extra></extra>",
    }


def _layer_axis(num_layers: int) -> dict[str, Any]:
    axis = {"title": {"text": "layer"}, "autorange": "reversed"}
    return axis | ({"dtick": 1} if num_layers <= 20 else {})


def _curve(review: Table) -> Chart:
    points = review["budget_curve"]
    requested = [point["requested"] for point in points]
    loss = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "loss",
        "x": requested,
        "y": [point["nats_per_token"] for point in points],
    }
    measured = loss | {
        "name": "experts used",
        "y": [point["mean_experts"] for point in points],
        "yaxis": "y2",
    }
    exact = {
        "type": "scatter",
        "mode": "lines",
        "name": "as requested",
        "x": requested,
        "y": requested,
        "yaxis": "y2",
        "line": {"dash": "dot", "width": 1},
        "hoverinfo": "skip",
    }
    layout = axes("requested experts per token", "loss (nats per token)", "experts used per token")
    layout["yaxis2"].pop("rangemode")
    return Chart(
        name="curve",
        title="What a smaller budget costs",
        hint="The loss should hardly rise down to the middle; the experts used should lie on the"
        " dotted line.",
        choices={"": [loss, measured, exact]},
        layout=layout,
    )


def _histogram(review: Table, first_layer: int) -> Chart:
    at_budget = review["at_budget"]
    layers = at_budget["held_out"]["experts_histogram_by_layer"]
    names = [f"layer {first_layer + index}" for index in range(len(layers))]
    totals = {
        name: [sum(column) for column in zip(*part["experts_histogram_by_layer"], strict=True)]
        for name, part in at_budget["domains"].items()
    }
    return Chart(
        name="histogram",
        title=f"Experts per token at a budget of {review['budget']:g}",
        hint="All on one number would mean that the gate treats every token alike.",
        choices={
            "by layer": _stack(names, layers),
            "by domain": _stack(list(totals), list(totals.values())),
        },
        layout=axes("", "share of tokens (%)", barmode="stack"),
    )


def _stack(names: list[str], counts: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    sums = [max(1, sum(row)) for row in counts]
    traces = []
    for experts in range(len(counts[0])):
        shares = [
            round(100 * row[experts] / total, 2) for row, total in zip(counts, sums, strict=True)
        ]
        if any(shares):
            traces.append({"type": "bar", "name": f"{experts} experts", "x": names, "y": shares})
    return traces


def _correlation(review: Table, first_layer: int) -> Chart:
    values = review["at_budget"]["held_out"]["experts_nats_correlation"]
    trace = {
        "type": "bar",
        "x": [f"layer {first_layer + index}" for index in range(len(values))],
        "y": values,
    }
    return Chart(
        name="correlation",
        title=f"Do hard tokens get more experts? (budget {review['budget']:g})",
        hint="Above 0, tokens that are hard to predict take more experts than easy ones.",
        choices={"": [trace]},
        layout=axes("", "correlation of experts with nats"),
    )


def _divergence(found: Table, first_layer: int) -> Chart:
    names = found["domains"]
    matrices = {"mean of layers": found["mean"]}
    matrices |= {
        f"layer {first_layer + index}": matrix for index, matrix in enumerate(found["by_layer"])
    }
    top = max(max(max(row) for row in matrix) for matrix in found["by_layer"])
    choices = {}
    for name, matrix in matrices.items():
        trace = {
            "type": "heatmap",
            "x": names,
            "y": names,
            "z": matrix,
            "zmin": 0,
            "zmax": max(top, 1e-6),
            "autocolorscale": True,
            "texttemplate": "%{z:.3f}" if len(names) <= 8 else "",
            "colorbar": {"title": {"text": "bits"}, "thickness": 12},
            "hovertemplate": "%{y} and %{x}: %{z:.4f} bits<extra></extra>",
        }
        choices[name] = [trace]
    return Chart(
        name="divergence",
        title="How differently two domains use the experts",
        hint="Jensen-Shannon divergence of their loads: 0 for the same experts, 1 bit for none in"
        " common.",
        choices=choices,
        layout=axes(
            "domain", "domain", yaxis={"title": {"text": "domain"}, "autorange": "reversed"}
        ),
    )


def _knock_out(found: Sequence[Table]) -> Chart:
    names = [each["domain"] for each in found]
    own = {"type": "bar", "name": "its own text", "x": names, "y": [each["own"] for each in found]}
    others = own | {"name": "the other domains' text", "y": [each["others"] for each in found]}
    return Chart(
        name="knock-out",
        title="Damage from switching off a domain's favorite expert in every layer",
        hint="If experts specialize, the first bar is much taller: the others hardly miss them.",
        choices={"": [own, others]},
        layout=axes("whose favorites are off", "rise of loss (nats per token)", barmode="group"),
    )
