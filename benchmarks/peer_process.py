"""A peer in a process of its own: started, asked one thing at a time. Next: peer_workers/."""

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKERS = Path(__file__).parent / "peer_workers"


class Absent(Exception):
    """A peer cannot be measured here; the text says why."""


@dataclass(frozen=True, kw_only=True)
class PeerSpec:
    """How a peer is started: which Python runs which script on which model.

    `memory` is roughly what it will take, in bytes. `preloaded` is a library that its makers
    recommend to load before all others; it need not be there.
    """

    name: str
    script: str
    python: Path
    model: Path
    memory: int
    preloaded: Path | None = None


@dataclass
class PeerProcess:
    """A running worker."""

    spec: PeerSpec
    log: Path
    about: dict[str, Any] = field(default_factory=dict)
    load_s: float = 0.0
    peak_bytes: int = 0

    def start(self) -> None:
        """Start and wait until the model is loaded; Absent if that fails."""
        if not self.spec.python.exists():
            raise Absent(f"{self.spec.python} is not there: its installation failed")
        # Where its libraries lie must not depend on whose environment this process runs in.
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        if self.spec.preloaded is not None and self.spec.preloaded.exists():
            kept["LD_PRELOAD"] = str(self.spec.preloaded)
        begin = time.perf_counter()
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [str(self.spec.python), str(WORKERS / self.spec.script), str(self.spec.model)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=kept | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"},
            )
        ready = self._answer()
        self.about, self.load_s = ready["about"], ready["load_s"]
        self.about["start_s"] = time.perf_counter() - begin

    def ask(self, **wish: Any) -> dict[str, Any]:
        """Have one task done; Absent if the worker ends over it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(wish) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None
        answer = self._answer()
        self.peak_bytes = answer["peak_bytes"]
        self.about = answer["about"]
        return answer

    def stop(self) -> None:
        """End the process and wait until its memory is free."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> Absent:
        self._process.wait()
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return Absent(f"ended with status {self._process.returncode}: {lines[-1] if lines else ''}")
