"""Backbones that are kept during training: which, their names, and what a sweep plans for them."""

from pathlib import Path
from typing import Literal

import pytest

from pretrain.evaluate.kept import kept_backbones, kept_epochs, kept_name
from pretrain.evaluate.stage import config
from pretrain.evaluate.target import Options, Target
from pretrain.recipe import load
from slurm.clusters import Preset
from slurm.planning import build_graph
from slurm.sweep import load_sweep
from whitebench.errors import UserError
from whitebench.hashing import run_id


def test_the_last_epoch_is_kept_anyway() -> None:
    assert kept_epochs(30, 10) == [10, 20]
    assert kept_epochs(25, 10) == [10, 20]
    assert kept_epochs(5, 10) == kept_epochs(30, None) == []


def test_kept_backbones_are_asked_for_by_epoch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no backbones were kept during training"):
        kept_backbones(tmp_path, "all")
    for epoch in (20, 10):
        (tmp_path / kept_name(epoch)).touch()
    (tmp_path / "backbone.safetensors").touch()
    assert [path.name for path in kept_backbones(tmp_path, "all")] == [kept_name(10), kept_name(20)]
    assert kept_backbones(tmp_path, "20") == [tmp_path / kept_name(20)]
    with pytest.raises(UserError, match="no backbone of epoch 15; kept: 10, 20"):
        kept_backbones(tmp_path, "10,15")
    with pytest.raises(UserError, match="neither all nor a list of epochs"):
        kept_backbones(tmp_path, "last")


def test_keeping_does_not_change_a_run(places: Path) -> None:
    plain = load("sample/intl", {"data.dataset": "tiny"})
    assert plain.identity() == load("sample/intl", {"data.dataset": "tiny", "machine.keep_every": 10}).identity()


def test_an_epoch_is_part_of_an_evaluations_identity(places: Path) -> None:
    recipe = load("sample/intl", {"data.dataset": "tiny"})
    last, kept = (Target.of_recipe(recipe, "parent", epoch=epoch) for epoch in (None, 10))
    options = Options("cosine-20")
    assert config("knn", kept, options) == {**config("knn", last, options), "epoch": 10}


LOADERS: tuple[Literal["ffcv", "folder"], ...] = ("ffcv", "folder")


@pytest.mark.parametrize(("stage", "protocol"), [("linear", "features"), ("knn", "cosine-20")])
def test_the_loader_is_part_of_an_evaluations_identity(stage: str, protocol: str, places: Path) -> None:
    """FFCV's decoder and Pillow's differ by about a level, and results with them."""
    target = Target.of_recipe(load("sample/intl", {"data.dataset": "tiny"}), "parent")
    configs = [config(stage, target, Options(protocol, loader=loader)) for loader in LOADERS]
    assert run_id("x", configs[0]) != run_id("x", configs[1])


def test_a_sweep_evaluates_kept_backbones(places: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "kept.yaml"
    sweep.write_text(
        "recipes: [sample/intl]\n"
        "overrides: {data.dataset: tiny, schedule.epochs: 5, batch: 64, machine.keep_every: 2, monitor.knn_every: 0}\n"
        "stages: {knn: {}, semi: {}, linear: {seeds: [0, 1]}}\n"
    )
    graph = build_graph(load_sweep(str(sweep), [], []), Preset(kind="local"))
    columns = graph.columns()
    assert {"knn", "knn@2", "knn@4", "linear:0", "linear@2:0", "linear@4:1", "semi"} <= set(columns)
    assert not any(column.startswith("semi@") for column in columns)
    jobs = {job.column: job for job in graph.work}
    pretraining = jobs["pretrain"]
    assert jobs["knn@2"].needs == (pretraining.key,)
    assert jobs["knn@2"].task.kept_backbone == pretraining.folder / kept_name(2)
    assert jobs["knn"].task.kept_backbone is None
    assert len({job.key for job in jobs.values()}) == len(jobs)


def test_a_stage_of_a_sweep_may_have_several_datasets(places: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sets.yaml"
    text = "recipes: [sample/random]\noverrides: {data.dataset: tiny}\nstages: {linear: {datasets: [tiny, sample]}}\n"
    sweep.write_text(text)
    graph = build_graph(load_sweep(str(sweep), [], []), Preset(kind="local"))
    assert {job.column: job.task.options for job in graph.work if job.stage == "linear"} == {
        "linear@tiny": {"dataset": "tiny"},
        "linear@sample": {"dataset": "sample"},
    }
    sweep.write_text(text.replace("[tiny, sample]", "tiny"))
    with pytest.raises(UserError, match="datasets: not a list of names: 'tiny'"):
        build_graph(load_sweep(str(sweep), [], []), Preset(kind="local"))
