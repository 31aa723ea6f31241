"""Sends a run's metrics to TensorBoard or Weights & Biases while it runs, next to `metrics.jsonl`.

$WHITEBENCH_SINKS lists the sinks, separated by commas: `tensorboard` (event files in the run's folder), `wandb` (with
its own variables, such as WANDB_PROJECT and WANDB_MODE). They change no result and are not part of a run's identity.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from whitebench.errors import UserError, nearest

VARIABLE = "WHITEBENCH_SINKS"
PROJECT = "whitebench"


class Sink(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<run>/tensorboard`; after a resumption, steps that are repeated replace the earlier ones."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=None if step is None else step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One W&B run per run, with the same id; a resumed run continues it."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], step: int | None) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.run = wandb.init(project=project, id=name, name=name, config=config, dir=str(folder), resume="allow")

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


KINDS: dict[str, tuple[Callable[[Path, str, dict[str, Any], int | None], Sink], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WeightsAndBiases, "wandb"),
}
"""By name: the class, and the package that it needs."""


class Sinks:
    """All sinks of a run. One that fails is reported once and not used again: it never stops a training."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any], step: int | None = None) -> None:
        """`step` is the last valid step of a resumed run, None of a new one.

        Raises:
            UserError: a name in $WHITEBENCH_SINKS is unknown, or its package is not installed.
        """
        self.open: dict[str, Sink] = {}
        for kind in sink_names():
            self._try(kind, partial(self._open, kind, folder, name, config, step))

    def _open(self, kind: str, *arguments: Any) -> None:
        self.open[kind] = KINDS[kind][0](*arguments)

    def log(self, values: dict[str, Any]) -> None:
        """The numbers among `values`, at their "step"; without one, nothing."""
        step = values.get("step")
        others = {key: value for key, value in values.items() if key not in ("step", "time")}
        numbers = {key: float(value) for key, value in others.items() if _is_number(value)}
        if isinstance(step, int) and numbers:
            for kind, sink in list(self.open.items()):
                self._try(kind, partial(sink.log, step, numbers))

    def close(self) -> None:
        for kind, sink in list(self.open.items()):
            self._try(kind, sink.close)
        self.open.clear()

    def _try(self, kind: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # a third-party service may raise anything
            self.open.pop(kind, None)
            print(f"warning: {kind} gets no more metrics of this run: {type(error).__name__}: {error}", file=sys.stderr)


def sink_names() -> list[str]:
    """The sinks in $WHITEBENCH_SINKS.

    Raises:
        UserError: see `Sinks`.
    """
    names = [name for part in os.environ.get(VARIABLE, "").split(",") if (name := part.strip())]
    for name in names:
        if name not in KINDS:
            raise UserError(f"{VARIABLE}: unknown sink '{name}'{nearest(name, KINDS)}")
        package = KINDS[name][1]
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{VARIABLE}: {name} needs the package {package}: pip install {package}")
    return list(dict.fromkeys(names))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
