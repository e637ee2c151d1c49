"""A model of the demo's shape that has learned to write JSON by a schema, for benchmarks.

What it learns from is made on the spot: lists of people, under a line that numbers them.
"""

import json
import random
from pathlib import Path
from typing import Any

from moestro.train.config import build_run_config
from moestro.train.loop import train
from moestro.train.run import open_run

_NUM_DOCUMENTS = 1_500
_KINDS = ("reader", "writer", "both")
# fmt: off
_GIVEN = (
    "Ada", "Alan", "Amira", "Bela", "Carla", "Chen", "Dana", "Edith", "Farid", "Grace", "Hugo",
    "Ines", "Jonas", "Kofi", "Lena", "Mira",
)
_FAMILY = (
    "Abbott", "Becker", "Castro", "Diaz", "Engel", "Fischer", "Garcia", "Hopper", "Ito", "Jensen",
    "Kaya", "Lindt", "Mora",
)
_TAGS = (
    "art", "biology", "chess", "drama", "essays", "film", "gardens", "history", "ink", "jazz",
    "law", "maps", "novels", "opera",
)
# fmt: on

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "kind": {"enum": list(_KINDS)},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
# So many that no answer is complete before its last token.
SCHEMA = json.dumps({"type": "array", "items": _PERSON, "minItems": 50})


def prompt_text(number: int) -> str:
    """Return the line behind which the model writes a list of people."""
    return f"List {number} of people, as JSON:\n"


def train_json_model(folder: Path, steps: int) -> Path:
    """Train in a run folder, for a minute or so; return the checkpoint."""
    draw = random.Random(0)
    path = folder.with_suffix(".jsonl")
    texts = (
        prompt_text(number) + json.dumps([_person(draw) for _ in range(60)])
        for number in range(_NUM_DOCUMENTS)
    )
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tables = {
        "preset": "demo",
        "data": {"paths": [str(path)]},
        "train": {"steps": steps, "seq_len": 512, "batch_size": 4},
    }
    return train(open_run(build_run_config(tables), folder), []).checkpoint


def _person(draw: random.Random) -> dict[str, Any]:
    return {
        "name": f"{draw.choice(_GIVEN)} {draw.choice(_FAMILY)}",
        "age": draw.randint(6, 99),
        "kind": draw.choice(_KINDS),
        "tags": draw.sample(_TAGS, draw.randint(0, 4)),
    }
