"""python results/report.py [RUNS ...]: all results as one HTML file, which fetches nothing and opens from disk.

Leaderboards with the pretrainings as dots, comparisons, learning curves, spectra over time, classification against
detection, cost, the tables in the papers' layouts, and of each run its command, differences, log and pictures.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from results.aggregate import CACHE, RECORDS, RESULTS, tables_of
from whitebench.errors import UserError, run_command
from whitebench.files import write_atomically
from whitebench.records import runs_root

OUT = RESULTS / "report.html"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    missing = [path for path in options.runs if not path.is_dir()]
    if missing:
        raise UserError(f"{missing[0]}: no such folder of runs")
    from results.page.page import page

    roots = options.runs or [runs_root()]
    tables = tables_of([*roots, RESULTS / RECORDS], RESULTS / CACHE)
    if tables.runs.empty:
        raise UserError(f"no evaluation has ended in {', '.join(map(str, roots))}: there is nothing to report yet")
    content = page(tables, options.most, options.views).encode()
    write_atomically(options.out, content)
    print(f"{os.path.relpath(options.out)}: {len(tables.leaderboards)} leaderboards, {len(content) / 1e6:.1f} MB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python results/report.py",
        description="Writes all results as one HTML file that fetches nothing: send it, or open it from disk.",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs (default: $WHITEBENCH_RUNS, or ./runs)")
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="FILE", help="default: report.html in the suite's results"
    )
    parser.add_argument(
        "--most", type=int, default=100, metavar="N", help="pretrainings shown in full (default: %(default)s)"
    )
    parser.add_argument(
        "--no-views", dest="views", action="store_false", help="without the pictures of augmented views"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
