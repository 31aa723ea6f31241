"""One reading of the run folders: tables and other runs, and the page that is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from results.leaderboards.cache import Cache
from results.leaderboards.collect import collect
from results.leaderboards.leaderboard import Tables, tabulate
from results.page.page import Options, other_runs, page


@dataclass(frozen=True)
class Snapshot:
    tables: Tables
    others: list[Path]
    """Records that are in no table, or of runs that have not ended well."""

    @property
    def has_runs(self) -> bool:
        return bool(len(self.tables.runs) or self.others)


def read_runs(roots: Sequence[Path], cache: Path | None = None) -> Snapshot:
    """The records below those of `roots` that exist; `cache` is a file that saves reading unchanged ones again."""
    collection = collect([root for root in roots if root.is_dir()], Cache(cache))
    tables = tabulate(collection)
    return Snapshot(tables, other_runs(collection, tables))


def build_page(snapshot: Snapshot, options: Options) -> bytes:
    return page(snapshot.tables, snapshot.others, options).encode()
