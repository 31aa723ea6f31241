"""Progress of a run: lines for people, `metrics.jsonl`, and events for TensorBoard."""

import time
from collections.abc import Callable
from typing import Any

from whitebench.records import Run
from whitebench.sinks import TensorBoard
from whitebench.text import duration

LOG_SECONDS = 10.0


def log_group(events: TensorBoard, group: str, values: dict[str, Any], step: int) -> None:
    """Writes the values that are numbers as `group/name`."""
    numbers = {f"{group}/{name}": float(value) for name, value in values.items() if value is not None}
    events.log(step, numbers)


class Progress:
    """Prints a line every `LOG_SECONDS`, and for the last of `total`; in training also writes it to files.

    Args:
        run: whose `metrics.jsonl` is written; None in processes other than the first, which print nothing.
        batch: images per unit of progress.
    """

    def __init__(
        self,
        run: Run | None,
        start: int,
        total: int,
        batch: int,
        say: Callable[[str], None],
        events: TensorBoard | None = None,
    ) -> None:
        self.run, self.start, self.total, self.batch, self.say, self.events = run, start, total, batch, say, events
        self.start_time = self.last_time = time.monotonic()

    def report(self, unit: str, done: int, losses: dict[str, float] | None = None, lr: float = 0.0) -> None:
        """Takes how many units (iterations, images) of the total are done."""
        now = time.monotonic()
        if self.run is None or (now - self.last_time < LOG_SECONDS and done < self.total):
            return
        self.last_time = now
        rate = (done - self.start) / max(now - self.start_time, 1e-9)
        remaining_s, images_per_s, loss = (self.total - done) / rate, rate * self.batch, ""
        if losses is not None:
            values = {"loss": sum(losses.values()), **losses, "lr": lr, "images_per_s": images_per_s}
            self.run.log(step=done, steps=self.total, **values, eta_s=round(remaining_s))
            if self.events is not None:
                log_group(self.events, "train", values, done)
            loss = f"  loss {values['loss']:.3f}"
        time_left = duration(remaining_s)
        self.say(f"{unit} {done}/{self.total}{loss}  {images_per_s:.1f} images/s  {time_left} left")
