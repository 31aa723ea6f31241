"""What a run says while it is at work: lines for people, `metrics.jsonl`, and events for TensorBoard."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whitebench.records import Run

LOG_SECONDS = 10.0
EVENTS = "tensorboard"


class Events:
    """Scalars for TensorBoard, in the run's folder. A resumed run hides those after `start`, which it writes again."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / EVENTS), purge_step=start or None)

    def add(self, values: dict[str, Any], step: int, group: str) -> None:
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"{group}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Progress:
    """A line to the user every so many seconds, and for the last of `total`; in training also to files.

    Args:
        run: whose `metrics.jsonl` is written; None: this process (a rank that keeps no record) says nothing.
        batch: images a unit of progress stands for.
    """

    def __init__(
        self,
        run: Run | None,
        start: int,
        total: int,
        batch: int,
        say: Callable[[str], None],
        events: Events | None = None,
    ) -> None:
        self.run, self.start, self.total, self.batch, self.say, self.events = run, start, total, batch, say, events
        self.began = self.told = time.monotonic()

    def tell(self, unit: str, done: int, losses: dict[str, float] | None = None, lr: float = 0.0) -> None:
        """`done` units (iterations, images) of the total are done."""
        now = time.monotonic()
        if self.run is None or (now - self.told < LOG_SECONDS and done < self.total):
            return
        self.told = now
        rate = (done - self.start) / max(now - self.began, 1e-9)
        left, speed, loss = (self.total - done) / rate, rate * self.batch, ""
        if losses is not None:
            values = {"loss": sum(losses.values()), **losses, "lr": lr, "images_per_s": speed}
            self.run.log(step=done, steps=self.total, **values, eta_s=round(left))
            if self.events is not None:
                self.events.add(values, done, "train")
            loss = f"  loss {values['loss']:.3f}"
        minutes, seconds = divmod(round(left), 60)
        self.say(f"{unit} {done}/{self.total}{loss}  {speed:.1f} images/s  {minutes}:{seconds:02d} left")
