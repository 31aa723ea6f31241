"""The code that queued jobs run: a copy taken at launch, named by its hash, whatever becomes of the checkout."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from whitebench.environment import SNAPSHOT, environment
from whitebench.files import write_json
from whitebench.hashing import file_hash

ROOT = Path(__file__).parents[1]
PACKAGES = ("whitebench", "pretrain", "transfer", "slurm", "results")
SUFFIXES = {".py", ".yaml"}
DATA = ("results/inputs/published.csv",)


def take_snapshot(into: Path, root: Path = ROOT) -> Path:
    """A folder below `into` with the code of the checkout `root`, for PYTHONPATH; equal code is copied once.

    It also says of which commit the code is and whether it differs from it, for the records.
    """
    place = snapshot_place(into, root)
    if not place.exists():
        fresh = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        for path in _files(root):
            (fresh / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, fresh / path)
        found = environment()
        write_json(fresh / SNAPSHOT, {"code": place.name, "git": found["git"], "dirty": found["dirty"]})
        try:
            os.rename(fresh, place)
        except OSError:  # another launcher was faster
            shutil.rmtree(fresh)
    return place


def snapshot_place(into: Path, root: Path = ROOT) -> Path:
    """Where `take_snapshot` puts the code as it is now, whether it has been taken or not."""
    listing = "".join(f"{path} {file_hash(root / path)}\n" for path in sorted(_files(root)))
    return into.absolute() / hashlib.sha256(listing.encode()).hexdigest()[:16]


def job_path(code: Path, own: str | None) -> dict[str, str]:
    """Variables by which a job finds the snapshot before the checkout, though it starts in the launch's folder."""
    return {"PYTHONPATH": os.pathsep.join([str(code), *([own] if own else [])]), "PYTHONSAFEPATH": "1"}


def _files(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            if path.suffix in SUFFIXES and path.is_file():
                yield path.relative_to(root)
    yield from (Path(path) for path in DATA)
