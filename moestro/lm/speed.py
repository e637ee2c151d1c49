"""How fast a model runs here, and how fast it could: what `moestro bench` tells.

One stream through an engine, as a server's worker steps it. Reading a prompt is bound by
arithmetic, writing an answer by memory: each token reads the weights that it visits and the latents
of all tokens before it. Next: engine/engine.py, ops/bandwidth.py.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from moestro.api.sampling import Sampling
from moestro.engine.engine import Engine
from moestro.engine.request import EngineRequest, FailEvent, TokensEvent
from moestro.errors import CheckpointError, ConfigError
from moestro.model.count import active_parameters, cache_numbers_per_token, prefill_flops
from moestro.model.model import Transformer
from moestro.ops.bandwidth import measure_read_bandwidth
from moestro.ops.choose import chosen_kernels
from moestro.ops.machine import measure_peak

_PROMPT = 512
_ANSWER = 64
_REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Medians of a few repeats; shares are of what was measured of the machine beside them."""

    kernels: str
    reason: str
    prompt_tokens: int
    context: int
    prefill_tokens_per_s: float
    prefill_share_of_peak: float
    decode_tokens_per_s: float
    decode_share_of_bandwidth: float
    bytes_per_token: int
    read_bytes_per_s: float
    peak_flops: float
    peak_dtype: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def measure_speed(engine: Engine, on_stage: Callable[[str], None] = lambda text: None) -> Speed:
    """Measure an engine that has nothing else to do; `on_stage` hears what is about to be done."""
    answer = min(_ANSWER, engine.max_length // 4)
    length = min(_PROMPT, engine.max_length - answer - 1)
    if answer < 2:
        raise ConfigError(f"this model reads {engine.max_length} tokens: too few to be measured")
    model, chosen = engine.model, chosen_kernels()
    prefills, decodes, reads, peaks = [], [], [], []
    for repeat in range(_REPEATS + 1):
        on_stage(f"measuring, {repeat} of {_REPEATS}" if repeat else "warming up")
        prefill_s, token_s = _run(engine, length, answer, repeat)
        reads.append(measure_read_bandwidth())
        peaks.append(measure_peak("cpu"))
        # The first one warms up.
        if repeat:
            prefills.append(prefill_s)
            decodes.append(token_s)
    read = statistics.median(reads)
    peak = sorted(peaks, key=lambda each: each.flops)[len(peaks) // 2]
    prefill, decode = length / statistics.median(prefills), 1 / statistics.median(decodes)
    context = length + answer // 2
    num_bytes = bytes_per_token(model, context)
    flops_per_s = prefill_flops(model.config, length) * prefill / length
    return Speed(
        kernels=chosen.kernels.name,
        reason=chosen.reason,
        prompt_tokens=length,
        context=context,
        prefill_tokens_per_s=prefill,
        prefill_share_of_peak=flops_per_s / peak.flops,
        decode_tokens_per_s=decode,
        decode_share_of_bandwidth=decode * num_bytes / read,
        bytes_per_token=num_bytes,
        read_bytes_per_s=read,
        peak_flops=peak.flops,
        peak_dtype=str(peak.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def bytes_per_token(model: Transformer, context: int) -> int:
    """Return the bytes of weights and latents that a token of an answer needs."""
    config = model.config
    latents = cache_numbers_per_token(config) * context * model.cache_dtype.itemsize
    if model.stack is not None and model.packed_head is not None:
        head = model.packed_head.weights.data_HnB.nbytes
        return model.stack.bytes_read(range(config.num_hidden_layers)) + head + latents
    numbers = active_parameters(config, config.num_experts_per_tok)
    return int(numbers) * model.compute_dtype.itemsize + latents


def _run(engine: Engine, length: int, answer: int, repeat: int) -> tuple[float, float]:
    """Return the seconds of a prompt, and the median of what an answer's tokens took."""
    draw = torch.Generator().manual_seed(repeat)
    prompt = torch.randint(engine.model.config.vocab_size, (length,), generator=draw).tolist()
    greedy = Sampling(temperature=0.0, ignore_eos=True)
    start = before = time.perf_counter()
    engine.submit(EngineRequest(id="", prompt=tuple(prompt), max_tokens=answer, sampling=greedy))
    prefill_s, tokens_s = 0.0, []
    while engine.has_work:
        events = engine.step()
        now = time.perf_counter()
        if any(isinstance(event, FailEvent) for event in events):
            raise CheckpointError("the model's logits are not finite: check the checkpoint")
        # A step may make several.
        num_tokens = sum(len(each.scores) for each in events if isinstance(each, TokensEvent))
        if num_tokens and not prefill_s:
            prefill_s, num_tokens = now - start, 0
        tokens_s += [(now - before) / max(num_tokens, 1)] * num_tokens
        before = now
    return prefill_s, statistics.median(tokens_s)
