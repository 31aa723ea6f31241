"""python results/aggregate.py [RUNS ...]: from run folders to tables.

`runs.csv` has one row per evaluation of one seed; from it there is a leaderboard per dataset and protocol.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from results.leaderboards.run_table import STAGES
from whitebench.errors import UserError, run_command
from whitebench.records import runs_root

if TYPE_CHECKING:
    from results.leaderboards.leaderboard import Tables

RESULTS = Path(__file__).parent
RECORDS, CACHE = "records", ".collected.json"


def aggregate(runs: Sequence[Path], out: Path = RESULTS, with_published: bool = False) -> "Tables":
    """Writes the tables of all records below `runs`, and where wanted of those published in `out/records`, to `out`."""
    from results.leaderboards.write import write_tables

    tables = tables_of([*runs, *(published_roots(out) if with_published else [])], out / CACHE)
    write_tables(tables, out)
    return tables


def published_roots(out: Path) -> list[Path]:
    """The folders of published records behind the leaderboards; those of the claims (`records/claims`) are apart."""
    return [out / RECORDS / stage for stage in STAGES]


def tables_of(roots: Sequence[Path], cache: Path | None = None) -> "Tables":
    """The tables of all records below those of `roots` that exist; earlier roots go before later ones.

    `cache` is a file in which what was read is kept, so that the next time only changed records are read.
    """
    from results.leaderboards.cache import Cache
    from results.leaderboards.collect import collect
    from results.leaderboards.leaderboard import tabulate

    return tabulate(collect([root for root in roots if root.is_dir()], Cache(cache)))


def render(tables: "Tables", colour: bool = False, width: int = 200) -> str:
    """The tables as text, for a terminal (`colour`) or a log."""
    from results.leaderboards.console import render

    return render(tables, colour, width)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.runs and (options.check or options.rebuild):
        raise UserError(
            f"{options.runs[0]}: --check and --rebuild take no folder of runs: they read OUT/{RECORDS} alone"
        )
    if options.check:
        return _check(options.out)
    if options.rebuild:
        return _rebuild(options.out)
    missing = [path for path in options.runs if not path.is_dir()]
    if missing:
        raise UserError(f"{missing[0]}: no such folder of runs")
    tables = aggregate(options.runs or [runs_root()], options.out, options.with_published or options.publish)
    if options.publish:
        from results.leaderboards.write import publish

        print(f"{publish(tables.sources, options.out / RECORDS)} records published in {options.out / RECORDS}")
    if not options.quiet:
        terminal = sys.stdout.isatty()
        print(render(tables, terminal, os.get_terminal_size().columns if terminal else 200), end="")
        written = f"runs.csv and {len(tables.leaderboards)} leaderboards in {os.path.relpath(options.out)}"
        print(f"written: {written}; python results/report.py writes them as one page")
    return 0


def _check(out: Path) -> int:
    from results.leaderboards.write import first_difference

    tables = tables_of(published_roots(out))
    difference = first_difference(tables, out)
    if difference:
        print(f"error: {difference}", file=sys.stderr)
    if tables.stale:
        for line in tables.stale:
            print(f"stale: {line}", file=sys.stderr)
        count = len(tables.stale)
        print(f"error: {count} published rows are stale: run them again, or remove their records", file=sys.stderr)
    if difference or tables.stale:
        return 1
    print(f"{os.path.relpath(out)}: the tables are what {RECORDS}/ gives")
    return 0


def _rebuild(out: Path) -> int:
    from results.leaderboards.write import write_contents

    tables = tables_of(published_roots(out))
    write_contents(tables, out)
    print(f"{os.path.relpath(out)}: {len(tables.runs)} evaluations, {len(tables.leaderboards)} leaderboards")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python results/aggregate.py",
        description="Reads the records of runs and writes runs.csv (one row per evaluation of one seed) and "
        "leaderboard_<dataset>_<stage>-<protocol>.csv (n, mean, sd, 95 % confidence interval, cost, published value). "
        "n counts independent pretrainings; comparisons.csv says which differences are significant. Records that "
        "cannot be used are named and left out.",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs (default: $WHITEBENCH_RUNS, or ./runs)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="where the tables go (default: the suite's folder results)"
    )
    parser.add_argument("--quiet", action="store_true", help="write the tables, print none")
    parser.add_argument("--with-published", action="store_true", help="also the suite's published records, OUT/records")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--publish", action="store_true", help="add the records of RUNS to OUT/records, and write the tables of both"
    )
    mode.add_argument("--rebuild", action="store_true", help="write the tables of OUT/records alone")
    mode.add_argument("--check", action="store_true", help="fail if OUT's tables are not what OUT/records gives")
    return parser


if __name__ == "__main__":
    run_command(main)
