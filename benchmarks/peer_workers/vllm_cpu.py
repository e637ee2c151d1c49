"""vLLM's CPU build behind protocol.py: its offline engine, in this process, step by step.

Loading compiles the model: minutes the first time, then less, as the compiler's results are kept in
vLLM's own cache. It reads prompts of latent attention anew for each task and in one piece.
"""

import os
import time
from typing import Any

# Before vLLM is imported, which reads them then.
os.environ |= {
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}

import torch
import vllm
from protocol import THREADS, Decoded, serve
from vllm import LLM, SamplingParams


class VllmCpu:
    """An engine, asked for one thing at a time."""

    def __init__(self, folder: str) -> None:
        torch.set_num_threads(THREADS)
        model = LLM(
            folder,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=8192,
            max_num_seqs=8,
        )
        self._engine = model.llm_engine
        self.vocab_size: int = model.model_config.get_vocab_size()
        self.about: dict[str, Any] = {
            "version": vllm.__version__,
            "torch": torch.__version__,
            "threads": THREADS,
        }
        self._numbers = iter(range(10**9))

    def prefill(self, prompt: list[int]) -> float:
        """Return the seconds from a prompt to the token that follows it."""
        start = time.perf_counter()
        self._submit(prompt, max_tokens=1)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return time.perf_counter() - start

    def decode(self, prompts: list[list[int]], steps: int) -> Decoded:
        """Continue all prompts at once, greedily."""
        # Some streams begin while others' prompts are read: all must last until the end.
        ids = [self._submit(prompt, max_tokens=steps + 64) for prompt in prompts]
        texts: dict[str, list[int]] = {}
        while len(texts) < len(ids):
            self._step(texts)
        before = {name: len(text) for name, text in texts.items()}
        start = time.perf_counter()
        for _ in range(steps):
            self._step(texts)
        seconds = time.perf_counter() - start
        streams = [texts[name][before[name] :] for name in ids]
        if any(len(stream) != steps for stream in streams):
            raise SystemExit(f"vLLM wrote {[len(stream) for stream in streams]} in {steps} steps")
        self._engine.abort_request(ids)
        return Decoded(seconds, streams)

    def _submit(self, prompt: list[int], max_tokens: int) -> str:
        name = f"request-{next(self._numbers)}"
        wish = SamplingParams(
            temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False
        )
        self._engine.add_request(name, {"prompt_token_ids": prompt}, wish)
        return name

    def _step(self, texts: dict[str, list[int]]) -> None:
        for output in self._engine.step():
            texts[output.request_id] = list(output.outputs[0].token_ids)


if __name__ == "__main__":
    serve(VllmCpu)
