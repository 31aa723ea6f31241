"""Sweeps beyond the queue's limit on a simulated cluster full of faults: nothing is lost, nothing is done twice."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulated_slurm.controller import Controller, Settings
from tests.support.simulated_slurm.scripts import SubmitterKilled
from tests.support.simulated_slurm.simulation import Simulation, report, simulated
from whitebench.records import RECORD, Run

FAULTY = Settings(
    nodes=80,
    array=31,
    submit_limit=120,
    run_limit=60,
    preemptions=0.1,
    node_failures=0.01,
    outages=0.5,
    lost_answers=0.1,
    killed_submitters=0.1,
)
"""Small enough for many waves, with more faults than any real cluster."""
QUIET = replace(FAULTY, preemptions=0.0, node_failures=0.0, outages=0.0, lost_answers=0.0, killed_submitters=0.0)
Start = Callable[[int, Settings], Any]


@pytest.fixture
def start(tmp_path: Path, launch: Any) -> Start:
    """start(cells, settings): a simulation whose sweep has been launched; again, where the launcher was killed."""

    @contextmanager
    def _start(cells: int, settings: Settings) -> Iterator[Simulation]:
        with simulated(tmp_path / "work", cells, settings) as simulation:
            for _ in range(10):
                with suppress(SubmitterKilled):
                    assert launch(simulation.sweep, "--cluster", "site")[0] == 0
                    break
            yield simulation

    (tmp_path / "work").mkdir()
    return _start


@pytest.mark.parametrize(
    "limits_known",
    [pytest.param(True, id="accounting"), pytest.param(False, id="no accounting", marks=pytest.mark.long)],
)
def test_a_sweep_beyond_the_queue_s_limit_loses_nothing_and_does_nothing_twice(
    limits_known: bool, start: Start, launch: Any
) -> None:
    with start(200, replace(FAULTY, limits_known=limits_known)) as simulation:
        counts = simulation.controller.counts
        simulation.run(until=2.0)
        status = json.loads(launch(simulation.sweep, "--cluster", "site", "--status", "--json")[1])
        running = [job for job in status["jobs"] if job["state"] in ("running", "stalled")]
        assert len(running) == len([job for job in simulation.controller.running() if job.key])
        simulation.run()
        told = report(simulation)
        assert simulation.lost() == [], told
        assert simulation.controller.submitted_twice == [], told
        assert simulation.run_twice() == [], told
        assert simulation.tables() == "done", told
        assert simulation.controller.most_queued <= FAULTY.submit_limit
        for fault in ("requeues by preemption", "submitters killed", "submissions accepted without an answer", "waves"):
            assert counts[fault], told
        assert counts["waves"] < len(simulation.graph().work) / 3, "waves of a few jobs each read all records each time"
        assert "400 done" in launch(simulation.sweep, "--cluster", "site", "--status")[1]


def test_the_simulation_notices_jobs_that_the_controller_forgets(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = Controller.submit

    def forgets(controller: Controller, *arguments: Any, **values: Any) -> str:
        number = submit(controller, *arguments, **values)
        controller.jobs.pop(f"{number}_2", None)
        return number

    monkeypatch.setattr(Controller, "submit", forgets)
    with start(30, QUIET) as simulation:
        simulation.run()
        assert simulation.lost()


def test_the_simulation_notices_jobs_that_are_submitted_or_run_twice(
    start: Start, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue does not say whose jobs they are, and runs do not notice that they are done."""
    opened = Run._opened

    def forgets(run: Run, before: Any) -> Run:
        (run.folder / RECORD).unlink(missing_ok=True)
        return opened(run, None)

    monkeypatch.setattr(Run, "_opened", forgets)
    with start(20, QUIET) as simulation:
        simulation.commands.blank_comments = True
        launch(simulation.sweep, "--cluster", "site")
        simulation.run()
        assert simulation.controller.submitted_twice
        assert simulation.run_twice()
