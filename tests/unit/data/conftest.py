"""Documents and a tokenizer that every test of the data may use: small, and made here."""

import pytest

from moestro.data.corpus import Document
from moestro.text.learn import learn
from moestro.text.tokenizer import Tokenizer


def make_document(number: int, domain: str = "python") -> Document:
    lines = [f"def function_{number}_{line}(x):\n    return x + {line}\n" for line in range(5)]
    return Document(text="\n".join(lines), name=f"file_{number}.py", domain=domain)


@pytest.fixture(scope="session")
def documents() -> tuple[Document, ...]:
    return tuple(make_document(number, ("python", "c")[number % 2]) for number in range(200))


@pytest.fixture(scope="session")
def tokenizer(documents: tuple[Document, ...]) -> Tokenizer:
    return learn((document.text for document in documents), vocab_size=300)
