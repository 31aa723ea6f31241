"""The report is one whole page that fetches nothing, shows what the folders hold, and can be sorted and filtered."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from results.aggregate import RESULTS, tables_of
from results.claims import HOLDS, TABLE
from results.leaderboards.repeat_command import repeat
from results.page import run_details
from results.page.charts import DotRow, Mark, Scale, Series, dots, lines, pareto, scatter
from results.page.claims import claims
from results.page.page import page
from results.page.run_charts import correlation
from results.page.run_details import difference, read_details, tail, thinned
from results.report import main
from tests.results.test_aggregate import Records
from whitebench.records import Record

VOID = {"meta", "input", "br", "img", "link"}


class Page(html.parser.HTMLParser):
    """Checks that what opens closes; keeps tags, addresses and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "data", "action", "srcset")]
        self.ids += [value or "" for key, value in attrs if key == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def records(tmp_path: Path) -> Records:
    made = Records(tmp_path / "runs")
    for seed in range(3):
        for method, top1 in (("intl", 80.0), ("cwrgp", 70.0), ("random", 20.0)):
            parent = made.pretrain(method, seed)
            _history(made.root / "pretrain" / parent)
            made.evaluate(parent, {"top1": top1 + seed, "top5": 99.0})
            made.evaluate(parent, {"box_AP": top1 / 4 + seed, "mask_AP": top1 / 5}, "detect")
    return made


def _history(folder: Path) -> None:
    """What a pretraining leaves besides its record."""
    curve = [{"epoch": epoch, "loss": 9.0 / epoch, "online_knn_top1": 50.0 + epoch} for epoch in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    part = {"effective_rank": 3.0, "eigenvalues": [4.0, 2.0, 1.0, 0.0]}
    looks = [{"epoch": epoch, "backbone": part, "embedding": part, "transformed": None} for epoch in (1, 5)]
    (folder / "spectra.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks) + '{"epoch": 9, "ba')


def report(records: Records) -> str:
    return page(tables_of([records.root]), most=100, views=False)


def test_the_page_is_whole_and_fetches_nothing(records: Records) -> None:
    text = report(records)
    shown = Page(text)
    assert not [address for address in shown.addresses if not address.startswith(("#", "data:"))]
    assert not re.search(r"@import|url\(|<link|<iframe|fetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text
    sections = ("leaderboards", "comparisons", "curves", "spectra", "transfer", "cost", "tables", "runs")
    assert set(sections) <= set(shown.ids)
    assert shown.tags.count("svg") > 20


def test_the_claims_are_those_of_the_table() -> None:
    if not (RESULTS / TABLE).exists():
        pytest.skip("no claims are published: their runs were stale")
    text = claims(RESULTS / TABLE)
    judged = pd.read_csv(RESULTS / TABLE)
    Page(text)
    assert text.count("<tr data-f=") == judged.claim.nunique()
    assert text.count(f">{HOLDS}</span>") == (judged.verdict == HOLDS).sum() + sum(
        verdict == HOLDS for _, verdict in judged.groupby("claim").claim_verdict.first().items()
    )
    for value in judged.arm_mean:
        assert f"{value:.3g} (n=3)" in text
    assert claims(RESULTS / "no-such.csv") == ""


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs")
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    parent = records.pretrain(evil, recipe=evil, command=evil, environment={"git": evil}, error=evil)
    _history(records.root / "pretrain" / parent)
    (records.root / "pretrain" / parent / "error.txt").write_text(evil)
    records.evaluate(parent, {"top1": 1.0}, config={"dataset": evil, "protocol": {"name": evil}})
    shown = Page(report(records))
    assert shown.tags.count("script") == 1
    assert "img" not in shown.tags


def test_every_run_has_its_command_difference_log_and_pictures(records: Records, tmp_path: Path) -> None:
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
    assert "the suite has no recipe &#x27;no/such&#x27;" in text
    assert "line 99\n100 % runs/x" in text
    assert "line 10\n" not in text
    assert "data:image/png;base64," in text


def test_a_picture_that_is_too_large_is_named_instead(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_details, "PICTURE_BYTES", 10)
    folder = next((records.root / "pretrain").iterdir())
    (folder / "big.png").write_bytes(b"x" * 11)
    [detail] = read_details([folder / "run.json"])
    assert detail.pictures == [("big.png", "")]


def test_a_config_is_compared_with_its_recipe() -> None:
    from pretrain.recipe import load
    from whitebench.hashing import canonical

    config = {**canonical(load("sample/intl").identity()), "device": "cpu", "data_hash": "x", "seed": 4}
    record = Record("a", "pretrain", config, cell={"recipe": "sample/intl"})
    assert difference(record) == []
    record.config["schedule"]["epochs"] = 2
    assert difference(record) == [("schedule.epochs", "18", "2")]


def test_commands_of_jobs_are_those_that_a_person_would_type() -> None:
    job = "python -u -m submitit.core._submit /x"
    config = {"parent": "intl-s0-1", "protocol": {"name": "sample"}, "dataset": "sample", "seed": 1, "threads": 2}
    probe = Record("a", "linear", config, command=job)
    assert repeat(probe) == (
        "python -m pretrain.evaluate linear --ckpt runs/pretrain/intl-s0-1 --protocol sample "
        "--dataset sample --seed 1 --threads 2"
    )
    detect = Record("a", "detect", {**config, "iterations": 9}, cell={"dataset": "coco"}, command=job)
    assert repeat(detect) == (
        "python transfer/coco_det.py --ckpt runs/pretrain/intl-s0-1 --protocol sample --coco coco --seed 1 --threads 2"
    )
    detect.metrics["deviations"] = ["SOLVER.MAX_ITER"]
    assert repeat(detect).endswith("--iterations 9")
    assert repeat(Record("a", "linear", config, command="python mine.py")) == "python mine.py"


def test_commands_of_jobs_are_understood_by_the_commands() -> None:
    import shlex

    from pretrain.evaluate.__main__ import parser as evaluate
    from transfer.coco_det import parser as detect

    job = "python -u -m submitit.core._submit /x"
    config = {"parent": "intl-s0-1", "protocol": {"name": "p"}, "dataset": "d", "crop": 32, "resize": 32, "seed": 1}
    config |= {"device": "cpu", "threads": 2, "encoder": None, "iterations": 9, "image_size": 96, "batch": 2, "lr": 0.1}
    words = shlex.split(repeat(Record("a", "knn", config, command=job)))
    assert evaluate().parse_args(words[3:]).resize == 32
    record = Record("a", "detect", config, metrics={"deviations": ["x"]}, command=job)
    assert detect().parse_args(shlex.split(repeat(record))[2:]).image_size == 96


# --- charts ---------------------------------------------------------------------------------------------------------


def test_scales_have_round_ticks() -> None:
    assert Scale(0, 1, 0, 100).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Scale(17, 93, 0, 1).ticks() == [20, 40, 60, 80]
    assert Scale(1e-4, 1, 0, 1, log=True).ticks() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert Scale(0, 10, 100, 0)(5) == 50
    assert Scale(3, 3, 0, 10)(3) == 5


def test_what_cannot_be_drawn_is_left_out() -> None:
    nan, inf = float("nan"), float("inf")
    assert lines([Series("a", 0, [(1, nan), (inf, 2)])], "x", "y") == ""
    assert lines([Series("a", 0, [(1, 0.0)])], "x", "y", log_y=True) == ""
    assert scatter([], "x", "y") == dots([DotRow("a", 0, [nan], nan, nan)], "x") == ""
    assert "nan" not in lines([Series("a<b", 0, [(1, 1), (2, nan), (3, 2)])], "x", "y")
    assert "a&lt;b" in lines([Series("a<b", 0, [(1, 1), (3, 2)])], "x", "y")
    one = dots([DotRow("a", 0, [1.0], 1.0, nan, "n = 1: no interval")], "x")
    assert 'class="ci' not in one
    assert "n = 1: no interval" in one


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [Mark(1, 10, "a", 0), Mark(2, 9, "b", 0), Mark(2, 20, "c", 0), Mark(3, 20, "d", 0), Mark(9, 21, "e", 0)]
    assert [mark.name for mark in pareto(points)] == ["a", "c", "e"]


def test_a_correlation_has_an_interval_or_says_why_not() -> None:
    """r = 8 / sqrt(10 x 8.8); tanh(atanh(r) -+ 1.96 / sqrt(5 - 3))."""
    assert correlation([1, 2, 3, 4, 5], [2, 4, 5, 4, 6]).startswith("Pearson r = 0.85 [-0.12, 0.99]")
    assert correlation([1, 2], [1, 2]) == "n = 2: too few for a correlation"


def test_curves_are_thinned_evenly_and_keep_their_end() -> None:
    kept = thinned([{"step": i} for i in range(1001)], most=100)
    assert len(kept) <= 102
    assert (kept[0]["step"], kept[-1]["step"]) == (0, 1000)
    assert thinned([]) == []


def test_a_tail_of_a_large_log_is_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x" * 200_000 + "\nlast but one\nlast\r\n")
    assert tail(tmp_path / "log", 2) == "last but one\nlast"


# --- the command and the browser ------------------------------------------------------------------------------------


def test_the_command_writes_the_file(records: Records, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(records.root), "--out", str(tmp_path / "r.html"), "--no-views"])
    Page((tmp_path / "r.html").read_text())
    assert "leaderboards" in capsys.readouterr().out


@pytest.mark.long
def test_a_browser_sorts_and_filters(records: Records, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    script = """<script>{
        const texts = q => [...document.querySelectorAll(q)].map(e => e.textContent);
        document.querySelectorAll("#leaderboards th.num")[0].click();
        const down = texts("#leaderboards table:first-of-type tbody tr td:first-child")[0];
        document.querySelectorAll("#leaderboards th.num")[0].click();
        const up = texts("#leaderboards table:first-of-type tbody tr td:first-child")[0];
        const filter = document.getElementById("filter");
        filter.value = "cwrgp linear"; filter.dispatchEvent(new Event("input"));
        const left = [...document.querySelectorAll("#leaderboards tr[data-f]:not(.hidden)")].length;
        document.title = JSON.stringify([down, up, left]);
    }</script></body>"""
    file = tmp_path / "page.html"
    file.write_text(report(records).replace("</body>", script))
    shown = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.search(r"<title>(.*?)</title>", shown)
    assert found is not None
    down, up, left = json.loads(found[1])
    assert (down.split("epochs")[0], up.split("epochs")[0]) == ("sample/intl20 ", "sample/random20 ")
    assert left == 1
