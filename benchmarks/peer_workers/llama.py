"""llama.cpp through llama-cpp-python's low-level calls: a GGUF file behind protocol.py.

Every task has contexts of its own on the same weights, with flash attention and without: both are
tried once, and the faster one stays.
"""

import ctypes
import sys
import time
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
from protocol import THREADS, Decoded, serve

FLASH = {
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_BATCH = 512
# Room behind a prompt for what is written.
_ROOM = 512
_TRIAL_STEPS = 8


class LlamaCpp:
    """A model and its contexts."""

    def __init__(self, path: str) -> None:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.use_mmap = True
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp does not load {path}")
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(vocab)
        self.about: dict[str, Any] = {
            "version": llama_cpp.__version__,
            "system": llama_cpp.llama_print_system_info().decode(),
            "threads": THREADS,
            "flash_attention": {},
        }
        # By task: the contexts that are still in question, one in the end.
        self._prefill: dict[str, Context] = {}
        self._decode: dict[tuple[int, int], dict[str, Context]] = {}

    def prefill(self, prompt: list[int]) -> float:
        """Return the seconds from a prompt to the token that follows it."""
        if not self._prefill:
            self._prefill = self._open(1, 8192)
            seconds = {name: each.read([prompt]) for name, each in self._prefill.items()}
            self._settle("prefill", self._prefill, seconds)
        (context,) = self._prefill.values()
        return context.read([prompt])

    def decode(self, prompts: list[list[int]], steps: int) -> Decoded:
        """Continue all prompts at once, greedily; they stay in the cache."""
        key = (len(prompts), len(prompts[0]))
        if key not in self._decode:
            self._decode[key] = self._open(len(prompts), len(prompts[0]) + _ROOM)
            seconds = {}
            for name, each in self._decode[key].items():
                each.read(prompts)
                each.write(2)
                seconds[name] = each.write(_TRIAL_STEPS).seconds
            self._settle(f"decode {key[0]} x {key[1]}", self._decode[key], seconds)
        (context,) = self._decode[key].values()
        return context.write(steps)

    def _open(self, streams: int, length: int) -> dict[str, "Context"]:
        return {name: Context(self._model, self.vocab_size, streams, length, flash)
                for name, flash in FLASH.items()}  # fmt: skip

    def _settle(self, task: str, contexts: dict[str, "Context"], seconds: dict[str, float]) -> None:
        self.about["flash_attention"][task] = seconds
        slower = max(seconds, key=lambda name: seconds[name])
        contexts.pop(slower).close()


class Context:
    """A cache for some streams, each of its own length."""

    def __init__(self, model: Any, vocab_size: int, streams: int, length: int, flash: int) -> None:
        params = llama_cpp.llama_context_default_params()
        # Each stream has its share of the cells, so that none looks through the others'.
        params.n_ctx, params.n_seq_max = -(-length // 256) * 256 * streams, streams
        params.n_batch = params.n_ubatch = _BATCH
        params.n_threads = params.n_threads_batch = THREADS
        params.flash_attn_type = flash
        params.kv_unified = False
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise SystemExit("llama.cpp makes no context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab_size = vocab_size
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._lengths = [0] * streams
        self._next = [0] * streams

    def close(self) -> None:
        """Give the memory back."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def read(self, prompts: list[list[int]]) -> float:
        """Take prompts in, one after the other; return the seconds to the tokens that follow."""
        llama_cpp.llama_memory_clear(self._memory, True)
        start = time.perf_counter()
        for stream, prompt in enumerate(prompts):
            for first in range(0, len(prompt), _BATCH):
                part = prompt[first : first + _BATCH]
                places = [Place(stream, first + i, token) for i, token in enumerate(part)]
                self._run(places, wanted={len(prompt) - first - 1})
            self._next[stream] = self._best(-1)
            self._lengths[stream] = len(prompt)
        return time.perf_counter() - start

    def write(self, steps: int) -> Decoded:
        """Write so many tokens of every stream, then forget them."""
        streams = range(len(self._lengths))
        written: list[list[int]] = [[] for _ in streams]
        tokens = list(self._next)
        start = time.perf_counter()
        for step in range(steps):
            places = [Place(s, self._lengths[s] + step, tokens[s]) for s in streams]
            self._run(places, wanted=set(streams))
            tokens = [self._best(s) for s in streams]
            for stream, token in zip(written, tokens, strict=True):
                stream.append(token)
        seconds = time.perf_counter() - start
        for s in streams:
            llama_cpp.llama_memory_seq_rm(self._memory, s, self._lengths[s], -1)
        return Decoded(seconds, written)

    def _run(self, places: list["Place"], wanted: set[int]) -> None:
        batch = self._batch
        batch.n_tokens = len(places)
        for i, place in enumerate(places):
            batch.token[i], batch.pos[i] = place.token, place.position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, place.stream
            batch.logits[i] = i in wanted
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise SystemExit(f"llama_decode returned {status}")

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(address, (self._vocab_size,)).argmax())


@dataclass(frozen=True)
class Place:
    """One token of a batch."""

    stream: int
    position: int
    token: int


if __name__ == "__main__":
    sys.setswitchinterval(1.0)
    serve(LlamaCpp)
