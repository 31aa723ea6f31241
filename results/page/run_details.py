"""What the page shows of single runs, from their folders: curve, spectra, log, pictures, difference to the recipe."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from results.leaderboards import recipe_papers as recipes
from results.leaderboards.collect import read_proven
from results.leaderboards.repeat_command import repeat
from results.leaderboards.run_table import PRETRAIN, flat
from results.page.pictures import Picture, PictureBudget
from results.page.run_files import Lines, Unreadable, json_lines, tail
from whitebench.errors import UserError
from whitebench.files import SPECTRA
from whitebench.hashing import canonical
from whitebench.records import METRICS, RECORD, Record

ATTEMPTS, ERROR = "attempts.jsonl", "error.txt"
LOG_LINES = 40
SWEEPS, LAUNCHES = "sweeps", "launches"

Difference = list[tuple[str, str, str]]
"""(key, the recipe's value, the run's)."""


@dataclass
class Detail:
    record: Record
    folder: Path | None
    """None for a published record, which has no folder."""
    curve: Lines = field(default_factory=list)
    spectra: Lines = field(default_factory=list)
    log: str = ""
    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Lines about files that could not be read."""
    modified: float | None = None
    """When the last line of the curve was written, seconds since 1970."""

    @property
    def command(self) -> str:
        return repeat(self.record) if isinstance(self.record.command, str) else ""

    @property
    def method(self) -> str:
        method = self.record.config.get("method")
        name = method.get("name") if isinstance(method, dict) else None
        return str(name or self.record.cell.get("method") or "unknown")

    @property
    def recipe(self) -> str:
        return str(self.record.cell.get("recipe") or self.record.id)

    @property
    def title(self) -> str:
        return f"{self.recipe}, seed {self.record.config.get('seed', 'unknown')}"

    @property
    def why_no_curve(self) -> str:
        if self.curve:
            return ""
        if self.folder is None:
            return "a published record, without its folder"
        about_curve = [problem for problem in self.problems if problem.startswith(METRICS)]
        return about_curve[0] if about_curve else f"no line in {METRICS} yet"


def read_details(paths: Sequence[Path], budget: PictureBudget | None = None) -> list[Detail]:
    """Details of `run.json` files that were sound before; one that has changed since is left out."""
    budget = budget or PictureBudget()
    details = []
    for path in paths:
        try:
            record = read_proven(path)
        except UserError:
            continue
        details.append(_detail(record, path.parent, budget) if path.name == RECORD else Detail(record, None))
    return details


def _detail(record: Record, folder: Path, budget: PictureBudget) -> Detail:
    detail = Detail(record, folder)
    detail.curve = _lines(detail, METRICS)
    detail.spectra = _lines(detail, SPECTRA) if record.stage == PRETRAIN else []
    detail.log = _log(detail, folder)
    detail.pictures = budget.of_run(folder)
    try:
        detail.modified = (folder / METRICS).stat().st_mtime
    except OSError:
        detail.modified = None
    return detail


def _lines(detail: Detail, name: str) -> Lines:
    """The objects of a file of JSON lines of the run; what is wrong with it goes to the detail's problems."""
    assert detail.folder is not None
    try:
        lines, problem = json_lines(detail.folder / name, detail.folder)
    except FileNotFoundError:
        return []
    except Unreadable as error:
        lines, problem = [], f"{name}: {error}"
    detail.problems += [problem] if problem else []
    return lines


def _log(detail: Detail, folder: Path) -> str:
    """The end of the last start's log, and of the error, where there are any."""
    attempts = _lines(detail, ATTEMPTS)
    log = attempts[-1].get("log") if attempts else None
    sources = [(folder / ERROR, folder)]
    if isinstance(log, str) and log:
        sources.insert(0, _log_source(log, folder))
    parts = []
    for path, allowed in sources:
        try:
            parts.append(tail(path, [allowed], LOG_LINES))
        except FileNotFoundError:
            continue
        except Unreadable as error:
            detail.problems.append(f"{path.name[:60]}: {error}")
    return _without_path("\n".join(parts), log if isinstance(log, str) else "")


def _log_source(log: str, folder: Path) -> tuple[Path, Path]:
    """Where a log lies now, and the folder that it must not leave: its launch's, else the run's own.

    Runs may have been moved or copied as a whole, so a launch's folder is looked for next to the stages' folders.
    """
    parts = Path(log).parts
    if SWEEPS in parts:
        launch = parts[parts.index(SWEEPS) :]  # sweeps/<sweep>/launches/<time>/<log>
        if len(launch) > 4 and launch[2] == LAUNCHES and ".." not in launch:
            runs = folder.parents[1]
            home = runs.joinpath(*launch[:4])
            if home.resolve().is_relative_to(runs.resolve()):  # not a link to another folder of this machine
                return runs.joinpath(*launch), home
    return Path(log), folder


def _without_path(text: str, log: str) -> str:
    """A log as it would read in the checkout: readers of the page do not learn where that lies on a machine."""
    runs = next((parent.parent for parent in Path(log).parents if parent.name == SWEEPS), None)
    if runs is None or runs == runs.parent:
        return text
    return text.replace(str(runs), "runs").replace(f"{runs.parent}{os.sep}", "")


def difference(record: Record) -> Difference | str:
    """Where a pretraining's config differs from its recipe's now; a text where that recipe does not exist.

    "auto" in a recipe is what the machine chose, and no difference; nor is the seed.
    """
    base = _recipe(str(record.cell.get("recipe")))
    if isinstance(base, str):
        return base
    config = flat(record.config)
    keys = [key for key in sorted(config.keys() | base.keys()) if key not in ("seed", "data_hash")]
    pairs = [(key, base.get(key, "-"), config.get(key, "-")) for key in keys]
    return [(key, expected, value) for key, expected, value in pairs if expected not in (value, "auto")]


@cache
def _recipe(name: str) -> dict[str, str] | str:
    """The identity of the suite's recipe, flat; imports torch, because a recipe is complete only with its method."""
    if name not in recipes.names():
        return f"the suite has no recipe '{name}'"
    from pretrain.recipe import load

    try:
        return flat(canonical(load(name).identity()))
    except UserError as error:
        return f"the recipe cannot be read any more: {error}"
