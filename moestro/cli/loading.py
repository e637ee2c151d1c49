"""Models on their way to being ready, as a person at a terminal sees them.

Everything goes to standard error. Knows backends, not what loads. Next: serving.py.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from moestro.backends.local import LocalBackend
from moestro.errors import MoestroError

_LOOK_EVERY_S = 0.1


class Loading:
    """Shows how far each model is. `fault` is why one of them can never be ready."""

    def __init__(self, backends: Sequence[LocalBackend]) -> None:
        self.fault: MoestroError | None = None
        self._backends = backends
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[stage]}"),
            console=self._console,
            transient=True,
        )

    async def watch(self, stop_server: Callable[[], None]) -> None:
        """Show progress until every model is ready; stop the server if one cannot be."""
        began = time.monotonic()
        if self._console.is_terminal:
            self._progress.start()
        try:
            await asyncio.gather(*(self._watch_one(backend) for backend in self._backends))
        finally:
            # Elsewhere it would print an empty line.
            if self._console.is_terminal:
                self._progress.stop()
        if self.fault is not None:
            stop_server()
        elif all(backend.engine.state == "ready" for backend in self._backends):
            self._say(f"ready after {time.monotonic() - began:.1f} s")

    async def _watch_one(self, backend: LocalBackend) -> None:
        engine, name, said = backend.engine, backend.cards()[0].id, ""
        bar = self._progress.add_task(name, total=1.0, stage="")
        while engine.state not in ("ready", "stopped"):
            self._progress.update(bar, completed=engine.progress, stage=engine.stage)
            if engine.stage != said and not self._console.is_terminal:
                self._say(f"{name}: {engine.stage}")
            said = engine.stage
            await asyncio.sleep(_LOOK_EVERY_S)
        self._progress.update(bar, completed=1.0, stage=engine.state)
        self.fault = self.fault or engine.fault

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, soft_wrap=True)
