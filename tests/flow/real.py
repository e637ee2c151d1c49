"""A tiny real model in a checkpoint folder, and `moestro serve` of it in a process of its own.

The model has all that a checkpoint may have: experts with a learned budget, an MTP module,
fill-in-the-middle tokens, a chat template. Its weights are random, so that what it says is noise
and nothing is likely; the noise is the same every time. Next: test_real_completions.py.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import tomli_w
import torch

import moestro
from moestro.engine.worker import STATS_EVERY_S
from moestro.model.config import ModelConfig
from moestro.text.learn import SPECIAL_TOKENS, learn
from moestro.text.tokenizer import Tokenizer
from moestro.train.calibrate import calibrate
from moestro.weights.export import save_model
from tests.builders import random_model

TIMEOUT_S = 60.0
NAME = "tiny"
KEY = "a long and random key"
HEADERS = {"authorization": f"Bearer {KEY}"}
TEXT = "".join(
    f"def area_{number}(radius, height={number}):\n    return radius * height + {number * 7}\n\n"
    for number in range(60)
)
TEMPLATE = """\
{% for tool in tools or [] %}{{ tool | tojson }}
{% endfor %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# A model may have more rows than its tokenizer has ids.
NUM_SPARE_ROWS = 2
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@dataclass(frozen=True)
class Served:
    """A server process, the folder that it serves, and where all that it says is written."""

    process: "subprocess.Popen[bytes]"
    url: str
    folder: Path
    log: Path

    def client(self) -> openai.OpenAI:
        """Connect OpenAI's client."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=TIMEOUT_S
        )

    def async_client(self) -> openai.AsyncOpenAI:
        """Connect OpenAI's asynchronous client."""
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=TIMEOUT_S
        )

    def anthropic(self) -> anthropic.Anthropic:
        """Connect Anthropic's client."""
        return anthropic.Anthropic(base_url=self.url, api_key=KEY, max_retries=0, timeout=TIMEOUT_S)

    def get(self, path: str) -> httpx.Response:
        """Read a page."""
        return httpx.get(f"{self.url}{path}", headers=HEADERS, timeout=TIMEOUT_S)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask what no client knows of."""
        answer = httpx.post(f"{self.url}{path}", json=body, headers=HEADERS, timeout=TIMEOUT_S)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def metric(self, name: str) -> float:
        """Read one of the model's own metrics."""
        pattern = rf'^moestro:{name}{{model_name="{NAME}"}} (\S+)$'
        found = re.search(pattern, self.get("/metrics").text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def settled(self, name: str) -> float:
        """Read a metric when all that was done before has been counted, which takes a moment."""
        values = [self.metric(name)]
        while len(values) < 2 or values[-1] != values[-2]:
            time.sleep(3 * STATS_EVERY_S)
            values.append(self.metric(name))
        return values[-1]


@contextmanager
def serving(
    folder: Path, *, max_length: int = SHAPE["max_position_embeddings"], **engine: Any
) -> Iterator[Served]:
    """Serve a fresh model from below `folder`, ready and with these settings of its engine."""
    model = build_folder(folder / NAME, max_length)
    tables = {
        "model": str(model),
        "engine": {"dtype": "float32", "num_threads": 1} | engine,
        "server": {"port": 0, "keys": {"allowed": {"alice": "env:ALICES_KEY"}}},
    }
    config, log = folder / "serve.toml", folder / "serve.log"
    config.write_text(tomli_w.dumps(tables))
    environment = {"PYTHONPATH": str(Path(moestro.__file__).parents[1]), "ALICES_KEY": KEY}
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            [sys.executable, "-m", "moestro", "serve", str(config)],
            env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        ) as process,
    ):
        try:
            wait_until(lambda: "/v1\n" in log.read_text() or process.poll() is not None)
            found = re.search(r"at (http://\S+)/v1\n", log.read_text())
            assert found, log.read_text()
            served = Served(process, found[1], model, log)
            wait_until(lambda: served.get("/ready").status_code == 200)
            yield served
        finally:
            process.kill()


def wait_until(is_true: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> float:
    """Wait for what another process does, and say how long that took; fail if it never does."""
    began = time.monotonic()
    while not is_true():
        assert time.monotonic() < began + timeout_s, "it never came true"
        time.sleep(0.01)
    return time.monotonic() - began


def build_folder(folder: Path, max_length: int) -> Path:
    """Write the model as a checkpoint folder."""
    folder.mkdir(parents=True)
    specials = (*SPECIAL_TOKENS, "<|im_start|>", "<|im_end|>")
    tokenizer = learn([TEXT], 400, specials)
    size = tokenizer.vocab_size + NUM_SPARE_ROWS
    shape = SHAPE | {"max_position_embeddings": max_length}
    model = random_model(ModelConfig(vocab_size=size, **shape), seed=1)
    assert model.lm_head is not None
    with torch.no_grad():
        # A logit of 0 never is the greatest of so many: greedy answers end by their length.
        model.lm_head.weight[: len(specials)] = 0
    tokens = torch.tensor(tokenizer.encode(TEXT)[:1024])
    calibrate(model, tokens.view(8, 128), fewest=2)
    save_model(model, folder)
    tokenizer.save(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder / "tokenizer_config.json", settings | {"chat_template": TEMPLATE})
    ends = [tokenizer.eos_id, *tokenizer.encode_trusted("<|im_end|>")]
    write(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": ends})
    return folder


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(document))


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return what the server makes of a completion's prompt."""
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]
