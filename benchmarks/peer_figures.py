"""Samples to figures: speeds as shares of this machine's limits, and what was asked beside them."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from peer_bytes import decode_bytes
from peer_models import model_config
from rich.console import Console
from rich.table import Table

from moestro.model.count import prefill_flops

Result = dict[str, Any]
Measured = Callable[[Result], float | None]
# Of formats and other programs, the best one counts.
_LLAMA = ("llama.cpp Q4_0", "llama.cpp Q4_K_M", "llama.cpp Q8_0", "llama.cpp BF16")
# What is added to the name of a task in which our bits may depend on company, like all peers'.
FREE = ", free bits"
_OURS = ("moestro int4", "moestro int8", "moestro bf16")


def speed(result: Result, peer: str, task: str) -> float | None:
    """Return the median of a peer's tokens per second, or None if it did not do the task."""
    samples = result["peers"].get(peer, {}).get("samples", {}).get(task)
    return statistics.median(samples) if samples else None


def limit(result: Result, peer: str, task: str) -> float:
    """Return the tokens per second that memory or arithmetic allows."""
    config = model_config(result["model"])
    machine = {name: statistics.median(values) for name, values in result["machine"].items()}
    kind, length, *_ = task.replace(",", "").split()
    if kind == "prefill":
        return int(length) * machine["peak_flops"] / prefill_flops(config, int(length))
    sizes = result["peers"][peer]["bytes"]
    if task == "decode 8 streams":
        step = decode_bytes(config, sizes, distinct_experts(result), context=128, streams=8)
        return 8 * machine["read_bytes_per_s"] / step
    experts = config.fewest_experts if "half" in task else config.num_experts_per_tok
    return machine["read_bytes_per_s"] / decode_bytes(config, sizes, experts, int(length))


def distinct_experts(result: Result) -> float:
    """Return how many experts of a layer eight streams visit: counted by us, or as by dice."""
    counted = [peer.get("distinct_experts") for peer in result["peers"].values()]
    known = [count for count in counted if count]
    config = model_config(result["model"])
    share = config.num_experts_per_tok / config.n_routed_experts
    return known[0] if known else config.n_routed_experts * (1 - (1 - share) ** 8)


def print_peers(result: Result) -> None:
    """Print a row for each peer: tokens per second, and the share of the limit."""
    machine = {name: statistics.median(values) for name, values in result["machine"].items()}
    limits = ", ".join(f"{name} {value / 1e9:,.1f} G" for name, value in machine.items())
    tasks = list(dict.fromkeys(task for p in result["peers"].values() for task in p["samples"]))
    table = Table(title=f"{result['model']}: tokens/s and share of the limit ({limits})")
    for column in ("peer", *tasks, "peak GB", "load s"):
        table.add_column(column)
    for name, peer in result["peers"].items():
        if peer["samples"]:
            cells = (_cell(result, name, task) for task in tasks)
            size = f"{peer['peak_bytes'] / 1e9:.2f}"
            table.add_row(name, *cells, size, f"{peer['load_s']:.2f}")
    Console(width=160).print(table)
    for name, reason in result["absent"].items():
        print(f"absent: {name}: {reason}")


def print_figures(result: Result) -> None:
    """Print a row for each figure that was asked."""
    table = Table(title=f"{result['model']}: asked and measured")
    for column in ("figure", "asked", "measured", "measured / asked", "reached"):
        table.add_column(column)
    for name, asked, measured in figures(result):
        if measured is None:
            table.add_row(name, f">= {asked:g}", "not measured", "", "")
        else:
            ratio = measured / asked
            row = (
                f">= {asked:g}",
                f"{measured:.2f}",
                f"{ratio:.2f}",
                "yes" if ratio >= 1 else "no",
            )
            table.add_row(name, *row)
    Console(width=160).print(table)


def figures(result: Result) -> Iterator[tuple[str, float, float | None]]:
    """Yield what issue 4 asks of a model: its name, the figure asked, the figure measured."""
    column = ("small", "mid", "moonlight").index(result["model"])
    for name, asked, measured in _figures(result):
        if asked[column] is not None:
            yield name, asked[column], measured


def _figures(result: Result) -> Iterator[tuple[str, tuple[Any, ...], float | None]]:
    one, eight, fill = "decode 128", "decode 8 streams", "prefill 512"

    def versus(ours: tuple[str, ...], theirs: tuple[str, ...], task: str) -> float | None:
        return _ratio(_best(result, ours, task), _best(result, theirs, task))

    for task in (one, "decode 4096"):
        against = versus(_OURS[:1], _LLAMA[:1], task)
        yield f"{task}, int4 / llama.cpp Q4_0", (1.3, 1.4, 1.4), against
        yield f"{task}, int4, share of bandwidth", (None, 0.75, 0.75), _share(result, task)
    yield f"{one}, int8 / Q8_0", (1.2, 1.2, None), versus(_OURS[1:2], _LLAMA[2:3], one)
    yield f"{one}, bf16 / BF16", (1.0, 1.0, None), versus(_OURS[2:], _LLAMA[3:], one)
    yield f"{eight}, int4 / Q4_0", (2.0, 2.0, 2.0), versus(_OURS[:1], _LLAMA[:1], eight)
    yield (
        f"{eight}, int4, share of distinct experts' limit",
        (None, 0.75, None),
        _share(result, eight),
    )
    for end in ("", FREE):
        ours, theirs = (
            _best(result, peers, f"{fill}{each}") for peers, each in ((_OURS, end), (_LLAMA, ""))
        )
        yield f"{fill}, best{end} / llama.cpp's best", (2.5, 2.5, 2.5), _ratio(ours, theirs)
    vllm, hugging_face = ("vllm bf16",), ("transformers bf16",)
    yield f"{fill}, best / vLLM", (None, 2.0, None), versus(_OURS, vllm, fill)
    yield f"{one}, bf16 / transformers", (8.0, 4.0, None), versus(_OURS[2:], hugging_face, one)
    yield f"{one}, bf16 / vLLM", (None, 2.0, None), versus(_OURS[2:], vllm, one)
    halved = speed(result, _OURS[0], "decode 128, half the experts")
    full = speed(result, _OURS[0], one)
    yield "half the experts / all, int4", (None, 1.25, 1.25), _ratio(halved, full)


def _cell(result: Result, peer: str, task: str) -> str:
    measured = speed(result, peer, task)
    if measured is None:
        return "-"
    return f"{measured:,.1f} ({measured / limit(result, peer, task):.0%})"


def _best(result: Result, peers: tuple[str, ...], task: str) -> float | None:
    speeds = [speed(result, peer, task) for peer in peers]
    return max((each for each in speeds if each is not None), default=None)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs


def _share(result: Result, task: str) -> float | None:
    measured = speed(result, _OURS[0], task)
    return None if measured is None else measured / limit(result, _OURS[0], task)
