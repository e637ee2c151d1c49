"""A real tiny language model with text to read: built in milliseconds, nothing in it trained.

Knows no claims. Next: test_review.py.
"""

from pathlib import Path
from typing import Any

import numpy as np

from moestro.data.config import DataConfig
from moestro.data.corpus import Document
from moestro.data.shards import Shards, load, prepare
from moestro.data.split import Split
from moestro.lm.language_model import LanguageModel
from moestro.model.config import BudgetConfig, ModelConfig
from moestro.model.initialize import initialize
from moestro.model.model import Transformer
from moestro.text.learn import learn
from moestro.text.tokenizer import Tokenizer

PYTHON = '''\
import math


def area(radius):
    """Return the area of a circle."""
    if radius < 0:
        raise ValueError("negative")
    square = radius * radius
    return math.pi * square


class Box:
    def volume(self, depth):
        """Return height times width times depth."""
        base = self.height * self.width
        self.seen = True

        return base * depth
'''
C = """\
#ifndef BOX_H
#define BOX_H

int area(int height, int width);
struct box { int depth; };

#endif
"""
PROSE = """\
The box stood in the hall.
Nobody knew its depth.

It was opened on a Monday.
It was empty.
"""

_SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 4,
    "min_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "num_nextn_predict_layers": 1,
    "budget": BudgetConfig(fractions=(0.0, 0.5, 1.0), thresholds=((0.0, -0.1, -0.5),) * 3),
}
DENSE = {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0, "budget": BudgetConfig()}
FIXED = {"min_experts_per_tok": None, "budget": BudgetConfig()}
GREEDY = {"model_type": "deepseek_v2", "topk_method": "greedy"}


def documents() -> list[Document]:
    """Return a few documents of three domains, each text its own."""
    found = []
    for number in range(4):
        found += [
            Document(text=f"# part {number}\n{PYTHON}", name=f"box{number}.py", domain="python"),
            Document(text=f"/* {number} */\n{C}", name=f"box{number}.h", domain="c"),
            Document(text=f"Chapter {number}.\n{PROSE}", name=f"box{number}.txt", domain="prose"),
        ]
    return found


def tokenizer() -> Tokenizer:
    """Learn 320 tokens from the documents."""
    return learn([document.text for document in documents()], 320)


def language_model(seed: int = 0, **changes: Any) -> LanguageModel:
    """Build an untrained model, some fields of its shape changed."""
    model = Transformer(ModelConfig(**(_SHAPE | changes)))
    initialize(model, seed)
    return LanguageModel(model.eval(), tokenizer())


def shards(folder: Path, fim_rate: float = 0.0) -> Shards:
    """Write the documents into `folder` and open it: the first half is held out."""
    half = len(documents()) // 2
    parts = Split(training=tuple(documents()[half:]), held_out=tuple(documents()[:half]))
    prepare(parts, tokenizer(), DataConfig(fim_rate=fim_rate, fim_bytes=64), folder / "data")
    return load(folder / "data")


def rows(num: int) -> list[dict[str, Any]]:
    """Return the metrics of a run of `num` steps."""
    dice = np.random.default_rng(0)
    return [
        {
            "step": step,
            "tokens": 100 * step,
            "seconds": 0.5 * step,
            "loss": float(2 + 5 / step + dice.normal() / 10),
            "mtp_loss": 3.0,
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
            "mean_experts": 3.0,
            "max_violation": 0.2,
            "tokens_per_s": 200.0,
            "mfu": 0.4,
            "eta_s": 1.0,
        }
        for step in range(1, num + 1)
    ]
