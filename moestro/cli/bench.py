"""`moestro bench`: how fast a model runs on this machine, and how fast it could.

Says on standard error where it is: on a busy machine a round takes many seconds.
Next: lm/speed.py.
"""

from rich.console import Console
from rich.table import Table

from moestro.cli import options


def bench(model: options.Model, as_json: options.Json = False) -> None:
    """Measure how fast a model reads and writes here, as a share of what the machine allows.

    Example: [bold]moestro bench runs/demo[/bold]
    """
    from moestro.engine.config import CacheConfig, DraftConfig, EngineConfig
    from moestro.engine.load import load_engine
    from moestro.lm.speed import measure_speed
    from moestro.weights.find import find_checkpoint

    # One stream, no prefix kept: each repeat reads its whole prompt.
    cache = CacheConfig(num_tokens=2048, has_prefix_reuse=False)
    config = EngineConfig(max_batch=1, cache=cache, draft=DraftConfig(mode="off"))
    checkpoint = find_checkpoint(model)
    options.say("loading")
    engine = load_engine(checkpoint, config, (), lambda stage, share: None)
    speed = measure_speed(engine, options.say)
    if as_json:
        options.print_json(speed.to_dict())
        return
    table = Table(show_header=False, box=None)
    rows = {
        "kernels": f"{speed.kernels} ({speed.reason}), {speed.threads} threads",
        "prefill": f"{speed.prefill_tokens_per_s:,.0f} tokens/s, {speed.prefill_share_of_peak:.0%}"
        f" of {speed.peak_flops / 1e9:,.0f} GFLOP/s in {speed.peak_dtype}"
        f" (prompt of {speed.prompt_tokens})",
        "decode": f"{speed.decode_tokens_per_s:,.1f} tokens/s,"
        f" {speed.decode_share_of_bandwidth:.0%} of {speed.read_bytes_per_s / 1e9:.1f} GB/s"
        f" ({speed.bytes_per_token / 1e6:,.1f} MB a token at a context of {speed.context})",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)
