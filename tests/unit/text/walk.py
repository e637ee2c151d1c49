"""Writes a text at random within a grammar, as a model that knows nothing would.

Next: test_grammar.py.
"""

import random

import numpy as np

from moestro.text.grammar import Grammar
from moestro.text.tokenizer import Tokenizer


def walk(grammar: Grammar, tokenizer: Tokenizer, chance: random.Random, limit: int = 3000) -> str:
    """Take allowed tokens at random; after some time only those that close what is open."""
    ids: list[int] = []
    closing = {tokenizer.eos_id}
    closing |= {
        token_id
        for token_id in range(tokenizer.vocab_size)
        if tokenizer.token_bytes(token_id) in {b'"', b"]", b"}", b"e", b"l"}
    }
    while not grammar.is_finished:
        allowed = allowed_ids(grammar)
        ends = [token_id for token_id in allowed if token_id in closing]
        token_id = chance.choice(ends if ends and chance.random() < len(ids) / 50 else allowed)
        grammar.accept(token_id)
        ids.append(token_id)
        assert len(ids) < limit
    return tokenizer.decode(ids)


def allowed_ids(grammar: Grammar) -> list[int]:
    """Return the tokens that may come next, in order."""
    bits = np.frombuffer(grammar.mask(), dtype=np.uint8)
    ids: list[int] = np.unpackbits(bits, bitorder="little").nonzero()[0].tolist()
    return ids
