"""The batch script of a job or an array: what a person can read before it is submitted, and what the job runs."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slurm.clusters import Preset
from slurm.graph import Job, Resources
from slurm.resource_requests import merged_options
from slurm.scratch import SCRATCH
from slurm.slurm_info import Limits
from slurm.snapshot import job_path
from slurm.waiting import WAITING
from slurm.worker import job_environment

DEFAULT_HOURS = 24.0


def batch_script(
    job: Job,
    preset: Preset,
    *,
    sweep: str,
    sweep_folder: Path,
    folder: Path,
    code: Path,
    limits: Limits,
    mark: str,
    indices: Sequence[int] | None,
    dependency: str | None,
) -> str:
    """The script for sbatch.

    Args:
        job: the only job, or one of the array's, all of which ask for the same.
        sweep_folder: where the plan of the sweep is. folder: of this submission's files and logs.
        code: the snapshot that its jobs run.
        mark: goes with the jobs in their comment.
        indices: of the array's tasks; None: a single job.
    """
    options = sbatch_options(job, preset, sweep=sweep, limits=limits, mark=mark, dependency=dependency)
    name = "%j" if indices is None else "%A_%a"
    log = str(folder).replace("%", "%%") + f"/{name}_0_log.out"
    options |= {"output": log, "open-mode": "append"}
    if indices is not None:
        options["array"] = f"{index_ranges(indices)}%{min(len(indices), preset.throttle)}"
    lines = [_option(key, value) for key, value in sorted(options.items())]
    body = [*_before(job, preset, folder, code), _command(job, folder, name), *_after(sweep_folder)]
    return "\n".join(["#!/bin/bash", *lines, "", *body, ""])


def sbatch_options(
    job: Job, preset: Preset, *, sweep: str, limits: Limits, mark: str, dependency: str | None
) -> dict[str, Any]:
    """Options of sbatch.

    A job never asks for more time than SLURM allows, for it would wait for ever: it is saved and queued again instead.
    """
    resources, share = job.resources, preset.share(job.stage)
    extra = merged_options(share.sbatch, resources.sbatch)
    comment = f"{extra.pop('comment')};{mark}" if "comment" in extra else mark
    options = {
        "job-name": f"{sweep}:{job.column}",
        "time": minutes_of(resources, limits.minutes(share.partition, share.qos)),
        "nodes": resources.nodes,
        "ntasks-per-node": resources.processes,
        "cpus-per-task": resources.cpus,
        "gpus-per-node": _gpus(resources),
        "mem": f"{max(1, round(1024 * resources.memory_gb))}M" if resources.memory_gb else None,
        "partition": share.partition,
        "account": share.account,
        "qos": share.qos,
        "constraint": share.constraint,
        "dependency": dependency,
        "comment": comment,
        "signal": f"USR2@{preset.signal_delay_s}",
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        "propagate": "NONE",  # the limits of the login node's shell (ulimit -t) are not for jobs
        **extra,
    }
    return {key: value for key, value in options.items() if value is not None}


def minutes_of(resources: Resources, allowed: int | None) -> int:
    """The time limit of a job."""
    requested = max(1, round(60 * (resources.hours or DEFAULT_HOURS)))
    return requested if allowed is None else max(1, min(requested, allowed))


def job_variables(job: Job, preset: Preset, code: Path) -> dict[str, str]:
    """Variables of the job's processes."""
    python_path = preset.environment.get("PYTHONPATH", os.environ.get("PYTHONPATH"))
    scratch = {SCRATCH: preset.scratch} if preset.scratch else {}
    return {**preset.environment, **job_environment(job.resources.threads), **job_path(code, python_path), **scratch}


def index_ranges(indices: Sequence[int]) -> str:
    """[0, 1, 2, 7] -> `0-2,7`, as sbatch reads it."""
    ranges: list[list[int]] = []
    for index in sorted(indices):
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _option(key: str, value: Any) -> str:
    return f"#SBATCH --{key}" if value is True else f"#SBATCH --{key}={shlex.quote(str(value))}"


def _gpus(resources: Resources) -> str | int | None:
    if not resources.gpus:
        return None
    return f"{resources.gpu_type}:{resources.gpus}" if resources.gpu_type else resources.gpus


def _before(job: Job, preset: Preset, folder: Path, code: Path) -> list[str]:
    """Lines before the job's processes start.

    The preset's setup may end the script (`set -e`, `|| exit 1`): the failure is written down then, too. SLURM's
    SIGTERM, when the time limit has come, is for a watcher: bash itself handles it only after its processes have ended,
    which is too late for those that ignore it.
    """
    exports = [f"export {key}={shlex.quote(value)}" for key, value in job_variables(job, preset, code).items()]
    tools = shutil.which("sbatch")
    path = [f'export PATH="$PATH":{shlex.quote(str(Path(tools).parent))}'] if tools else []
    requeue = f"{shlex.quote(sys.executable)} -m slurm.requeue {shlex.quote(str(folder.absolute()))}"
    return [
        "job_variables() {",
        *(f"  {line}" for line in [*exports, *path]),
        "}",
        f'handle_end() {{ {requeue} "$@"; }}',
        "in_setup=yes",
        """trap 'code=$?; [ -z "$in_setup" ] || handle_end "$code" setup' EXIT""",
        "job_variables",
        *(["# the preset's setup", *preset.setup] if preset.setup else []),
        "set +eu +o pipefail",
        "in_setup=",
        "job_variables",
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
        f"[ -e {_in(folder, '${job}_submitted.pkl')} ] || "
        f'ln -s "${{SLURM_ARRAY_TASK_ID:-0}}.pkl" {_in(folder, "${job}_submitted.pkl")}',
        "(exec 3>&2 2>/dev/null; trap 'kill $!; handle_end 2>&3; exit' TERM; trap 'kill $!; exit' HUP; "
        "while :; do sleep 60 & wait $!; done) & watcher=$!",
        "trap terminated=yes TERM",
    ]


def _command(job: Job, folder: Path, name: str) -> str:
    log = str(folder.absolute()).replace("%", "%%") + f"/{name}_%t_log.out"
    arguments = ["--kill-on-bad-exit=1", "--export=ALL", f"--cpus-per-task={job.resources.cpus}"]
    srun = shlex.join(["srun", "--unbuffered", "--output", log, *arguments])
    python = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder.absolute()))}"
    return f"export SUBMITIT_EXECUTOR=slurm\n{srun} {python}"


def _after(sweep_folder: Path) -> list[str]:
    """Lines after its processes have ended."""
    folder = sweep_folder.absolute()
    waves = f"{shlex.quote(sys.executable)} -m slurm.waves {shlex.quote(str(folder))}"
    return [
        "code=$?",
        '[ -z "${terminated:-}" ] || { wait "$watcher"; exit; }',
        'kill -HUP "$watcher"',
        '[ "$code" -eq 0 ] || { handle_end "$code"; code=$?; }',
        f"[ ! -e {shlex.quote(str(folder / WAITING))} ] || {waves}",
        'exit "$code"',
    ]


def _in(folder: Path, name: str) -> str:
    """A path in the folder, with a name that the shell completes."""
    return f'{shlex.quote(str(folder.absolute()))}/"{name}"'
