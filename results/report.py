"""python results/report.py [RUNS ...]: all results as one HTML file, which fetches nothing and opens from disk.

Leaderboards with the pretrainings as dots, comparisons, learning curves, spectra over time, classification against
detection, cost, the tables in the papers' layouts, and of each run its command, differences, log and pictures.
With --serve the same page is served on this machine and renewed while runs write.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from results.aggregate import CACHE, RESULTS, published_roots
from whitebench.errors import UserError, run_command
from whitebench.files import write_atomically
from whitebench.records import runs_root

OUT = RESULTS / "report.html"
PORT = 8321


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    missing = [path for path in options.runs if not path.is_dir()]
    if missing:
        raise UserError(f"{missing[0]}: no such folder of runs")
    roots = [*(options.runs or [runs_root()]), *(published_roots(RESULTS) if options.with_published else [])]
    if options.serve:
        from results.page.page import Options
        from results.page.server import serve

        live = Options(options.most, views=False, live=True, published=options.with_published)
        serve(roots, options.host, options.port, live)
    else:
        _write(roots, options)


def _write(roots: Sequence[Path], options: argparse.Namespace) -> None:
    from results.page.page import Options
    from results.page.snapshot import build_page, read_runs

    out = _writable(options.out)
    snapshot = read_runs(roots, RESULTS / CACHE)
    if not snapshot.has_runs and not options.with_published:
        raise UserError(f"no evaluation has ended in {', '.join(map(str, roots))}: there is nothing to report yet")
    content = build_page(snapshot, Options(options.most, options.views, published=options.with_published))
    try:
        write_atomically(out, content)
    except OSError as error:
        raise UserError(f"{options.out}: cannot be written ({error.strerror})") from error
    boards = len(snapshot.tables.leaderboards)
    print(f"{os.path.relpath(options.out)}: {boards} leaderboards, {len(content) / 1e6:.1f} MB")


def _writable(out: Path) -> Path:
    """The file behind `out`, links followed; checked before the work, not after it.

    Raises:
        UserError: it is a folder or a device, or its folder cannot be written to.
    """
    try:
        path = out.resolve()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a circle of links
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(out)[:80]}: cannot be written ({reason})") from error
    if path.is_dir():
        raise UserError(f"{out}: is a folder; name a file, e.g. {out / 'report.html'}")
    if exists and not path.is_file():
        raise UserError(f"{out}: is not a regular file")
    folder = next((parent for parent in path.parents if parent.exists()), Path("/"))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{out}: cannot be written ({folder} is not a writable folder)")
    return path


def _count(text: str) -> int:
    """For argparse's `type=`: a whole number that is not negative."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of pretrainings")
    return int(text)


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
        "--most", type=_count, default=100, metavar="N", help="pretrainings shown in full (default: %(default)s)"
    )
    parser.add_argument(
        "--no-views", dest="views", action="store_false", help="without the pictures of augmented views"
    )
    parser.add_argument(
        "--with-published", action="store_true", help="also the suite's published records and the papers' claims"
    )
    live = parser.add_argument_group("live", "the same page, served and renewed while runs write")
    live.add_argument("--serve", action="store_true", help="serve the page instead of writing it; Ctrl-C ends it")
    live.add_argument("--port", type=int, default=PORT, help="default: %(default)s; 0 takes a free one")
    live.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
