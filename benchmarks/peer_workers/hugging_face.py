"""transformers in bfloat16 behind protocol.py, with the fastest of its ways to run experts."""

import time
from typing import Any

import torch
import transformers
from protocol import THREADS, Decoded, serve
from transformers import AutoModelForCausalLM, DynamicCache

# "batched_mm" copies an expert's weights for each token: gigabytes for a prompt.
WAYS = {
    "prefill": ("grouped_mm", "eager"),
    "decode": ("grouped_mm", "batched_mm", "eager"),
}
_TRIAL_STEPS = 4


class HuggingFace:
    """A model and the caches of prompts that were read."""

    def __init__(self, folder: str) -> None:
        torch.set_num_threads(THREADS)
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, experts_implementation="grouped_mm"
        ).eval()
        self.vocab_size: int = self._model.config.vocab_size
        self.about: dict[str, Any] = {
            "version": transformers.__version__,
            "torch": torch.__version__,
            "threads": THREADS,
            "experts_implementation": {},
        }
        self._caches: dict[tuple[int, int], tuple[DynamicCache, torch.Tensor]] = {}
        self._way: dict[str, str] = {}

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> float:
        """Return the seconds from a prompt to the token that follows it."""
        self._choose("prefill", lambda: self._read([prompt]))
        start = time.perf_counter()
        self._read([prompt])
        return time.perf_counter() - start

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], steps: int) -> Decoded:
        """Continue all prompts at once, greedily; their caches stay."""
        key = (len(prompts), len(prompts[0]))
        if key not in self._caches:
            self._caches[key] = self._read(prompts)
        self._choose(f"decode {key[0]}", lambda: self._write(key, _TRIAL_STEPS))
        return self._write(key, steps)

    def _read(self, prompts: list[list[int]]) -> tuple[DynamicCache, torch.Tensor]:
        cache = DynamicCache(config=self._model.config)
        out = self._model(torch.tensor(prompts), past_key_values=cache, logits_to_keep=1)
        return cache, out.logits[:, -1].argmax(-1, keepdim=True)

    def _write(self, key: tuple[int, int], steps: int) -> Decoded:
        cache, tokens = self._caches[key]
        written = []
        start = time.perf_counter()
        for _ in range(steps):
            out = self._model(tokens, past_key_values=cache, logits_to_keep=1)
            tokens = out.logits[:, -1].argmax(-1, keepdim=True)
            written.append(tokens.flatten().tolist())
        seconds = time.perf_counter() - start
        cache.crop(key[1] - cache.get_seq_length())
        return Decoded(seconds, [list(stream) for stream in zip(*written, strict=True)])

    def _choose(self, task: str, run: Any) -> None:
        """Try every way once, the second time that each has run, and keep the fastest."""
        if task not in self._way:
            seconds = {}
            for way in WAYS[task.split()[0]]:
                self._model.set_experts_implementation(way)
                run()
                start = time.perf_counter()
                run()
                seconds[way] = time.perf_counter() - start
            self._way[task] = min(seconds, key=lambda way: seconds[way])
            self.about["experts_implementation"][task] = seconds
        self._model.set_experts_implementation(self._way[task])


if __name__ == "__main__":
    serve(HuggingFace)
