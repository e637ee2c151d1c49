"""A model on its way to being ready, as a person at a terminal sees it.

Everything goes to standard error. Knows backends, not what loads. Next: serving.py.
"""

import asyncio
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from moestro.backends.local import LocalBackend
from moestro.errors import MoestroError

_LOOK_EVERY_S = 0.1


class Loading:
    """Shows how far a model is. `fault` is why it can never be ready."""

    def __init__(self, backend: LocalBackend) -> None:
        self.fault: MoestroError | None = None
        self._backend = backend
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
        """Show progress until the model is ready; stop the server if it cannot be."""
        began = time.monotonic()
        if self._console.is_terminal:
            self._progress.start()
        try:
            await self._wait()
        finally:
            # Elsewhere it would print an empty line.
            if self._console.is_terminal:
                self._progress.stop()
        if self.fault is not None:
            stop_server()
        elif self._backend.engine.state == "ready":
            name = self._backend.cards()[0].id
            self._say(f"{name}: ready after {time.monotonic() - began:.1f} s")

    async def _wait(self) -> None:
        engine, name, said = self._backend.engine, self._backend.cards()[0].id, ""
        bar = self._progress.add_task(name, total=1.0, stage="")
        while engine.state not in ("ready", "stopped"):
            self._progress.update(bar, completed=engine.progress, stage=engine.stage)
            if engine.stage != said and not self._console.is_terminal:
                self._say(f"{name}: {engine.stage}")
            said = engine.stage
            await asyncio.sleep(_LOOK_EVERY_S)
        self._progress.update(bar, completed=1.0, stage=engine.state)
        self.fault = engine.fault

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, soft_wrap=True)
