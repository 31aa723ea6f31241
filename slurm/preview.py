"""`--dry-run`: what a launch would do, and the batch script that SLURM would get."""

from collections.abc import Mapping

from slurm.clusters import Preset, slurm_answers
from slurm.graph import Graph, Resources
from slurm.host import this_machine
from slurm.job_state import JobState
from slurm.slurm_info import max_array_size, time_limits
from slurm.snapshot import snapshot_place
from slurm.submissions import sweeps_folder
from slurm.submit import DEFAULT_HOURS, Submission, batch_script, plan_submissions, submission_name

ASSUMED_ARRAY = 1001


def preview(graph: Graph, states: Mapping[str, JobState], todo: set[str], preset: Preset) -> str:
    lines = [f"sweep {graph.name}: {len(graph.cells())} cells, {len(graph.work)} jobs, {len(todo)} to run"]
    lines += ["", f"  {'stage':12} {'jobs':>5} {'done':>5} {'to run':>6}  each", *_stages(graph, states, todo)]
    lines += ["", *_arrows(graph), ""]
    if preset.kind == "slurm":
        return "\n".join([*lines, *_slurm(graph, states, todo, preset)])
    if preset.kind == "local":
        machine = this_machine(preset.slots, graph)
        return "\n".join([*lines, f"on this machine: {machine.cores} cores, {len(machine.gpus)} GPUs"])
    return "\n".join([*lines, "in this process, one after another"])


def _stages(graph: Graph, states: Mapping[str, JobState], todo: set[str]) -> list[str]:
    lines = []
    for column in graph.columns():
        jobs = [job for job in graph.work if job.column == column]
        done = sum(states[job.key].state == "done" for job in jobs)
        left = sum(job.key in todo for job in jobs)
        each = " or ".join(dict.fromkeys(_describe(job.resources) for job in jobs))
        lines.append(f"  {column:12} {len(jobs):5} {done:5} {left:6}  {each}")
    return lines


def _describe(wanted: Resources) -> str:
    parts = [f"{wanted.nodes} nodes of"] if wanted.nodes > 1 else []
    parts.append(f"{wanted.cores} core{'s' if wanted.cores > 1 else ''}")
    parts += [f"{wanted.gpus} GPU{'s' if wanted.gpus > 1 else ''}"] if wanted.gpus else []
    parts += [f"{wanted.memory_gb:g} GB"] if wanted.memory_gb else []
    parts += [f"{wanted.hours:g} h at most"] if wanted.hours else []
    return ", ".join(parts)


def _arrows(graph: Graph) -> list[str]:
    """`pretrain -> linear, knn, convert`, a line for each stage that others wait for."""
    after: dict[str, dict[str, None]] = {}
    for job in graph.work:
        for need in job.needs:
            after.setdefault(graph[need].column, {})[job.column] = None
    return [f"  {column} -> {', '.join(others)}" for column, others in after.items()] + ["  all -> leaderboard"]


def _slurm(graph: Graph, states: Mapping[str, JobState], todo: set[str], preset: Preset) -> list[str]:
    limit = max_array_size() if slurm_answers() else ASSUMED_ARRAY
    planned = plan_submissions(graph, todo, states, limit)
    told = f"on SLURM: {len(planned)} calls of sbatch, at most {limit} tasks an array"
    lines = [f"{told}; {gpu_hours(graph, states, todo)}"]
    lines += [f"  {i:3} {_what(submission)}" for i, submission in enumerate(planned)]
    if planned:
        shown = next((s for s in planned if s.after), planned[0])
        lines += [
            "",
            f"batch script of #{planned.index(shown)}:",
            "",
            _script(planned, shown, graph, preset),
        ]
    return lines


def _script(planned: list[Submission], shown: Submission, graph: Graph, preset: Preset) -> str:
    name = submission_name(planned.index(shown), shown)
    folder = graph.leaderboard.folder.absolute() / "launches" / "<time of launch>" / name
    limits = time_limits() if slurm_answers() else {}
    return batch_script(shown, preset, graph.name, limits, folder, snapshot_place(sweeps_folder() / "code"))


def gpu_hours(graph: Graph, states: Mapping[str, JobState], todo: set[str]) -> str:
    """What is to be run costs at most (by its limits), and about, as far as runs of the same recipe and stage are done.

    Limits bound a job, not a run: one that is saved at its limit and queued again costs more.
    """
    measured: dict[tuple[str, str], list[float]] = {}
    for job in graph.work:
        record = states[job.key].record
        if states[job.key].state == "done" and record is not None:
            measured.setdefault((job.stage, job.task.recipe), []).append(float(record.cost.get("gpu_s") or 0.0) / 3600)
    limit = about = 0.0
    known = 0
    for job in (graph[key] for key in todo):
        most = job.resources.gpus * job.resources.nodes * (job.resources.hours or DEFAULT_HOURS)
        found = measured.get((job.stage, job.task.recipe))
        limit, about = limit + most, about + (sum(found) / len(found) if found else most)
        known += bool(found)
    going_by = f", about {about:.3g} going by runs that are done (of {known} of {len(todo)} jobs)" if known else ""
    return f"at most {limit:g} GPU-hours{going_by}"


def _what(submission: Submission) -> str:
    dependency = submission.dependency([f"#{i}" for i in range(max(submission.waited_for, default=-1) + 1)])
    if len(submission.after_end) > 3:
        dependency = "afterany: all of these"
    return f"{submission.jobs[0].column:12} {len(submission.jobs):5} jobs  {dependency or ''}".rstrip()
