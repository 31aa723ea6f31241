"""The code that queued jobs run: a copy taken at launch and named by its hash, independent of later edits."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from whitebench.environment import SNAPSHOT, environment
from whitebench.errors import UserError
from whitebench.files import write_json
from whitebench.hashing import file_hash

ROOT = Path(__file__).parents[1]
PACKAGES = ("whitebench", "pretrain", "transfer", "slurm", "results")
SUFFIXES = {".py", ".yaml", ".html", ".css", ".js"}
DATA = ("results/inputs/published.csv", "results/inputs/equal_code.csv")
DERIVED = ("results/report.html", "results/tables/", "results/records/")
"""Written by runs: they are not part of the code, which would otherwise change with each result."""


def take_snapshot(into: Path, root: Path = ROOT) -> Path:
    """A folder below `into` with the code of the checkout `root`, for PYTHONPATH; equal code is copied once.

    It also records which commit the code is and whether it differs from it, for the runs' records.

    Raises:
        UserError: the disk has no space for it; a partial copy is removed.
    """
    path = snapshot_path(into, root)
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            _copy(root, temporary, path.name)
            os.rename(temporary, path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not path.exists():  # else another launcher was faster
                raise UserError(f"{into}: the code for the jobs cannot be copied there: {error.strerror}") from error
    return path


def _copy(root: Path, target: Path, name: str) -> None:
    for path in _files(root):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target / path)
    state = environment()
    write_json(target / SNAPSHOT, {"code": name, "git": state["git"], "dirty": state["dirty"]})


def snapshot_path(into: Path, root: Path = ROOT) -> Path:
    """The folder in which `take_snapshot` puts the code as it is now, whether it has been taken or not."""
    listing = "".join(f"{path} {file_hash(root / path)}\n" for path in sorted(_files(root)))
    return into.absolute() / hashlib.sha256(listing.encode()).hexdigest()[:16]


def job_path(code: Path, python_path: str | None) -> dict[str, str]:
    """Variables that put the snapshot before the checkout on a job's module path, wherever the job starts."""
    return {"PYTHONPATH": os.pathsep.join([str(code), *([python_path] if python_path else [])]), "PYTHONSAFEPATH": "1"}


def _files(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            relative = path.relative_to(root)
            if path.suffix in SUFFIXES and not relative.as_posix().startswith(DERIVED) and path.is_file():
                yield relative
    yield from (Path(path) for path in DATA)
