"""A GGUF file that Moestro wrote, continued greedily by llama.cpp and by Moestro: the same tokens?

Run it with a Python that has llama-cpp-python, and name the Python that has Moestro's environment:

    python benchmarks/llama_parity.py demo.gguf --tokens 64

The two halves run in processes of their own, since the packages are rarely in one environment:
`--moestro` (default: the Python of this checkout's .venv) and `--llama` (default: this one).
Prints JSON: for each prompt, how many tokens agree before the first difference, and llama.cpp's
own tokenization against ours.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROMPTS = (
    "def read(self, path):\n    ",
    "import os\n\nclass ",
    "The return value is 123 or ",
    "    for key, value in table.items():\n",
)
_LLAMA = """
import json, sys
from llama_cpp import Llama
path, prompts, num_tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
# float32 keys and values: the default rounds them to float16.
model = Llama(path, n_ctx=512, type_k=0, type_v=0, flash_attn=False, verbose=False, n_threads=2)
found = []
for prompt in prompts:
    ids = model.tokenize(prompt.encode(), add_bos=True, special=False)
    made = []
    for token in model.generate(ids, temp=0.0, repeat_penalty=1.0, top_k=1):
        if token == model.token_eos() or len(made) == num_tokens:
            break
        made.append(token)
    found.append({"prompt": ids, "tokens": made})
print(json.dumps(found))
"""
_MOESTRO = """
import json, sys
import moestro
path, prompts, num_tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
lm = moestro.load(path)
found = []
for prompt in prompts:
    ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode(prompt)]
    found.append({"prompt": ids, "tokens": lm.generate(prompt, max_tokens=num_tokens).tokens})
print(json.dumps(found))
"""


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="what llama.cpp loads: a .gguf file")
    parser.add_argument("--ours", type=Path, help="what Moestro loads, if not the same file")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--llama", default=sys.executable)
    parser.add_argument("--moestro", default=".venv/bin/python")
    options = parser.parse_args()
    theirs = run(options.llama, _LLAMA, options.model, options.tokens)
    ours = run(options.moestro, _MOESTRO, options.ours or options.model, options.tokens)
    print(json.dumps(compare(ours, theirs), indent=2))


def run(python: str, program: str, model: Path, num_tokens: int) -> list[dict[str, Any]]:
    """Continue all prompts in one environment."""
    arguments = [python, "-c", program, str(model), json.dumps(PROMPTS), str(num_tokens)]
    ended = subprocess.run(arguments, stdout=subprocess.PIPE, check=True, text=True)
    found: list[dict[str, Any]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count, for each prompt, the tokens before the first difference."""
    rows = []
    for prompt, own, other in zip(PROMPTS, ours, theirs, strict=True):
        pairs = zip(own["tokens"], other["tokens"], strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        lengths = [len(own["tokens"]), len(other["tokens"])]
        rows.append(
            {
                "prompt": prompt,
                "cut_alike": own["prompt"] == other["prompt"],
                "tokens": lengths,
                "agree": min(lengths) if same is None else same,
            }
        )
    return rows


if __name__ == "__main__":
    main()
