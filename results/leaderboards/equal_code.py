"""Changes of source files that changed no number: runs were repeated after each, and gave the same bits.

`results/inputs/equal_code.csv` lists them: the file, its hashes before and after (see `whitebench.code_hash`), the
difference, and what was repeated. Without a line there, a change makes the rows stale that depend on the file.
"""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path

EQUAL_CODE = Path(__file__).parents[1] / "inputs" / "equal_code.csv"


def newest_equal(file: str, version: str) -> str:
    """The hash of the newest version of `file` that gives the numbers of `version`."""
    newer, seen = _newer(EQUAL_CODE), set[str]()
    while version not in seen and (file, version) in newer:
        seen.add(version)
        version = newer[file, version]
    return version


def newest_equals(files: Mapping[str, str]) -> dict[str, str]:
    """`newest_equal` of each file of a record."""
    return {file: newest_equal(file, version) for file, version in files.items()}


@cache
def _newer(path: Path) -> dict[tuple[str, str], str]:
    with open(path, newline="") as lines:
        return {(row["file"], row["before"]): row["after"] for row in csv.DictReader(lines)}
