"""`--dry-run`: what a launch would do, and the batch script that SLURM would get."""

import os
from collections.abc import Mapping

from slurm.batch_script import DEFAULT_HOURS, batch_script, minutes_of
from slurm.clusters import Preset
from slurm.graph import Graph, Job, Resources
from slurm.host import this_host
from slurm.job_state import JobState
from slurm.slurm_command import is_installed
from slurm.slurm_info import Limits, read_limits
from slurm.snapshot import snapshot_path
from slurm.submissions import MARK, sweeps_folder
from slurm.submit import Submission, plan_submissions, submission_name

MOST_SUBMISSIONS = 40
"""Calls of sbatch that are listed one by one."""
HARMLESS = frozenset({"SBATCH_NO_REQUEUE", "SBATCH_REQUEUE", "SBATCH_DEBUG", "SBATCH_WAIT"})


def preview(graph: Graph, states: Mapping[str, JobState], todo: set[str], preset: Preset) -> str:
    lines = [f"sweep {graph.name}: {len(graph.cells())} cells, {len(graph.work)} jobs, {len(todo)} to run"]
    lines += ["", *_stages(graph, states, todo), "", *_arrows(graph), ""]
    if preset.kind == "slurm":
        return "\n".join([*lines, *_slurm(graph, states, todo, preset)])
    if preset.kind == "local":
        host = this_host(preset.slots, graph)
        return "\n".join([*lines, f"on this machine: {host.cores} cores, {len(host.gpus)} GPUs"])
    return "\n".join([*lines, "in this process, one after another"])


def _stages(graph: Graph, states: Mapping[str, JobState], todo: set[str]) -> list[str]:
    columns: dict[str, list[Job]] = {column: [] for column in graph.columns()}
    for job in graph.work:
        columns[job.column].append(job)
    width = max(12, *map(len, columns))
    lines = [f"  {'stage':{width}} {'jobs':>5} {'done':>5} {'to run':>6}  each"]
    for column, jobs in columns.items():
        done = sum(states[job.key].state == "done" for job in jobs)
        remaining = sum(job.key in todo for job in jobs)
        descriptions = dict.fromkeys(_describe(job.resources) for job in jobs)
        lines.append(f"  {column:{width}} {len(jobs):5} {done:5} {remaining:6}  {' or '.join(descriptions)}")
    return lines


def _describe(resources: Resources) -> str:
    parts = [f"{resources.nodes} nodes of"] if resources.nodes > 1 else []
    parts.append(f"{resources.cores} core{'s' if resources.cores > 1 else ''}")
    gpu = f"{resources.gpu_type} GPU".strip()
    parts += [f"{resources.gpus} {gpu}{'s' if resources.gpus > 1 else ''}"] if resources.gpus else []
    parts += [f"{resources.memory_gb:g} GB"] if resources.memory_gb else []
    parts += [f"{resources.hours:g} h at most"] if resources.hours else []
    return ", ".join(parts)


def _arrows(graph: Graph) -> list[str]:
    """`pretrain -> linear, knn, convert`, a line for each stage that others wait for."""
    after: dict[str, dict[str, None]] = {}
    for job in graph.work:
        for need in job.needs:
            after.setdefault(graph[need].column, {})[job.column] = None
    return [f"  {column} -> {', '.join(others)}" for column, others in after.items()] + ["  all -> leaderboard"]


def _slurm(graph: Graph, states: Mapping[str, JobState], todo: set[str], preset: Preset) -> list[str]:
    limits = read_limits() if is_installed() else Limits()
    planned = plan_submissions(graph, todo, states, limits.array)
    calls = f"on SLURM: {len(planned)} calls of sbatch, at most {limits.array} tasks an array"
    lines = [f"{calls}; {gpu_hours(graph, states, todo)}"]
    lines += [f"  {i:3} {_describe_submission(submission)}" for i, submission in enumerate(planned[:MOST_SUBMISSIONS])]
    lines += [f"  ... and {len(planned) - MOST_SUBMISSIONS} more"] if len(planned) > MOST_SUBMISSIONS else []
    lines += _room(graph, todo, preset, limits) + [f"note: {text}" for text in warnings(graph, preset, limits)]
    if planned:
        example = next((s for s in planned if s.after), planned[0])
        number = planned.index(example)
        lines += ["", f"batch script of #{number}:", "", _script(example, number, graph, preset, limits)]
    return lines


def _room(graph: Graph, todo: set[str], preset: Preset, limits: Limits) -> list[str]:
    """What the limit on a user's jobs in the queue means for this launch."""
    maxima = [preset.max_jobs, *(limits.jobs(preset.share(job.stage).qos) for job in graph.jobs.values())]
    most = min((limit for limit in maxima if limit is not None), default=None)
    if most is None or len(todo) < most:
        return []
    return [f"  you may have {most} jobs in the queue: as jobs end, they submit the rest"]


def _script(submission: Submission, number: int, graph: Graph, preset: Preset, limits: Limits) -> str:
    job = submission.jobs[0]
    return batch_script(
        job,
        preset,
        sweep=graph.name,
        sweep_folder=graph.leaderboard.folder,
        folder=graph.leaderboard.folder.absolute() / "launches" / "<time of launch>" / submission_name(number, job),
        code=snapshot_path(sweeps_folder() / "code"),
        limits=limits,
        mark=f"{MARK}<drawn at launch>",
        indices=submission.indices,
        dependency=submission.dependency([f"<id of #{i}>" for i in range(max(submission.waited_for, default=-1) + 1)]),
    )


def warnings(graph: Graph, preset: Preset, limits: Limits) -> list[str]:
    """What will go otherwise than one may think, though SLURM would take the jobs."""
    lines: dict[str, None] = {}
    for job in graph.jobs.values():
        share = preset.share(job.stage)
        minutes = minutes_of(job.resources, limits.minutes(share.partition, share.qos))
        requested = minutes_of(job.resources, None)
        if 60 * minutes <= preset.signal_delay_s:
            lines[
                f"{job.stage}: a limit of {minutes} min is not longer than signal_delay_s ({preset.signal_delay_s} s): "
                "its jobs are asked to stop as soon as they start; set more hours, or a smaller signal_delay_s"
            ] = None
        elif minutes < requested and job.resources.hours is not None:
            lines[
                f"{job.stage}: SLURM allows {minutes / 60:g} h, less than the {job.resources.hours:g} h that are asked "
                "for; runs that need longer are saved and queued again"
            ] = None
    presets = sorted(name for name in os.environ if name.startswith(("SBATCH_", "SALLOC_")) and name not in HARMLESS)
    if presets:
        lines[
            f"{', '.join(presets)} of this shell are not used for jobs; what they are for belongs into the preset"
        ] = None
    return list(lines)


def gpu_hours(graph: Graph, states: Mapping[str, JobState], todo: set[str]) -> str:
    """The cost of what is to be run: at most (by its limits), and about (by runs of the same recipe and stage).

    Limits bound a job, not a run: one that is saved at its limit and queued again costs more.
    """
    measured: dict[tuple[str, str], list[float]] = {}
    for job in graph.work:
        record = states[job.key].record
        if states[job.key].state == "done" and record is not None:
            measured.setdefault((job.stage, job.task.recipe), []).append(float(record.cost.get("gpu_s") or 0.0) / 3600)
    limit = about = cores = 0.0
    count = 0
    for job in (graph[key] for key in todo):
        most = job.resources.gpus * job.resources.nodes * (job.resources.hours or DEFAULT_HOURS)
        hours = measured.get((job.stage, job.task.recipe))
        limit, about = limit + most, about + (sum(hours) / len(hours) if hours else most)
        cores += job.resources.cores * job.resources.nodes * (job.resources.hours or DEFAULT_HOURS)
        count += bool(hours)
    if todo and not limit:
        return f"no GPUs, at most {cores:g} core-hours"
    estimate = f", about {about:.3g} going by runs that are done (of {count} of {len(todo)} jobs)" if count else ""
    return f"at most {limit:g} GPU-hours{estimate}"


def _describe_submission(submission: Submission) -> str:
    dependency = submission.dependency([f"#{i}" for i in range(max(submission.waited_for, default=-1) + 1)])
    if len(submission.after_end) > 3:
        dependency = "afterany: all of these"
    return f"{submission.jobs[0].column:12} {len(submission.jobs):5} jobs  {dependency or ''}".rstrip()
