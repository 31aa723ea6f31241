"""On SLURM, evaluations of kept backbones are released as these appear."""

from pathlib import Path

import pytest

from pretrain.evaluate.kept import kept_name
from slurm import kept_releases, worker
from slurm.clusters import Preset
from slurm.graph import Graph
from slurm.job_queue import Queued
from slurm.kept_releases import release_kept, releasing_kept
from slurm.planning import build_graph
from slurm.sweep import load_sweep


@pytest.fixture
def graph(places: Path, tmp_path: Path) -> Graph:
    sweep = tmp_path / "kept.yaml"
    sweep.write_text(
        "recipes: [sample/intl]\n"
        "overrides: {data.dataset: tiny, schedule.epochs: 5, batch: 64, machine.keep_every: 2, monitor.knn_every: 0}\n"
        "stages: {knn: {}}\n"
    )
    graph = build_graph(load_sweep(str(sweep), [], []), Preset(kind="local"))
    graph.leaderboard.folder.mkdir(parents=True)
    graph.save("lab", "now")
    return graph


def test_only_what_waits_for_a_backbone_that_is_there_is_released(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = {job.column: job for job in graph.work}
    folder, calls = jobs["pretrain"].folder, list[tuple[str, ...]]()
    queue = {job.key: Queued(f"{number + 10}_0", "PENDING") for number, job in enumerate(jobs.values())}
    monkeypatch.setattr(kept_releases, "queued_jobs", lambda: queue)
    monkeypatch.setattr(kept_releases, "ask", lambda *words, timeout: calls.append(words))
    task = jobs["pretrain"].task
    assert release_kept(task, set()) == set()
    assert not calls
    folder.mkdir(parents=True)
    (folder / kept_name(2)).touch()
    released = release_kept(task, set())
    assert released == {jobs["knn@2"].key}
    assert calls == [("scontrol", "update", f"jobid={queue[jobs['knn@2'].key].id}", "dependency=")]
    assert release_kept(task, released) == set()
    assert len(calls) == 1


def test_a_kept_backbone_stands_for_the_end_of_the_pretraining(graph: Graph) -> None:
    jobs = {job.column: job for job in graph.work}
    task = jobs["knn@4"].task
    assert not worker.parents_done(task)
    assert not worker._backbone_is_kept(task)
    jobs["pretrain"].folder.mkdir(parents=True)
    (jobs["pretrain"].folder / kept_name(4)).touch()
    assert worker._backbone_is_kept(task)
    assert not worker._backbone_is_kept(jobs["knn"].task)


def test_a_queue_that_does_not_answer_stops_nothing(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    task = next(job.task for job in graph.work if job.stage == "pretrain")
    asked = list[int]()

    def fail(*arguments: object) -> set[str]:
        asked.append(1)
        raise kept_releases.SlurmUnavailable("squeue does not answer")

    monkeypatch.setattr(kept_releases, "EVERY_S", 0.01)
    monkeypatch.setattr(kept_releases, "release_kept", fail)
    with releasing_kept(task, enabled=True):
        while len(asked) < 3:
            pass
    asked.clear()
    with releasing_kept(task, enabled=False):
        pass
    assert not asked
