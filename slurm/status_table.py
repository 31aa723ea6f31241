"""The parts of `--status`: tables that fit the terminal, and lists that stay short however large the sweep is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from slurm.graph import Graph, Job
from slurm.job_queue import ADVICE, USUAL, Queued
from slurm.job_state import JobState, dependants, headline, log_of, progress
from whitebench.text import duration

MOST_LINES = 10
"""Of a list below the table."""
ORDER = ("failed", "stalled", "running", "queued", "blocked", "interrupted", "new", "done")
"""Of several seeds of a stage, the states worth mentioning first."""
SUMMARY_ORDER = ("done", "running", "stalled", "queued", "failed", "blocked", "interrupted", "new")
SHORT = {"interrupted": "stopped", "new": "-"}
LEAST_NAME = 12


def cell_table(graph: Graph, states: Mapping[str, JobState], width: int) -> list[str]:
    """A line per cell, a column per stage; where that is too wide, the stage that each cell is at."""
    stages = list(dict.fromkeys(job.stage_in_sweep for job in graph.work))
    cells = {cell: _by_stage(jobs, stages) for cell, jobs in graph.cells().items()}
    short = _short_names(list(cells), 0, cut=False)
    for brief, names in ((False, list(cells)), (True, list(cells)), (True, short)):
        rows = [["", *stages]]
        for name, by_stage in zip(names, cells.values()):
            rows.append([name, *(_stage_text(by_stage[stage], states, brief) for stage in stages)])
        widths = [max(map(len, column)) for column in zip(*rows)]
        if sum(widths) + 2 * len(stages) <= width:
            return [_aligned(row, widths) for row in rows]
    return _narrow_table(cells, states, width)


def stage_table(graph: Graph, states: Mapping[str, JobState]) -> list[str]:
    """A line per stage: how many of its jobs are in which state."""
    counts: dict[str, Counter[str]] = {}
    for job in graph.work:
        counts.setdefault(job.stage_in_sweep, Counter())[states[job.key].label] += 1
    labels = [label for label in SUMMARY_ORDER if any(counter[label] for counter in counts.values())]
    rows = [[f"{len(graph.cells())} cells", "jobs", *labels]]
    for stage, counter in counts.items():
        rows.append([stage, str(counter.total()), *(str(counter[label] or "-") for label in labels)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(t.rjust(w) if i else t.ljust(w) for i, (t, w) in enumerate(zip(row, widths))).rstrip() for row in rows
    ]


def summary(states: Mapping[str, JobState]) -> str:
    """`17 jobs: 12 done, 2 running, 3 new`."""
    counts = Counter(state.label for state in states.values())
    return f"{len(states)} jobs: {', '.join(f'{counts[label]} {label}' for label in SUMMARY_ORDER if counts[label])}"


def leaderboard_line(leaderboard: Mapping[str, Any]) -> list[str]:
    state = leaderboard["state"]
    if state == "new":
        return []
    details = {"queued": f" as {leaderboard.get('job')}", "running": f" as {leaderboard.get('job')}"}
    details |= dict.fromkeys(("failed", "empty"), f": {leaderboard.get('error')}")
    details |= {"done": f": {leaderboard.get('out') or ''}"}
    return [f"leaderboard: {state}{details.get(state, '')}".rstrip(": ")]


def running_lines(graph: Graph, states: Mapping[str, JobState]) -> list[str]:
    """Which jobs run, where, for how long and for the how-manieth time."""
    jobs = [job for job in graph.work if states[job.key].state == "running"]
    lines = []
    for job in jobs[:MOST_LINES]:
        state = states[job.key]
        where = [f"job {state.queue_id}"] if state.queue_id else []
        where += [f"on {state.node}"] if state.node else []
        where += [f"attempt {state.attempts}"] if state.attempts > 1 else []
        where += [duration(state.seconds)] if state.seconds else []
        where += [f"stalled: {state.stalled}"] if state.stalled else []
        lines.append(f"  {job.column} {job.cell}: {', '.join(where)}".rstrip(": "))
    return [*(["running:"] if lines else []), *lines, *_rest(len(jobs), "jobs run")]


def notes(
    graph: Graph,
    states: Mapping[str, JobState],
    orphans: Mapping[str, Queued],
    waiting: Mapping[str, Any],
    queued: Mapping[str, Queued],
    queue_unknown: bool,
) -> list[str]:
    """Why jobs wait, each reason once, and what else is in the queue or should be."""
    reasons = Counter(state.queue_reason for state in states.values() if state.state == "queued")
    lines = [
        f"{count} queued: {reason}" + (f": {ADVICE[reason]}" if reason in ADVICE else "")
        for reason, count in reasons.most_common(MOST_LINES)
        if reason not in USUAL
    ]
    keys = waiting.get("keys") or []
    if keys:
        why = f" ({waiting['reason']})" if waiting.get("reason") else ""
        lines.append(f"{len(keys)} jobs wait for room in SLURM's queue{why}; jobs that end queue them")
    lines += orphan_lines(orphans)
    repeated = [job for key, job in queued.items() if key in graph.jobs and job.duplicates]
    if repeated:
        more = ", ".join(job for entry in repeated[:MOST_LINES] for job in entry.duplicates)
        lines.append(f"{len(repeated)} jobs are in the queue more than once ({more}); each run is still done only once")
    if queue_unknown:
        lines.append("jobs were submitted to SLURM, which is not installed here: what is queued is not known")
    return lines


def orphan_lines(orphans: Mapping[str, Queued]) -> list[str]:
    if not orphans:
        return []
    jobs = [job for entry in orphans.values() for job in entry.ids]
    listed = ", ".join(jobs[:MOST_LINES]) + (", ..." if len(jobs) > MOST_LINES else "")
    text = f"{len(jobs)} jobs of an earlier launch of this sweep with other settings are in the queue: {listed}"
    return [f"{text} (--cancel ends them, too)"]


def problems(graph: Graph, states: Mapping[str, JobState]) -> list[str]:
    """What failed, why, where, and where the log is; failures of one stage with the same text once."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in graph.work:
        if states[job.key].state == "failed":
            groups.setdefault((job.stage_in_sweep, _generic(states[job.key].error)), []).append(job)
    lines: list[str] = []
    for jobs in list(groups.values())[:MOST_LINES]:
        first = jobs[0]
        state = states[first.key]
        stopped = sum(states[key].state == "blocked" for job in jobs for key in dependants(graph, job.key))
        waiting = f" ({stopped} wait for it)" if stopped else ""
        node = f" (ran on {host})" if (host := _host(state)) else ""
        lines.append(f"{first.cell}: {first.column} failed: {state.error}{waiting}")
        lines.append(f"    log: {log_of(first.folder) or state.log or first.folder}{node}")
        if len(jobs) > 1:
            lines.append(
                f"    and {len(jobs) - 1} more like it: {', '.join(job.cell for job in jobs[1:4])}"
                + (", ..." if len(jobs) > 4 else "")
            )
    return lines + _rest(len(groups), "kinds of failures (--json has them all)")


def _by_stage(jobs: Sequence[Job], stages: Sequence[str]) -> dict[str, list[Job]]:
    by_stage: dict[str, list[Job]] = {stage: [] for stage in stages}
    for job in jobs:
        by_stage[job.stage_in_sweep].append(job)
    return by_stage


def _stage_text(jobs: Sequence[Job], states: Mapping[str, JobState], brief: bool) -> str:
    """Of a cell's stage: its state, result or progress; of several seeds, how many are in the foremost state."""
    if not jobs:
        return ""
    if len(jobs) == 1:
        return _job_text(states[jobs[0].key], brief)
    counts = Counter(states[job.key].label for job in jobs)
    label = next(label for label in ORDER if counts[label])
    if label == "done" and not brief and (mean := _mean_headline([states[job.key] for job in jobs])):
        return f"{counts[label]}/{len(jobs)} {mean}"
    return f"{counts[label]}/{len(jobs)} {'new' if label == 'new' else SHORT.get(label, label)}"


def _job_text(state: JobState, brief: bool) -> str:
    if state.state == "done" and state.record is not None:
        text = headline(state.record) or "done"
        return text.partition(",")[0] if brief else text
    if state.label == "stalled":
        return "stalled"
    if state.state == "running":
        text = progress(state.last) or "running"
        text = text.partition(",")[0] if brief else text
        return text + (f" (attempt {state.attempts})" if state.attempts > 1 and not brief else "")
    if state.state == "queued" and not brief:
        return f"queued {state.queue_id}"
    return SHORT.get(state.state, state.state)


def _mean_headline(states: Sequence[JobState]) -> str:
    for key, text in (("box_AP", "box AP"), ("top1", "top1")):
        values = [state.record.metrics.get(key) for state in states if state.record]
        numbers = [value for value in values if isinstance(value, int | float)]
        if numbers and len(numbers) == len(states):
            return f"{text} {sum(numbers) / len(numbers):.2f}"
    return ""


def _narrow_table(
    cells: Mapping[str, Mapping[str, list[Job]]], states: Mapping[str, JobState], width: int
) -> list[str]:
    """A line per cell: its name, how many of its jobs are done, and the unfinished stages, foremost first."""
    names = _short_names(list(cells), max(LEAST_NAME, width // 2))
    rows = [["", "done", "now"]]
    for name, by_stage in zip(names, cells.values()):
        jobs = [job for jobs in by_stage.values() for job in jobs]
        done = sum(states[job.key].state == "done" for job in jobs)
        rows.append([name, f"{done}/{len(jobs)}", _now(by_stage, states)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [_cut(_aligned(row, widths), width) for row in rows]


def _now(by_stage: Mapping[str, list[Job]], states: Mapping[str, JobState]) -> str:
    texts = []
    for stage, jobs in by_stage.items():
        labels = {states[job.key].label for job in jobs}
        if jobs and labels != {"done"}:
            rank = min(ORDER.index(label) for label in labels)
            texts.append((rank, f"{stage} {_stage_text(jobs, states, brief=True)}"))
    if not texts:
        return "all done"
    return ", ".join(text for _, text in sorted(texts, key=lambda entry: entry[0]))


def _short_names(names: Sequence[str], most: int, cut: bool = True) -> list[str]:
    """Without the recipes' folder, where that makes them fit and they stay different; cut in the middle, if need be."""
    if max(map(len, names), default=0) <= most:
        return list(names)
    short = [" ".join([name.split()[0].rpartition("/")[2], *name.split()[1:]]) for name in names]
    chosen = short if len(set(short)) == len(names) else list(names)
    if not cut:
        return chosen
    return [
        name if len(name) <= most else f"{name[: most // 2 - 1]}..{name[-(most - most // 2 - 1) :]}" for name in chosen
    ]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: max(0, width - 2)]}.."


def _rest(count: int, what: str) -> list[str]:
    return [f"  ... {count - MOST_LINES} more {what}"] if count > MOST_LINES else []


def _generic(error: str) -> str:
    """An error's text without its numbers and paths, which differ from job to job."""
    return " ".join("#" if any(letter.isdigit() for letter in word) or "/" in word else word for word in error.split())


def _host(state: JobState) -> str:
    return str(state.record.environment.get("host") or "") if state.record else ""
