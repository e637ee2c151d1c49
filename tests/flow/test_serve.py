"""`moestro serve` as a user starts it: a real model behind a real port, and the usual mistakes."""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from moestro import settings
from moestro.cli.serve import announce, load_tables
from moestro.cli.wiring import ServeConfig
from moestro.errors import ConfigError
from moestro.server.config import ServerConfig
from tests.flow.processes import children_of
from tests.flow.program import TIMEOUT_S, fork, run, start


@dataclass(frozen=True)
class Serving:
    process: "subprocess.Popen[str]"
    url: str

    def ask(self, **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/completions", json=fields, timeout=TIMEOUT_S)

    def wait_until_ready(self) -> None:
        end = time.monotonic() + TIMEOUT_S
        while httpx.get(f"{self.url}/ready").status_code != 200:
            assert time.monotonic() < end
            assert self.process.poll() is None
            time.sleep(0.05)

    def read_until(self, words: str) -> str:
        """Read what is said up to the line with these words; it must come before the end."""
        assert self.process.stderr is not None
        lines = [""]
        while words not in lines[-1]:
            lines.append(self.process.stderr.readline())
            assert lines[-1], "".join(lines)
        return "".join(lines)

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        err = self.process.stderr.read()
        return self.process.wait(TIMEOUT_S), err


@contextmanager
def serving(*arguments: object, cwd: Path) -> Iterator[Serving]:
    with start("serve", *arguments, "--port", "0", cwd=cwd) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.search(r"at (http://\S+)/v1$", line.strip())
            assert found, line
            yield Serving(process, found[1])
        finally:
            process.kill()


def engines(pid: int) -> list[int]:
    """List a server's engine processes."""
    return [child for child in children_of(pid) if is_engine(child)]


def is_engine(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def test_a_model_is_served_from_its_folder_to_the_end(model: Path, workplace: Path) -> None:
    with serving(model, cwd=workplace) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        loading = server.ask(model="run", prompt="alpha", max_tokens=1)
        assert loading.status_code in (200, 503)
        server.wait_until_ready()
        assert httpx.get(f"{server.url}/").headers["content-type"].startswith("text/html")
        (card,) = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert card["id"] == "run"
        answer = server.ask(model="run", prompt="alpha", max_tokens=5, experts="min").json()
        assert answer["usage"]["completion_tokens"] <= 5
        assert answer["usage"]["mean_experts"] == card["fewest_experts"]
        (engine,) = engines(server.process.pid)
        # Looked for ten times a second, and all of the above takes less.
        assert "curl" in server.read_until("ready after")
        status, err = server.end()
        assert status == 0, err
        assert not is_engine(engine)


def test_a_checkpoint_whose_weights_are_damaged_ends_the_server(
    checkpoint: Path, workplace: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in checkpoint.glob("*.json"):
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = (checkpoint / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    ended = run("serve", damaged, "--port", "0", cwd=workplace)
    assert ended.status == 2
    assert "model.safetensors" in ended.err.splitlines()[-1]


def test_mistakes_get_one_line_and_status_2(model: Path, workplace: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in fork("serve", model, "--port", port, cwd=workplace).complaint()
    assert "nowhere" in fork("serve", "nowhere", "--port", "0", cwd=workplace).complaint()


def test_flags_go_over_settings_and_settings_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        'model = "run"\nname = "a"\n[server]\nport = 1\nhost = "::1"\n[engine]\nmax_batch = 4\n'
    )
    config = read(file, "engine.max_batch=5", "server.port=2", port=3)
    assert (config.name, config.model) == ("a", Path("run"))
    assert (config.server.host, config.server.port, config.engine.max_batch) == ("::1", 3, 5)


def test_a_folder_is_served_with_the_defaults() -> None:
    config = read(Path("runs/demo"))
    assert (config.model, config.server.port) == (Path("runs/demo"), 8000)


@pytest.mark.parametrize("text", ["", 'model = "a"\n[[models]]\npath = "b"\n'])
def test_a_file_names_one_model_or_several(tmp_path: Path, text: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="give one model, or several"):
        load_tables(file, [], host=None, port=None)


def test_a_file_without_a_model_is_named_for_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "own-text.toml"
    file.write_text('preset = "demo"\n')
    with pytest.raises(
        ConfigError, match=r"own-text\.toml: names no model to serve: give one model"
    ):
        load_tables(file, [], host=None, port=None)


@pytest.mark.parametrize("has_users", [False, True])
def test_what_to_try_has_a_key_where_users_have_keys(
    capsys: pytest.CaptureFixture[str], has_users: bool
) -> None:
    announce(ServerConfig(host="0.0.0.0"), 8000, ["a"], has_users=has_users)
    said = capsys.readouterr().err
    assert ("Bearer KEY" in said) == has_users
    assert ("anybody who can reach" in said) != has_users


def test_the_example_configuration_is_valid() -> None:
    example = Path(__file__).parents[2] / "configs" / "serve.toml"
    config = read(example)
    assert config.model == Path("runs/demo")


def read(source: Path, *assignments: str, port: int | None = None) -> ServeConfig:
    return settings.build(ServeConfig, load_tables(source, assignments, host=None, port=port))
