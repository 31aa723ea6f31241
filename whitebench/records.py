"""The record of a run: one folder per stage of a sweep cell, with `run.json` and `metrics.jsonl`.

Tables, status and resumption are derived from these folders alone; they can be moved, copied and merged.
`run.json` is replaced atomically; lines are appended to `metrics.jsonl`, one JSON object each.
"""

import errno
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from whitebench.code_hash import code_files, code_hash
from whitebench.energy import EnergyMeter
from whitebench.environment import cpu_seconds, environment
from whitebench.errors import Interrupted, UserError
from whitebench.files import (
    append_json_line,
    last_json_line,
    read_json_lines,
    read_regular,
    write_atomically,
    write_json,
)
from whitebench.hashing import canonical, file_hash, run_id
from whitebench.locks import Held, Lock
from whitebench.sinks import Sinks, sink_names

SCHEMA = 1
RECORD, METRICS = "run.json", "metrics.jsonl"
Status = Literal["running", "done", "failed", "interrupted"]


def runs_root() -> Path:
    """$WHITEBENCH_RUNS, by default ./runs; holds `<stage>/<id>/`."""
    return Path(os.environ.get("WHITEBENCH_RUNS", "runs"))


def data_root() -> Path:
    """$WHITEBENCH_DATA, by default ./data; holds `<dataset>/`."""
    return Path(os.environ.get("WHITEBENCH_DATA", "data"))


def stage_folder(stage: str, run_id: str) -> Path:
    return runs_root() / stage / run_id


@dataclass
class Record:
    """The content of `run.json`. The fully resolved `config` alone determines `id`."""

    id: str
    stage: str
    config: dict[str, Any]
    status: Status = "running"
    cell: dict[str, Any] = field(default_factory=dict)
    """Names of the run: "recipe", "method", "seed", "dataset"; for some stages "sweep", "protocol", ..."""
    hashes: dict[str, str | None] = field(default_factory=dict)
    """Hashes of what makes the row stale if it changes later: "code" (of `code`), "method" (its file), "data",
    "protocol"."""
    code: dict[str, str] = field(default_factory=dict)
    """The source files that the result depends on, each with its hash; see `code_hash.code_files`."""
    data: dict[str, Any] = field(default_factory=dict)
    """The dataset's "manifest" (source, counts, hashes, how it was written), and "reading" (`loaders.preflight`)."""
    parents: list[str] = field(default_factory=list)
    """Ids of the records this one builds on; the first is the pretraining."""
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, str]] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    """Sums over restarts: wall_s, gpu_s, cpu_s (see `cpu_seconds`), energy_kwh (None if unknown), and restarts. Of
    cpu_s, parts that were measured: cpu_s_training, ...; and before it cpu_s_startup, what the process took until the
    record was opened (imports)."""
    started: str = ""
    ended: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    """Of the last start; see `environment.environment`."""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    """Of earlier starts, which did not end the run: {"git", "dirty", "host", "hashes"}."""
    command: str = ""
    error: str | None = None
    schema: int = SCHEMA

    @property
    def resumed_under_other_code(self) -> bool:
        """Whether an earlier start of this run had uncommitted code, another commit, method, augmentation or data."""
        now = self.environment.get("git"), False, self.hashes
        starts = [start for start in self.earlier if isinstance(start, dict)]
        return any((start.get("git"), bool(start.get("dirty")), start.get("hashes")) != now for start in starts)


def read_record(folder: Path) -> Record | None:
    """The record in `folder`; None without one.

    Raises:
        UserError: the record is damaged or not readable.
    """
    path = folder / RECORD
    try:
        return parse_record(read_regular(path), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise UserError(f"{path}: not a regular file") from error
        raise UserError(f"{path}: not a readable record ({error})") from error


def parse_record(content: bytes, path: Path) -> Record:
    """The record in the content of a `run.json`; `path` is for error messages.

    Raises:
        UserError: the content is damaged, or not a record of this schema.
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable record ({error})") from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a record of schema {SCHEMA}")
    try:
        return Record(**{key: value for key, value in raw.items() if key in Record.__dataclass_fields__})
    except TypeError as error:
        raise UserError(f"{path}: not a complete record ({error})") from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of the run's `metrics.jsonl`."""
    return read_json_lines(folder / METRICS)


_opened_in_this_process = False


class Run:
    """Writes the record of a stage while it runs. A lock keeps other processes out of the folder.

    Used as a context: its end writes `done`, or `failed` / `interrupted` with the reason. If the run is done already,
    `already_done` is set and nothing is written. If another process is running it, that is an error, or its end is
    awaited if there is `waiting`, which receives a sentence.

        with Run("linear", f"{method}-s{seed}", config, cell=..., parents=[...]) as run:
            if not run.already_done:
                run.metrics["top1"] = ...
    """

    def __init__(
        self,
        stage: str,
        label: str,
        config: Any,
        *,
        cell: dict[str, Any],
        hashes: dict[str, str | None] | None = None,
        data: dict[str, Any] | None = None,
        parents: list[str] | None = None,
        gpus: int = 0,
        folder: Path | None = None,
        command: str | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        resolved = canonical(config)
        self.gpus = gpus
        self.id = run_id(label, resolved)
        self.folder = folder or stage_folder(stage, self.id)
        self.record = Record(
            id=self.id,
            stage=stage,
            config=resolved,
            cell=cell,
            hashes=hashes or {},
            data=data or {},
            parents=parents or [],
            cost={"wall_s": 0.0, "gpu_s": 0.0, "cpu_s": 0.0, "energy_kwh": None, "restarts": 0},
            command=command or shlex.join(["python", *map(_relative, sys.orig_argv[1:])]),
        )
        self.already_done = False
        self._lock, self._waiting = Lock(self.folder / ".lock"), waiting
        self._began = 0.0
        self._sinks: Sinks | None = None

    @property
    def metrics(self) -> dict[str, Any]:
        return self.record.metrics

    def __enter__(self) -> Self:
        sink_names()  # an unknown or missing sink is an error now, not after the first epoch
        self.folder.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            return self._opened(read_record(self.folder))
        except BaseException:
            self._lock.release()
            raise

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Held as holder:
            if self._waiting is None:
                raise UserError(f"{self.folder}: another process is running this ({holder})") from holder
            self._waiting(f"{self.folder}: waiting for another process that is running this ({holder})")
            self._lock.wait()

    def _opened(self, before: Record | None) -> Self:
        if before is not None and before.id != self.id:
            raise UserError(f"{self.folder}: holds another run ({before.id}); choose another folder")
        self.already_done = before is not None and before.status == "done"
        if self.already_done:
            assert before is not None
            self.record = before
            return self
        if before is not None:
            self.record.cost |= {**before.cost, "restarts": before.cost.get("restarts", 0) + 1}
            self.record.started = before.started
            started = [_start_of(before)] if before.environment else []  # otherwise it failed before it opened its run
            self.record.earlier = [*before.earlier, *started]
        self.record.started = self.record.started or _now()
        self.record.environment = environment()
        self.record.code = code_files(self.record.stage, self._method())
        self.record.hashes["code"] = code_hash(self.record.code)
        self._note_startup()
        self._began, self._energy = time.monotonic(), EnergyMeter(self.gpus)
        self._cpu_began, self._cost_before = cpu_seconds(), dict(self.record.cost)
        self.save()
        return self

    def _note_startup(self) -> None:
        """Of the first run of a process: a later one has done none of what came before."""
        global _opened_in_this_process
        if not _opened_in_this_process:
            self._add_cost("cpu_s_startup", cpu_seconds())
        _opened_in_this_process = True

    def _add_cost(self, name: str, value: float) -> None:
        self.record.cost[name] = self.record.cost.get(name, 0.0) + value

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the CPU time of what runs in this context to the cost, as `cpu_s_<name>`."""
        began = cpu_seconds()
        try:
            yield
        finally:
            self._add_cost(f"cpu_s_{name}", cpu_seconds() - began)

    def _method(self) -> str | None:
        """The name of the method that a pretraining's config has."""
        section = self.record.config.get("method")
        name = section.get("name") if isinstance(section, dict) else None
        return name if isinstance(name, str) else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self.already_done:
                self.record.ended = _now()
                if error is None:
                    self.record.status = "done"
                elif isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
                    self.record.status, self.record.error = "interrupted", str(error) or "interrupted"
                else:
                    self.record.status, self.record.error = "failed", f"{type(error).__name__}: {error}"
                    text = "".join(traceback.format_exception(kind, error, trace))
                    write_atomically(self.folder / "error.txt", text.encode())
                self.save()
        finally:  # also if the disk is full
            if self._sinks is not None:
                self._sinks.close()
            self._lock.release()

    def save(self) -> None:
        """Writes `run.json` with the cost so far."""
        wall = time.monotonic() - self._began
        self.record.cost["wall_s"] = self._cost_before["wall_s"] + wall
        self.record.cost["gpu_s"] = self._cost_before["gpu_s"] + wall * self.gpus
        self.record.cost["cpu_s"] = self._cost_before.get("cpu_s", 0.0) + cpu_seconds() - self._cpu_began
        self.record.cost["energy_kwh"] = self._energy_so_far()
        write_json(self.folder / RECORD, asdict(self.record))

    def _energy_so_far(self) -> float | None:
        """Of all starts; None if that of one of them is unknown."""
        before, now = self._cost_before.get("energy_kwh"), self._energy.kwh()
        first = self.record.cost.get("restarts", 0) == 0
        return None if now is None or (before is None and not first) else (before or 0.0) + now

    def log(self, **values: Any) -> None:
        """Appends a line to `metrics.jsonl` and sends it to the sinks of $WHITEBENCH_SINKS.

        `rewind` and the sinks need a `step`. Status reads from the last line: epoch, epochs, images_per_s, eta_s, loss.
        """
        line = canonical({"time": round(time.time(), 3), **values})
        if self._sinks is None:
            step = last_json_line(self.folder / METRICS).get("step")
            self._sinks = Sinks(self.folder, self.id, self.record.config, step)
        append_json_line(self.folder / METRICS, line)
        self._sinks.log(line)

    def rewind(self, step: int) -> None:
        """Removes the lines after `step`, which a resumed run writes again."""
        lines = [line for line in read_metrics(self.folder) if line.get("step", 0) <= step]
        write_atomically(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def artifact(self, name: str, path: Path) -> None:
        """Adds a file of the run's folder to the record, with its sha256."""
        self.record.artifacts[name] = {"path": str(path.relative_to(self.folder)), "sha256": file_hash(path)}


def _start_of(record: Record) -> dict[str, Any]:
    """What the code of one start is compared by with that of another."""
    return {**{key: record.environment.get(key) for key in ("git", "dirty", "host")}, "hashes": record.hashes}


def _relative(argument: str) -> str:
    """A path inside the working folder as a user would type it; any other argument as it is."""
    here = f"{Path.cwd()}{os.sep}"
    return argument.removeprefix(here)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
