"""A file that we wrote, continued greedily by llama.cpp at full precision: our own tokens.

Skips where llama-cpp-python is neither in this environment nor in the one whose Python the variable
LLAMA_PYTHON names. Next: benchmarks/llama_parity.py.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moestro.text.gguf_export import write_vocabulary
from moestro.text.learn import learn
from moestro.weights.export import save_model
from moestro.weights.gguf_export import save_gguf
from moestro.weights.load import open_weights
from moestro.weights.quantize import Reader
from tests.builders import random_model, tiny_config
from tests.rules.tree import ROOT

HERE = sys.executable if importlib.util.find_spec("llama_cpp") else None
LLAMA = os.environ.get("LLAMA_PYTHON", HERE)


@pytest.mark.llama
@pytest.mark.skipif(LLAMA is None, reason="llama-cpp-python is not here: set LLAMA_PYTHON")
def test_llama_cpp_continues_like_us(tmp_path: Path) -> None:
    assert LLAMA is not None
    tokenizer = learn(["import os\n\nclass One:\n    def read(self, path):\n"] * 20, 300)
    model = random_model(tiny_config(vocab_size=300, max_position_embeddings=256, q_lora_rank=8))
    save_model(model, tmp_path)
    tokenizer.save(tmp_path)
    vocabulary = write_vocabulary(tokenizer, 300, None)
    file = tmp_path / "tiny.gguf"
    save_gguf(Reader(*open_weights(tmp_path)), file, None, vocabulary, name="tiny")
    script = ROOT / "benchmarks" / "llama_parity.py"
    arguments = [sys.executable, script, file, "--llama", LLAMA, "--moestro", sys.executable]
    ended = subprocess.run(arguments, stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT)
    for row in json.loads(ended.stdout):
        assert row["cut_alike"]
        assert row["agree"] == min(row["tokens"])
