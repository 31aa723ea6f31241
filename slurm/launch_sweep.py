"""The command `python slurm/launch_sweep.py [SWEEP] [key=value ...]`."""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from whitebench.errors import UserError, parse_seeds, run_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm.clusters import Preset
    from slurm.graph import Graph
    from slurm.job_state import JobState
    from slurm.sweep import Sweep

DESCRIPTION = """\
Launch a sweep: recipes x grid x seeds, each cell pretrained, evaluated and fine-tuned, then the leaderboards.
With no sweep named: the built-in sample. Launching again runs only what is not done."""
EXAMPLES = """\
examples:
  python slurm/launch_sweep.py                               the sample sweep, on SLURM where it is installed, else here
  python slurm/launch_sweep.py --status                      how far it is (--watch: repeatedly)
  python slurm/launch_sweep.py --logs "sample/intl seed=0"   the end of that cell's logs (...:detect: of that stage's)
  python slurm/launch_sweep.py whitening-imagenet --dry-run  what would run where; submits nothing
  python slurm/launch_sweep.py my-sweep.yaml --cluster my-preset schedule.epochs=50 sweep.stages.detect.seeds=[0,1]

A bare key=value changes the recipe of every cell, sweep.key=value the sweep. Sweeps are files of slurm/sweeps/ (or your
own path), presets of clusters files of slurm/clusters/ or $WHITEBENCH_CLUSTERS (or a path)."""


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python slurm/launch_sweep.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "sweep", nargs="?", metavar="SWEEP", help="a name, or the path of a YAML file; default: sample"
    )
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe keys, or sweep.key for the sweep's own"
    )
    command.add_argument(
        "--cluster",
        metavar="NAME",
        help="auto, local, slurm, debug, or a preset of yours; default: the sweep's (auto)",
    )
    command.add_argument("--seeds", metavar="0,1,2", help="pretraining seeds, in place of the sweep's")
    command.add_argument("--seed", type=int, metavar="N", help="a single one")
    command.add_argument(
        "--dry-run", action="store_true", help="check everything, show the jobs and the batch script, run nothing"
    )
    command.add_argument("--status", action="store_true", help="show how far the sweep is")
    command.add_argument("--watch", action="store_true", help="--status repeatedly until all is done")
    command.add_argument("--json", action="store_true", help="--status as JSON")
    command.add_argument("--logs", metavar="CELL", help="show the end of the cell's logs")
    command.add_argument(
        "--cancel", action="store_true", help="end what is queued or running; what was reached is kept"
    )
    command.add_argument("--cell", metavar="CELL", help="with --cancel: of this cell only")
    command.add_argument("--retry-failed", action="store_true", help="run again what failed")
    command.add_argument("--rerun", metavar="CELL", help="run the cell again; its old runs are set aside")
    command.add_argument(
        "--wait",
        action="store_true",
        help="on SLURM: stay and show results as they come (Ctrl-C leaves the jobs alone)",
    )
    return command


def main() -> int:
    command = parser()
    arguments = command.parse_intermixed_args()
    words = [text for text in [arguments.sweep, *arguments.overrides] if text is not None]
    name = words.pop(0) if words and "=" not in words[0] else None
    changes = [text.removeprefix("sweep.") for text in words if text.startswith("sweep.")]
    overrides = [text for text in words if not text.startswith("sweep.")]
    if arguments.json and not arguments.status:
        command.error("--json goes with --status")
    if arguments.rerun and arguments.dry_run:
        command.error("--rerun does not go with --dry-run")
    if arguments.cell and not arguments.cancel:
        command.error("--cell goes with --cancel")
    if arguments.status or arguments.watch or arguments.logs or arguments.cancel:
        return handle(name, changes, arguments)
    if arguments.seeds is not None or arguments.seed is not None:
        changes.append(f"seeds={_seeds(arguments)}")
    return launch(name, changes, overrides, arguments)


def handle(name: str | None, changes: list[str], arguments: argparse.Namespace) -> int:
    """Light: neither torch nor pydantic, so that it answers at once."""
    from slurm.sweep_commands import cancel_jobs, launched, show_logs, show_status, watch_status

    graph = launched(name, arguments.cluster, changes)
    if arguments.cancel:
        return cancel_jobs(graph, arguments.cell)
    if arguments.logs:
        return show_logs(graph, arguments.logs)
    return watch_status(graph) if arguments.watch else show_status(graph, arguments.json)


def launch(name: str | None, changes: list[str], overrides: list[str], arguments: argparse.Namespace) -> int:
    from slurm.clusters import enter_environment, load_preset
    from slurm.planning import build_graph
    from slurm.slurm_command import DISTRIBUTED
    from slurm.sweep import DEFAULT, load_sweep

    sweep = load_sweep(name or DEFAULT, changes, overrides)
    cluster = arguments.cluster or sweep.cluster
    for variable in DISTRIBUTED:  # of a shell inside another job
        os.environ.pop(variable, None)
    enter_environment(cluster)
    preset = load_preset(cluster, dry_run=arguments.dry_run)
    graph = build_graph(sweep, preset)
    if arguments.dry_run:
        return dry_run(graph, sweep, preset, arguments.retry_failed)
    if preset.kind == "slurm":
        return on_slurm(graph, preset, arguments)
    if preset.kind == "local":
        return on_this_machine(graph, preset, arguments)
    return in_this_process(graph, arguments)


def dry_run(graph: "Graph", sweep: "Sweep", preset: "Preset", retry_failed: bool) -> int:
    from slurm.cost.preview import cost_preview
    from slurm.preview import preview
    from slurm.status import read_status
    from slurm.waves import jobs_to_run

    states = read_status(graph).states
    todo = jobs_to_run(graph, states, retry_failed)
    print(preview(graph, states, todo, preset))
    print("\n".join(["", *cost_preview(graph, sweep, todo)]))
    return 0


def on_slurm(graph: "Graph", preset: "Preset", arguments: argparse.Namespace) -> int:
    """Submits what is left and returns, or stays to watch."""
    from slurm.slurm_submission import submit_sweep
    from slurm.status_table import problems

    states, anything = submit_sweep(graph, preset, arguments.retry_failed, _rerun(arguments))
    for line in problems(graph, states):
        print(line)
    if not anything:
        return _conclude(graph, {key: state.state for key, state in states.items()})
    if arguments.wait:
        from slurm.watch import watch

        return _conclude(graph, watch(graph))
    print("nothing needs to stay open; --status shows how far it is")
    return 0


def on_this_machine(graph: "Graph", preset: "Preset", arguments: argparse.Namespace) -> int:
    from slurm.display import Display
    from slurm.host import this_host
    from slurm.launch_lock import launch_lock
    from slurm.local import LocalScheduler
    from slurm.status import read_status
    from slurm.status_table import problems
    from slurm.waves import jobs_to_run, launch_folder

    host = this_host(preset.slots, graph)
    what = f"the sweep '{graph.name}' is being run by another launcher"
    with launch_lock(graph.leaderboard.folder / ".lock", wait=False, what=what):
        states = _states_after_rerun(graph, arguments, lambda: read_status(graph).states)
        todo = jobs_to_run(graph, states, arguments.retry_failed)
        graph.save(cluster="local", launched=_now())
        for line in problems(graph, states) if not arguments.retry_failed else []:
            print(line)
        display = Display()
        display.say(f"sweep {graph.name}: {len(todo)} of {len(graph.work)} jobs to do, on {host.cores} cores")
        try:
            outcome = LocalScheduler(graph, states, todo, host, launch_folder(graph), display).run()
        finally:
            display.close()
    return _conclude(graph, outcome)


def in_this_process(graph: "Graph", arguments: argparse.Namespace) -> int:
    """One after another; the first error ends it, with its traceback."""
    from slurm.job_state import headline
    from slurm.stages import run_task
    from slurm.status import read_status
    from slurm.waves import jobs_to_run

    states = _states_after_rerun(graph, arguments, lambda: read_status(graph).states)
    todo = jobs_to_run(graph, states, arguments.retry_failed)
    graph.save(cluster="debug", launched=_now())
    for job in graph.work:
        if job.key in todo:
            print(f"{job.column} {job.cell}", flush=True)
            record = run_task(job.task)
            print(f"    {headline(record) if record else ''}", flush=True)
    return _conclude(graph, {key: "done" if key in todo else state.state for key, state in states.items()})


def _rerun(arguments: argparse.Namespace) -> "Callable[[Graph, dict[str, JobState]], bool]":
    """Sets the runs of the cell of --rerun aside; whether it did."""

    def set_cell_aside(graph: "Graph", states: "dict[str, JobState]") -> bool:
        from slurm.sweep_commands import set_aside

        if arguments.rerun is not None:
            set_aside(graph, arguments.rerun, states)
        return arguments.rerun is not None

    return set_cell_aside


def _states_after_rerun(
    graph: "Graph", arguments: argparse.Namespace, read: "Callable[[], dict[str, JobState]]"
) -> "dict[str, JobState]":
    """The states, after the runs of the cell that is to be run again were set aside."""
    states = read()
    return read() if _rerun(arguments)(graph, states) else states


def _conclude(graph: "Graph", outcome: dict[str, str]) -> int:
    """Makes the tables of what is done; 1 where something is missing from them."""
    from slurm.stages import run_task

    try:
        run_task(graph.leaderboard.task)
    except UserError as error:  # a sweep of nothing but pretraining has no tables
        print(f"no tables: {error}", file=sys.stderr)
    except OSError as error:
        raise UserError(
            f"no tables: {error.filename}: {error.strerror}; set sweep.stages.leaderboard.out=DIR"
        ) from error
    missing = {state: list(outcome.values()).count(state) for state in set(outcome.values()) - {"done"}}
    if not missing:
        return 0
    counts = ", ".join(f"{count} {state}" for state, count in sorted(missing.items()))
    again = "; --retry-failed runs again what failed" if "failed" in missing else "; launching again goes on"
    print(f"sweep {graph.name}: not complete: {counts}{again}", file=sys.stderr)
    return 1


def _seeds(arguments: argparse.Namespace) -> list[int]:
    if arguments.seeds is None:
        return [arguments.seed]
    return parse_seeds(arguments.seeds)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


if __name__ == "__main__":
    run_command(main)
