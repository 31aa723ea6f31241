"""The page as a reader has it: drawn, filtered, sorted and linked in Chromium, at three widths, light and dark."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from results.page.page import Options
from results.page.snapshot import build_page, read_runs
from tests.support.browser import Browser, chromium
from tests.support.report_runs import history, sample_runs
from tests.support.report_server import serving

METHODS = Path(__file__).parents[2] / "pretrain" / "methods"
SIZES = [(1400, False), (1400, True), (800, False), (390, False), (390, True)]
SECTIONS = ("leaderboards", "across", "curves", "spectra", "quality", "transfer", "cost", "runs")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("chromium is not installed")
    with Browser(program) as running:
        yield running


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of all methods, with an odd name among them."""
    folder = tmp_path_factory.mktemp("report")
    methods = [path.stem for path in sorted(METHODS.glob("[a-z]*.py"))]
    records = sample_runs(
        folder / "runs", {method: 20 + 70 * i / len(methods) for i, method in enumerate(methods)}, seeds=2
    )
    evil = "=<img src=x onerror=document.title='run'>" + "n" * 300
    parent = records.pretrain("intl", 9, recipe=evil)
    history(records.root / "pretrain" / parent)
    records.evaluate(parent, {"top1": 99.5})
    (folder / "page.html").write_bytes(build_page(read_runs([records.root]), Options(views=False)))
    return (folder / "page.html").as_uri()


@pytest.fixture(autouse=True)
def no_errors(browser: Browser) -> Iterator[None]:
    browser.errors.clear()
    yield
    assert browser.errors == []


def visible(browser: Browser, selector: str) -> list[str]:
    """Texts of the elements that are not hidden."""
    texts: list[str] = browser.run(
        f"[...document.querySelectorAll({selector!r})].filter(e => !e.closest('.hidden') && !e.hidden)"
        ".map(e => e.textContent.trim())"
    )
    return texts


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_charts_are_drawn_and_readable_at_every_width(
    browser: Browser, url: str, tmp_path: Path, width: int, dark: bool
) -> None:
    browser.open(url, width, 1000, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    for name in SECTIONS:
        browser.run(f"document.getElementById('{name}').scrollIntoView()")
        browser.settle()
        browser.screenshot(tmp_path / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    sizes = browser.run(
        "[...new Set([...document.querySelectorAll('.chart svg text, svg.scale text')].filter(e => e.textContent)"
        ".map(e => parseFloat(getComputedStyle(e).fontSize) * e.getCTM().a))]"
    )
    assert sizes
    assert all(9 <= size <= 14 for size in sizes)
    assert browser.run("document.querySelectorAll('.chart svg').length") > 8
    background, ink = browser.run(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (brightness(background) < brightness(ink)) is dark


def brightness(colour: str) -> int:
    return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])


def test_every_method_has_a_mark_of_its_own(browser: Browser, url: str) -> None:
    browser.open(url)
    marks = browser.run(
        "[...document.querySelectorAll('.legend use')].map(e => e.getAttribute('href') + getComputedStyle(e).fill)"
    )
    assert len(marks) >= 18
    assert len(set(marks)) == len(marks)


def test_dots_stand_in_the_row_of_their_experiment(browser: Browser, url: str) -> None:
    browser.open(url)
    rows = browser.run(
        "[...document.querySelectorAll('#leaderboards tbody tr')].map(row => { const r = row.getBoundingClientRect();"
        "return [...row.querySelectorAll('.dot')].map(e => e.getBoundingClientRect())"
        ".map(d => d.top >= r.top && d.bottom <= r.bottom && d.width > 4) })"
    )
    assert all(rows)
    assert all(inside for row in rows for inside in row)


def test_the_filter_narrows_rows_and_charts_and_is_in_the_address(browser: Browser, url: str) -> None:
    browser.open(f"{url}#curves")
    browser.settle()
    lines = "document.querySelectorAll('[data-choice=\"curve\"]:not(.hidden) .chart .mark-line path').length"
    before = browser.run(lines)
    browser.run("filter.value = 'sample/simclr'; filter.dispatchEvent(new Event('input'))")
    browser.settle(600)
    assert before > 30
    assert browser.run(lines) == 2
    assert len(visible(browser, "#runs > details")) == 2
    address = browser.run("location.href")
    browser.open(address)
    assert browser.run("filter.value") == "sample/simclr"
    assert len(visible(browser, "#runs > details")) == 2


def test_a_heading_sorts_and_the_address_keeps_it(browser: Browser, url: str) -> None:
    first = "document.querySelector('#leaderboards tbody tr').cells[2].dataset.value"
    browser.open(url)
    browser.run("document.querySelector('#leaderboards th[data-key=top1]').click()")
    assert browser.run(first) == "99.5"
    browser.run("document.querySelector('#leaderboards th[data-key=top1]').click()")
    lowest = browser.run(first)
    assert float(lowest) < 25
    browser.open(browser.run("location.href"))
    assert browser.run(first) == lowest


def test_a_row_leads_to_its_runs_and_its_address_to_the_row(browser: Browser, url: str) -> None:
    browser.open(url)
    row = "[...document.querySelectorAll('#leaderboards tbody tr')].find(r => r.textContent.includes('sample/byol'))"
    browser.run(f"{row}.querySelector('.runs').click()")
    browser.settle()
    runs = visible(browser, "#runs > details > summary")
    assert len(runs) == 2
    assert all(text.startswith("sample/byol, seed") for text in runs)
    browser.open(url + browser.run(f"{row}.querySelector('.permalink').getAttribute('href')"))
    assert "sample/byol" in browser.run("document.querySelector('tr.target').textContent")
    top = browser.run("document.querySelector('tr.target').getBoundingClientRect().top")
    assert 0 < top < 900


def test_chosen_columns_are_saved_as_csv_without_formulas(browser: Browser, url: str) -> None:
    browser.open(url)
    table = "document.querySelector('#leaderboards [data-table]')"
    browser.run(f"{table}.querySelector('.columns input[value=cost]').click()")
    text = browser.run(f"csvOf({table})")
    head, *rows = csv.reader(io.StringIO(text))
    assert "cost" not in head
    assert head[:2] == ["experiment", "top-1, %"]
    assert any(row[0].startswith("'=<img src=x") for row in rows)
    assert all(float(row[1]) > 0 for row in rows)
    for _ in range(2):
        assert browser.run(f"getComputedStyle({table}.querySelector('th[data-key=cost]')).display") == "none"
        browser.open(browser.run("location.href"))


def test_a_wide_table_keeps_its_first_column_and_says_that_it_scrolls(browser: Browser, url: str) -> None:
    browser.open(url, 390, 844)
    table = "document.querySelector('#leaderboards [data-table]')"
    assert browser.run(f"!{table}.querySelector('.scroll-hint').hidden")
    browser.run(f"{table}.querySelector('.scroll').scrollLeft = 300")
    left = browser.run(f"{table}.querySelector('tbody td').getBoundingClientRect().left")
    assert 0 <= left < 40
    browser.open(url, 1400, 900)
    assert browser.run(f"{table}.querySelector('.scroll-hint').hidden")


def test_values_appear_on_hover(browser: Browser, url: str) -> None:
    browser.open(f"{url}#cost")
    browser.settle(800)
    x, y = browser.run(
        "(e => [e.left + e.width / 2, e.top + e.height / 2])"
        "(document.querySelector('#cost .mark-symbol path').getBoundingClientRect())"
    )
    for step in (3, 0):
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y)
        browser.settle(150)
    tooltip = browser.run("document.getElementById('vg-tooltip-element').textContent")
    assert "sample/" in tooltip


def test_the_button_changes_the_theme(browser: Browser, url: str) -> None:
    browser.open(url)
    colour = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(colour)
    browser.run("theme.click()")
    assert browser.run(colour) != light
    assert "theme=dark" in browser.run("location.hash")


def test_the_live_page_takes_in_new_runs_and_keeps_what_is_open(browser: Browser, tmp_path: Path) -> None:
    records = sample_runs(tmp_path / "runs", {"intl": 80.0}, seeds=1)
    options = Options(views=False, live=True)
    with serving([records.root], lambda: build_page(read_runs([records.root]), options)) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.run("document.querySelector('#runs > details').open = true")
        new = records.pretrain("byol", 3, status="running")
        history(records.root / "pretrain" / new)
        browser.run(
            f"new Promise(done => {{ const look = () => document.getElementById('{new}') ? done() :"
            " setTimeout(look, 100); look(); })"
        )
        assert browser.run("document.querySelectorAll('#runs > details[open]').length") == 1
        assert "6 of 6" in browser.run("document.getElementById('progress').textContent")
        browser.call("Page.navigate", url="about:blank")
