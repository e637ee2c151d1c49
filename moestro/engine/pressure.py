"""The budget that requests with `experts` "auto" are granted: less while many wait.

Pure arithmetic over counts; the time is an argument. Next: config.py, scheduler.py.
"""

from moestro.engine.config import PressureConfig


class Pressure:
    """Moves between declared `levels`, from the most experts to the fewest, one step at a time.

    A level is left only after the queue has been long (or short) for all of `dwell_s`: a burst that
    the next steps take in changes nothing, and a queue between the two bounds never does.
    """

    def __init__(self, config: PressureConfig, fewest: float, most: float) -> None:
        last = config.steps - 1
        self.levels = tuple(
            fewest + (most - fewest) * (last - step) / last for step in range(config.steps)
        )
        self._config = config
        self._step = 0
        self._trend = 0
        self._since_s = 0.0

    @property
    def level(self) -> float:
        """The budget that is granted now."""
        return self.levels[self._step]

    def update(self, now_s: float, num_waiting: int, num_running: int) -> float:
        """Note the queue as it is from now on, and return the level; call it after every step."""
        self._follow(now_s)
        trend = self._judge(num_waiting, num_running)
        if trend != self._trend:
            self._trend, self._since_s = trend, now_s
        return self.level

    def _follow(self, now_s: float) -> None:
        if not self._trend or now_s - self._since_s < self._config.dwell_s:
            return
        num_steps = 1
        if self._trend < 0 and self._config.dwell_s > 0:
            # Nobody looks while nothing runs: after a pause, all steps that were due are taken.
            num_steps = int((now_s - self._since_s) / self._config.dwell_s)
        self._step = min(max(self._step + self._trend * num_steps, 0), len(self.levels) - 1)
        self._since_s = now_s

    def _judge(self, num_waiting: int, num_running: int) -> int:
        num_waiting_each = num_waiting / max(num_running, 1)
        if num_waiting_each > self._config.high:
            return 1
        # An empty queue is short, even where `low` is 0.
        return -1 if num_waiting_each < self._config.low or num_waiting == 0 else 0
