"""A folder with text, a configuration and a finished run of it, made once for all flows."""

import random
import signal
from pathlib import Path

import pytest
import tomli_w

from tests.builders import MICRO_SHAPE
from tests.flow.program import Ended, run

SHAPE = MICRO_SHAPE | {"vocab_size": 300}
SIZES = {"seq_len": 24, "batch_size": 4, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="session", autouse=True)
def _minds_ctrl_c() -> None:
    """Have programs start as from a terminal: a script's background jobs ignore Ctrl-C for good."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `text` and `micro.toml`, in which a person types commands."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "text").mkdir()
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "return", "print", "(x)", "=", "\n"]
    for number in range(24):
        lines = " ".join(draw.choice(words) for _ in range(120))
        (folder / f"text/{number}.py").write_text(f"# {number}\n{lines}\n")
    tables = {
        "model": SHAPE,
        "data": {"paths": ["text"], "held_out": 0.2},
        "train": SIZES | {"steps": 6},
    }
    (folder / "micro.toml").write_text(tomli_w.dumps(tables))
    return folder


@pytest.fixture(scope="session")
def trained(workplace: Path) -> Ended:
    """What the training of `run` in the workplace left on the terminal."""
    return run("train", "micro.toml", "--out", "run", "--json", cwd=workplace)


@pytest.fixture(scope="session")
def model(workplace: Path, trained: Ended) -> Path:
    """The finished run, for reading only."""
    assert trained.status == 0, trained.err
    return workplace / "run"


@pytest.fixture(scope="session")
def checkpoint(model: Path) -> Path:
    """Its newest checkpoint, for reading only."""
    return model / "checkpoints" / (model / "latest").read_text().strip()
