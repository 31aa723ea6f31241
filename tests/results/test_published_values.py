"""Published values beside ours: of the same setting only, with their source and what differs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from results.aggregate import render, tables_of
from results.leaderboards import recipe_papers
from results.leaderboards.published import CSV, Published, parse_views
from tests.support.run_records import Records, Rows, read_csv

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"


def _published(
    records: Records, method: str, top1: float = 92.0, recipe: str | None = None, seed: int = 0, **config: Any
) -> str:
    base = {
        "data": {"dataset": "cifar10", "views": [{"size": 32, "count": 2}]},
        "schedule": {"epochs": 1000},
        "batch": 256,
        "method": {"name": method},
    }
    parent = records.pretrain(method, seed, recipe=recipe, config={**base, **config})
    return records.evaluate(parent, {"top1": top1, "top5": 99.0}, config={"dataset": "cifar10"})


CIFAR = "leaderboard_cifar10_linear-features.csv"


def test_a_published_value_of_the_same_setting_has_a_delta_and_its_source(
    records: Records, table: Callable[..., Rows]
) -> None:
    _published(records, "cwrgp")
    _published(records, "intl")
    rows = {row["method"]: row for row in table(CIFAR)}
    assert (rows["cwrgp"]["top1_published"], rows["cwrgp"]["top1_delta"]) == ("91.92", "0.08")
    assert rows["cwrgp"]["published_method"] == "CW-RGP 2"
    assert rows["cwrgp"]["comparable"] == "yes"
    assert "winci-ai/CW-RGP" in rows["cwrgp"]["published_source"]
    assert (rows["intl"]["top1_published"], rows["intl"]["top1_delta"]) == ("92.6", "-0.6")


def test_four_views_are_compared_with_the_four_view_value(records: Records, table: Callable[..., Rows]) -> None:
    _published(records, "cwrgp", data={"dataset": "cifar10", "views": [{"size": 32, "count": 4}]})
    [row] = table(CIFAR)
    assert (row["published_method"], row["top1_published"]) == ("CW-RGP 4", "92.47")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"schedule": {"epochs": 200}}, "epochs different: 200, published 1000"),
        ({"batch": 512}, "batch different: 512, published 256"),
        ({"network": {"backbone": "resnet50"}}, "backbone different: resnet50, published ResNet-18"),
        ({"data": {"dataset": "cifar10", "views": [{"size": 32, "count": 8}]}}, "views different: 8x32, published 2"),
    ],
)
def test_a_different_setting_is_named_and_has_no_delta(
    records: Records, table: Callable[..., Rows], config: dict[str, Any], said: str
) -> None:
    _published(records, "intl", **config)
    [row] = table(CIFAR)
    assert (row["comparable"], row["top1_delta"]) == ("no", "")
    assert said in row["published_fields"]
    assert row["top1_published"] not in render(tables_of([records.root]))


def test_what_a_publication_does_not_state_is_undecided(records: Records, table: Callable[..., Rows]) -> None:
    _published(records, "simclr")
    [row] = table(CIFAR)
    assert (row["comparable"], row["top1_published"], row["top1_delta"]) == ("undecided", "91.8", "")
    assert "batch not stated" in row["published_fields"]
    assert "91.80 (undecided)" in render(tables_of([records.root]))


def test_voc_is_compared_with_its_own_values(records: Records, table: Callable[..., Rows]) -> None:
    config = {"data": {"dataset": "imagenet1k"}, "network": {"backbone": "resnet50"}, "schedule": {"epochs": 200}}
    parent = records.pretrain("cwrgp", config=config)
    metrics = {"box_AP": 57.0, "box_AP50": 82.0, "box_AP75": 63.0}
    records.evaluate(parent, metrics, "detect", 0, {"protocol": {"name": "c4-24k"}, "dataset": "voc"})  # type: ignore[arg-type]
    [row] = table("leaderboard_voc_detect-c4-24k.csv")
    assert (row["box_AP_published"], row["mask_AP_published"], row["mask_AP_mean"]) == ("57.2", "", "")
    assert "protocol equal" in row["published_fields"]


def test_a_run_that_deviates_from_its_protocol_is_not_comparable(records: Records, table: Callable[..., Rows]) -> None:
    parent = records.pretrain(
        "cwrgp",
        config={"data": {"dataset": "imagenet1k"}, "network": {"backbone": "resnet50"}, "schedule": {"epochs": 200}},
    )
    for seed, deviations in enumerate([[], ["SOLVER.MAX_ITER: 10, published 90000"]]):
        metrics = {"box_AP": 40.0, "mask_AP": 35.0, "deviations": deviations}
        config = {"protocol": {"name": "c4-2x"}, "dataset": None, "iterations": seed}
        records.evaluate(parent, metrics, "detect", seed, config, cell={"dataset": "coco"})  # type: ignore[arg-type]
    rows = {row["deviations"] != "": row for row in table("leaderboard_coco_detect-c4-2x.csv")}
    assert (rows[False]["comparable"], rows[True]["comparable"]) == ("undecided", "no")
    assert (rows[False]["box_AP_published"], rows[False]["mask_AP_published"]) == ("40.7", "35.5")
    assert "protocol not stated: its repository's config is 2x" in rows[False]["published_fields"]
    assert "protocol different: SOLVER.MAX_ITER" in rows[True]["published_fields"]


def test_published_coco_numbers_of_the_whitening_papers_are_not_c4_1x(
    records: Records, table: Callable[..., Rows]
) -> None:
    parent = records.pretrain(
        "intl",
        config={"data": {"dataset": "imagenet1k"}, "network": {"backbone": "resnet50"}, "schedule": {"epochs": 200}},
    )
    config = {"protocol": {"name": "c4-1x"}, "dataset": None}
    metrics = {"box_AP": 40.0, "mask_AP": 35.0, "deviations": []}
    records.evaluate(parent, metrics, "detect", 0, config, cell={"dataset": "coco"})  # type: ignore[arg-type]
    (row,) = table("leaderboard_coco_detect-c4-1x.csv")
    assert row["comparable"] == "no"
    assert "protocol different: 2x, by its repository's config" in row["published_fields"]


def test_ema_and_multi_crop_are_told_from_the_plain_method() -> None:
    views = "2x224+1x192+1x160+1x128+1x96"
    measured = {"dataset": "imagenet1k", "stage": "linear", "protocol": "intl-imagenet", "method": "intl"}
    measured |= {"backbone": "resnet50", "epochs": 100, "batch": 256, "views": views, "selection": "last"}
    with_ema = Published().nearest(measured, {"name": "intl", "momentum": "0.996"}, "top1")
    assert with_ema is not None
    assert (with_ema.method, with_ema.values["top1"]) == ("INTL (EMA + multi-crop)", 73.5)
    assert with_ema.comparable == "undecided"
    assert [name for name, state in with_ema.fields.items() if state != "equal"] == ["selection"]
    plain = Published().nearest(measured, {"name": "intl", "momentum": "null"}, "top1")
    assert plain is not None
    assert (plain.method, plain.comparable) == ("INTL", "no")


def test_of_equally_near_values_the_one_read_at_its_source_is_taken() -> None:
    measured = {"dataset": "imagenet100", "stage": "linear", "protocol": "intl-2view", "method": "intl"}
    match = Published().nearest(
        {**measured, "backbone": "resnet18", "epochs": 400, "batch": 128, "views": "2x224", "selection": "last"},
        {},
        "top1",
    )
    assert match is not None
    assert match.values["top1"] == 81.68
    assert not match.source.startswith("SECONDARY")


@pytest.mark.parametrize(
    ("tops", "verdict"),
    [
        ([91.46, 91.47, 91.48], "reproduced"),
        ([91.92, 91.93, 91.9], "reproduced"),
        ([91.4], "not decided (n = 1)"),
        ([91.9, 91.9], "not decided (n = 2)"),
        ([91.3, 91.31, 91.32], "short by 0.61"),
        ([91.4, 91.41, 91.42], "not decided"),  # its interval reaches over the bound
        ([95.9, 88.5, 92.0], "not decided"),  # the mean is right by chance
        ([95.9, 95.8, 95.85], "above by 3.93"),
    ],
)
def test_a_verdict_is_by_the_recipes_tolerance_and_needs_the_whole_interval(
    records: Records, table: Callable[..., Rows], tops: list[float], verdict: str
) -> None:
    """CW-RGP's 91.92, within half a point."""
    for seed, top1 in enumerate(tops):
        _published(records, "cwrgp", top1=top1, recipe="cifar10/cwrgp-2view", seed=seed)
    [row] = table(CIFAR)
    assert (row["comparable"], row["top1_verdict"]) == ("yes", verdict)
    assert verdict in render(tables_of([records.root]))


def test_a_reconstruction_has_no_verdict(records: Records, table: Callable[..., Rows]) -> None:
    _published(records, "simclr", recipe="cifar10/simclr")
    [row] = table(CIFAR)
    assert (row["comparable"], row["top1_verdict"], row["top1_delta"]) == ("undecided", "", "")
    assert "settings not stated: a reconstruction" in row["published_fields"]
    assert "reconstruction" in row["flags"]


def test_another_selection_than_the_papers_is_no_comparison(records: Records, table: Callable[..., Rows]) -> None:
    config = {"data": {"dataset": "imagenet1k", "views": [{"size": 224, "count": 4}]}, "batch": 512}
    network = {"network": {"backbone": "resnet50"}, "schedule": {"epochs": 100}}
    parent = records.pretrain("cwrgp", config={**config, **network})
    protocol = {"dataset": "imagenet1k", "protocol": {"name": "cwrgp-imagenet", "selection": "last"}}
    records.evaluate(parent, {"top1": 69.7}, config=protocol)
    [row] = table("leaderboard_imagenet1k_linear-cwrgp-imagenet.csv")
    assert (row["selection"], row["comparable"], row["top1_verdict"]) == ("last", "no", "")
    assert "selection different: last, published best" in row["published_fields"]


@pytest.mark.parametrize(
    ("text", "views"),
    [
        ("2", (2, None)),
        ("2x224+6x96", (8, {224: 2, 96: 6})),
        ("6 (2x224,192,160,128,96)", (6, {224: 2, 192: 1, 160: 1, 128: 1, 96: 1})),
        (f"{10**12}x224", (10**12, {224: 10**12})),
        ("", None),
        ("several", None),
    ],
)
def test_numbers_and_sizes_of_views_are_read(text: str, views: Any) -> None:
    assert parse_views(text) == views


def test_every_name_of_the_map_exists_on_both_sides() -> None:
    from pretrain.evaluate.protocols import PROTOCOLS
    from pretrain.method import method_names

    published, names = pd.read_csv(CSV, dtype=str), Published().map
    assert set(names["methods"]) <= set(published.method)
    assert {entry["method"] for entry in names["methods"].values()} <= set(method_names())
    assert set(names["datasets"].values()) <= set(published.dataset)
    assert {text for texts in names["backbones"].values() for text in texts} <= set(published.backbone)
    assert set(names["metrics"].values()) <= set(published.metric)
    entries = [entry for entries in names["protocols"].values() for entry in entries]
    assert {entry["text"] for entry in entries} <= set(published.protocol)
    assert {entry["paper"] for entry in entries if "paper" in entry} <= set(published.paper)
    assert {data for entry in entries for data in entry.get("dataset", [])} <= set(published.dataset)
    boards = {f"{stage}-{protocol.name}" for stage, protocols in PROTOCOLS.items() for protocol in protocols}
    boards |= {f"detect-{path.stem}" for path in (ROOT / "transfer" / "protocols").glob("*.yaml")}
    assert set(names["protocols"]) <= boards


def test_recipes_that_a_published_name_stands_for_exist() -> None:
    entries = Published().map["methods"].values()
    assert {name for entry in entries for name in entry.get("recipes", [])} <= recipe_papers.names()


def _reported() -> list[tuple[str, str, float]]:
    """Recipe, metric and value that it reports, of the datasets of which values are published here."""
    datasets = Published().map["datasets"]
    return [
        (recipe, metric.partition("_")[2], value)
        for recipe in sorted(recipe_papers.names())
        if recipe_papers.section(recipe, "data").get("dataset") in datasets
        for metric, value in (recipe_papers.paper(recipe).get("reported") or {}).items()
    ]


@pytest.mark.parametrize(("recipe", "metric", "value"), _reported())
def test_what_a_recipe_reports_is_published_of_its_method(recipe: str, metric: str, value: float) -> None:
    """Otherwise its measured row would stand without the value that it aims at, or beside another method's."""
    published, method = Published(), recipe_papers.section(recipe, "method")
    dataset = published.map["datasets"][recipe_papers.section(recipe, "data")["dataset"]]
    names = {
        row["method"]
        for row, values in published.experiments
        if row["dataset"] == dataset and values.get(metric) == value
    }
    assert any(published.is_method(name, method["name"], method, recipe) for name in names), names


def test_published_values_are_those_of_the_reference() -> None:
    folder = SHARED / "reference"
    if not (folder / "published_more.csv").exists():
        pytest.skip("the reference is not here")
    expected = [row for name in ("published.csv", "published_more.csv") for row in read_csv(folder / name)]
    rows = read_csv(CSV)[: len(expected)]  # in the same order; tables read elsewhere follow
    for row, reference in zip(rows, expected, strict=True):
        for key in ("paper", "dataset", "task", "epochs", "batch_size", "metric"):
            assert row[key] == reference[key]
        assert float(row["value"]) == float(reference["value"])


def test_published_data_columns_hold_data_and_their_digits_are_as_printed() -> None:
    rows = read_csv(CSV)
    comment = re.compile(r"\(|\[|not stated|same numbers")
    assert not [row["backbone"] for row in rows if comment.search(row["backbone"])]
    methods = {row["method"] for row in rows if comment.search(row["method"])}
    assert methods <= {"INTL (EMA + multi-crop)", "T-REGS (MSE)", "SIGReg (BCS)", "2*align(2)+unif(t2)"} | {
        f"{k}*align(2)+unif(t{k})" for k in (3, 4)
    }
    assert not [row["source"] for row in rows if "file-index" in row["source"]]
    values = {(row["method"], row["dataset"], row["metric"], row["paper"]): row["value"] for row in rows}
    assert values["INTL", "CIFAR-10", "top5", "INTL (ICLR 2024)"] == "99.80"
    assert values["CW-RGP", "VOC07+12", "AP_std", "CW-RGP (NeurIPS 2022)"] == "0.10"
    assert all(parse_views(row["views"]) for row in rows if row["views"])


def test_the_coco_table_has_published_baselines() -> None:
    boxes = {
        row["method"]: cells["box_AP"][0]
        for row, cells in Published().rows
        if (row["dataset"], row["paper"]) == ("COCO2017", "SimSiam (CVPR 2021)")
        and not row["note"].startswith("second")
    }
    assert boxes == {
        "scratch": "26.4",
        "Supervised": "38.2",
        "SimCLR": "37.9",
        "MoCo v2": "39.2",
        "BYOL": "37.9",
        "SwAV": "37.6",
        "SimSiam": "37.9",
    }
