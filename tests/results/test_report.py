"""The report is one whole page that fetches nothing and says what the folders hold."""

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from results.aggregate import RESULTS, tables_of
from results.claims import TABLE
from results.leaderboards.claim_tests import HOLDS
from results.page.claims import claim_table
from results.page.curves import thinned
from results.page.dot_plots import Scale
from results.page.environment import macro
from results.page.frames import compact, script_json
from results.page.marks import Marks
from results.page.page import Options
from results.page.pictures import PictureBudget
from results.page.run_details import difference
from results.page.run_files import tail
from results.page.scatter import correlation, pareto_front
from results.page.snapshot import build_page, read_runs
from results.report import main
from tests.support.html_page import Page
from tests.support.report_runs import history, sample_runs
from tests.support.run_records import Records
from whitebench.errors import UserError
from whitebench.records import Record


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return sample_runs(tmp_path / "runs", {"intl": 80.0, "cwrgp": 70.0, "random": 20.0})


def report(records: Records, **options: bool) -> str:
    return build_page(read_runs([records.root]), Options(views=False, **options)).decode()


def own_text(text: str) -> str:
    """Without Vega's script."""
    return re.sub(r"<script>\n.{100000,}?</script>", "", text, flags=re.DOTALL)


def test_the_page_is_whole_and_fetches_nothing(records: Records) -> None:
    text = report(records)
    parsed = Page(text)
    assert not [address for address in parsed.addresses if not address.startswith(("#", "data:"))]
    assert not re.search(r"@import|url\(|<link|<iframe|fetch\(|XMLHttpRequest", own_text(text))
    assert "default-src 'none'" in text
    assert "connect-src" not in text
    sections = (
        "leaderboards",
        "across",
        "comparisons",
        "curves",
        "spectra",
        "quality",
        "transfer",
        "cost",
        "tables",
        "runs",
    )
    assert set(sections) <= set(parsed.ids)
    assert text.count("data-chart=") > 20
    assert [name for name in parsed.ids if parsed.ids.count(name) > 1] == []


def test_every_chart_reads_rows_that_exist(records: Records) -> None:
    text = report(records)
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    charts = [json.loads(chart) for chart in re.findall(r"data-chart='([^']*)'", text)]
    for chart in charts:
        frame = pd.DataFrame({name: decoded(column) for name, column in data["frames"][chart["frame"]].items()})
        for column, value in chart["where"].items():
            frame = frame[frame[column] == value]
        assert len(frame)
        assert set(fields_of(chart["spec"])) <= set(frame.columns)


def decoded(column: object) -> list[object]:
    if isinstance(column, dict):
        return [column["levels"][code] for code in column["codes"]]
    assert isinstance(column, list)
    return column


def fields_of(spec: object) -> list[str]:
    if isinstance(spec, list):
        return [name for item in spec for name in fields_of(item)]
    if not isinstance(spec, dict):
        return []
    own = [spec["field"]] if isinstance(spec.get("field"), str) else []
    return own + [name for item in spec.values() for name in fields_of(item)]


def test_charts_are_valid_vega_lite(records: Records) -> None:
    altair = pytest.importorskip("altair")
    text = report(records)
    specs = {json.dumps(json.loads(chart)["spec"]) for chart in re.findall(r"data-chart='([^']*)'", text)}
    for spec in sorted(specs):
        altair.LayerChart.from_dict({**json.loads(spec), "data": {"values": []}}).to_dict()


def test_a_leaderboards_row_links_to_its_runs_and_has_an_address(records: Records) -> None:
    text = report(records)
    [config] = {str(config) for config in tables_of([records.root]).runs.query("method == 'intl'").config}
    assert f'href="#runs?q=config%3A{config}"' in text
    runs = re.findall(r'<details id="([^"]+)" data-words="[^"]*config:' + config, text)
    assert len(runs) == 3
    addresses = re.findall(r'href="#(row-[^"]+)"', text)
    assert addresses
    assert set(addresses) <= set(Page(text).ids)


def test_runs_that_have_not_ended_have_their_state_and_reason(records: Records) -> None:
    running = records.pretrain("byol", 5, status="running")
    history(records.root / "pretrain" / running)
    records.pretrain("dino", 5, status="failed", error="RuntimeError: loss is nan")
    text = report(records)
    section = text[text.index('<section id="progress">') : text.index('<section id="leaderboards">')]
    assert running in section
    assert "6 of 6" in section
    assert "RuntimeError: loss is nan" in section


def test_a_page_without_any_evaluation_has_what_is_running(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs")
    history(records.root / "pretrain" / records.pretrain("byol", 5, status="running"))
    text = report(records)
    ids = Page(text).ids
    assert {"progress", "curves", "spectra", "runs"} <= set(ids)
    assert "leaderboards" not in ids


def test_a_pretraining_without_evaluation_is_among_the_runs(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs")
    done = records.pretrain("byol", 5)
    history(records.root / "pretrain" / done)
    text = report(records)
    assert {done, "curves", "runs"} <= set(Page(text).ids)
    assert "In progress" not in text


def test_runs_without_curves_say_why(records: Records) -> None:
    records.pretrain("byol", 5, status="running")
    broken = records.root / "pretrain" / records.pretrain("dino", 5, status="running")
    (broken / "metrics.jsonl").write_text("5\n")
    text = report(records)
    assert "no line in metrics.jsonl yet" in text
    assert "metrics.jsonl: line 1 is not a JSON object" in text


def test_marks_of_many_methods_differ_and_do_not_depend_on_the_others() -> None:
    few, many = Marks(["intl", "x"]), Marks([*(f"method {i}" for i in range(40)), "intl"])
    marks = [many[method] for method in many.methods]
    assert len(many.methods) == 41
    assert len({(mark.colour, mark.shape) for mark in marks}) == 41
    assert few["intl"] == many["intl"]


def test_the_claims_are_those_of_the_table() -> None:
    if not (RESULTS / TABLE).exists():
        pytest.skip("no claims are published: their runs were stale")
    table = claim_table(RESULTS / TABLE)
    assert table is not None
    text = str(macro("cells.html", "data_table")(table))
    judged = pd.read_csv(RESULTS / TABLE)
    Page(text)
    assert text.count("<tr data-words=") == judged.claim.nunique()
    assert text.count(f">{HOLDS}</span>") == (judged.verdict == HOLDS).sum() + sum(
        verdict == HOLDS for _, verdict in judged.groupby("claim").claim_verdict.first().items()
    )
    compared = judged[judged.other_mean.notna() & judged.why.isna()]
    assert len(compared)
    for value, count in zip(compared.arm_mean, compared.arm_n, strict=True):
        assert f"{value:.3g} (n={count:.0f})" in text
    assert claim_table(RESULTS / "no-such.csv") is None


def test_every_run_has_its_command_difference_log_and_pictures(records: Records) -> None:
    parent = records.pretrain("simclr", 7, recipe="no/such", command="python -m pretrain no/such seed=7")
    folder = records.root / "pretrain" / parent
    Image.new("RGB", (8, 8), "red").save(folder / "views.png")
    log = records.root / "sweeps" / "s" / "launches" / "l" / "log.out"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {i}\n" for i in range(100)) + "\x1b[32m10 %\r100 %\x1b[0m /elsewhere/runs/x\n")
    moved = Path("/elsewhere/runs/sweeps/s/launches/l/log.out")
    (folder / "attempts.jsonl").write_text(json.dumps({"log": str(moved)}) + "\n")
    records.evaluate(parent, {"top1": 50.0})
    text = report(records)
    assert "python -m pretrain no/such seed=7" in text
    assert "the suite has no recipe &#39;no/such&#39;" in text
    assert "line 99\n100 % runs/x" in text
    assert "line 10\n" not in text
    assert "data:image/webp;base64," in text


def test_a_config_is_compared_with_its_recipe() -> None:
    from pretrain.recipe import load
    from whitebench.hashing import canonical

    config = {**canonical(load("sample/intl").identity()), "device": "cpu", "data_hash": "x", "seed": 4}
    record = Record("a", "pretrain", config, cell={"recipe": "sample/intl"})
    assert difference(record) == []
    epochs = str(record.config["schedule"]["epochs"])
    record.config["schedule"]["epochs"] = 2
    assert difference(record) == [("schedule.epochs", epochs, "2")]


def test_pictures_are_thumbnails_within_a_limit_for_the_page(tmp_path: Path) -> None:
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    for i in range(6):
        Image.fromarray(noise).save(tmp_path / f"{i}.jpg", quality=95)
    budget = PictureBudget(700_000)
    found = budget.of_run(tmp_path)
    assert 0 < sum(len(picture.source) for picture in found) <= 700_000
    assert 0 < sum(bool(picture.source) for picture in found) < 6
    assert [picture.name for picture in found] == [f"{i}.jpg" for i in range(6)]
    assert all(bool(picture.source) != bool(picture.note) for picture in found)


# --- data of charts and tables --------------------------------------------------------------------------------------


def test_frames_hold_what_json_can() -> None:
    frame = pd.DataFrame({"x": [1.0, float("nan"), float("inf"), 1 / 3], "t": ["a", "b", None, "a"], "f": [True] * 4})
    columns = compact(frame)
    assert columns["x"] == [1, None, None, 0.33333]
    assert columns["t"] == {"levels": ["a", "b", ""], "codes": [0, 1, 2, 0]}
    text = script_json({"a": "</script><!--", "b": "'&\ud800"})
    assert not set("<>&'") & set(text)
    assert json.loads(text)["a"] == "</script><!--"


def test_scales_have_round_ticks_and_cut_at_their_edges() -> None:
    scale = Scale(0, 90)
    assert scale.ticks == [0, 50]
    assert (scale(45), scale(-5), scale(200)) == (50, 0, 100)
    assert Scale.of([]) is Scale.of([float("nan")]) is None
    assert Scale.of([3.0]) is not None


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = pd.DataFrame({"x": [1, 2, 2, 3, 9], "y": [10, 9, 20, 20, 21]}, index=list("abcde"))
    front = pareto_front(points.x, points.y)
    assert list(front[front].index) == ["a", "c", "e"]


def test_a_correlation_has_an_interval_or_says_why_not() -> None:
    """r = 8 / sqrt(10 x 8.8); tanh(atanh(r) -+ 1.96 / sqrt(5 - 3))."""
    experiments = [[(x, y - 1.0), (x, y + 1.0)] for x, y in zip((1, 2, 3, 4, 5), (2, 4, 5, 4, 6), strict=True)]
    text = correlation(experiments)
    assert text.startswith("Pearson r = 0.85 [-0.12, 0.99], Spearman ρ = 0.82 [")
    assert text.endswith("over 5 experiments without the bounds (10 pretrainings)")
    few = "2 experiments without the bounds (2 pretrainings): too few for a correlation"
    assert correlation([[(1, 1)], [(2, 2)]]) == few


def test_curves_are_thinned_evenly_and_keep_their_end() -> None:
    kept = thinned([{"step": i} for i in range(1001)], most=100)
    assert len(kept) <= 102
    assert (kept[0]["step"], kept[-1]["step"]) == (0, 1000)
    assert thinned([]) == []


def test_a_tail_of_a_large_log_is_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x" * 200_000 + "\nlast but one\nlast\r\n")
    assert tail(tmp_path / "log", [tmp_path], 2) == "last but one\nlast"


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_file(records: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(records.root), "--out", str(tmp_path / "r.html"), "--no-views"])
    Page((tmp_path / "r.html").read_text())
    assert "leaderboards" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_refused_before_the_work(records: Records, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        main([str(records.root), "--out", str(tmp_path)])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        main([str(records.root), "--out", str(tmp_path / "pipe")])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        main([str(records.root), "--out", str(tmp_path / "file" / "r.html")])
