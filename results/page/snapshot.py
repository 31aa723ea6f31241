"""One reading of the run folders: tables and unfinished runs, and the page that is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from results.leaderboards.cache import Cache
from results.leaderboards.collect import collect
from results.leaderboards.leaderboard import Tables, tabulate
from results.page.page import Options, page, unfinished_runs


@dataclass(frozen=True)
class Snapshot:
    tables: Tables
    unfinished: list[Path]
    """Records of runs that are running, interrupted or failed."""

    @property
    def has_runs(self) -> bool:
        return bool(len(self.tables.runs) or self.unfinished)


def read_runs(roots: Sequence[Path], cache: Path | None = None) -> Snapshot:
    """The records below those of `roots` that exist; `cache` is a file that saves reading unchanged ones again."""
    collection = collect([root for root in roots if root.is_dir()], Cache(cache))
    return Snapshot(tabulate(collection), unfinished_runs(collection))


def build_page(snapshot: Snapshot, options: Options) -> bytes:
    return page(snapshot.tables, snapshot.unfinished, options).encode()
