"""python results/export.py RUN: a pretraining as a bundle that others can use: weights, model card, numbers, records.

<out>/<id>/backbone.safetensors   torchvision's names, no head; metadata under the key `whitebench`
           README.md              the model card: how to load it, its numbers, how it was made, what to doubt
           record.json            the pretraining's record
           evaluations/*.json     the records of its evaluations
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from results.leaderboards.collect import Collection, collect, read_proven
from results.leaderboards.run_table import PRETRAIN
from results.page.model_card import model_card
from whitebench.errors import UserError, nearest, run_command
from whitebench.files import BACKBONE, write_atomically
from whitebench.hashing import file_hash
from whitebench.records import RECORD, Record, runs_root


def export(run: str, roots: Sequence[Path], out: Path) -> Path:
    """Writes the bundle of a pretraining, named by its id or folder, to `out/<id>`; returns that.

    Raises:
        UserError: the pretraining does not exist, it is not done, or its weights are not those that its record names.
    """
    collection = collect([root for root in roots if root.is_dir()])
    path = _find(run, collection)
    record = read_proven(path)
    weights = _weights(path.parent, record)
    evaluations = [
        read_proven(summary.path)
        for summary in sorted(collection.evaluations, key=lambda summary: (summary.stage, summary.id))
        if summary.facts["parent"] == record.id and summary.status == "done"
    ]
    from results.leaderboards.leaderboard import tabulate
    from results.leaderboards.write import short_name

    card = model_card(record, evaluations, tabulate(collection))
    bundle = out / short_name(record.id)
    write_atomically(bundle / BACKBONE, weights.read_bytes())
    write_atomically(bundle / "record.json", path.read_bytes())
    for evaluation in evaluations:
        source = collection.summaries[evaluation.stage, evaluation.id].path
        name = short_name(f"{evaluation.stage}-{evaluation.id}")
        write_atomically(bundle / "evaluations" / f"{name}.json", source.read_bytes())
    write_atomically(bundle / "README.md", card.encode(errors="replace"))
    return bundle


def _find(run: str, collection: Collection) -> Path:
    """The `run.json` of a pretraining."""
    folder = Path(run)
    if (folder / RECORD).is_file():
        return folder / RECORD
    summary = collection.summaries.get((PRETRAIN, folder.name))
    if summary is None:
        ids = [name for stage, name in collection.summaries if stage == PRETRAIN]
        raise UserError(f"{run}: no pretraining of that name{nearest(folder.name, ids)}")
    return summary.path


def _weights(folder: Path, record: Record) -> Path:
    """Its backbone, held against the hash in the record."""
    if record.stage != PRETRAIN:
        raise UserError(f"{record.id}: is of the stage {record.stage}; a bundle is made of a pretraining")
    if record.status != "done":
        raise UserError(f"{record.id}: is {record.status}, not done")
    path = folder / BACKBONE
    if not path.is_file():
        raise UserError(f"{path}: is not there (a published record has no weights); give the folder of the run")
    backbone = record.artifacts.get("backbone") if isinstance(record.artifacts, dict) else None
    if not isinstance(backbone, dict) or file_hash(path) != backbone.get("sha256"):
        raise UserError(f"{path}: is not the file that {RECORD} names: changed since")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python results/export.py",
        description="Bundles a pretraining for upload: backbone.safetensors, a model card with its numbers and the "
        "command that repeats it, and the records.",
    )
    parser.add_argument("run", help="a pretraining's id, or its folder")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="folder of runs (default: $WHITEBENCH_RUNS, or ./runs)"
    )
    parser.add_argument("--out", type=Path, default=Path("exports"), metavar="DIR", help="default: %(default)s")
    options = parser.parse_args(arguments)
    root = options.runs or (Path(options.run).resolve().parent.parent if Path(options.run).is_dir() else runs_root())
    bundle = export(options.run, [root], options.out)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    print(f"{os.path.relpath(bundle)}: {size / 1e6:.1f} MB, ready for upload")


if __name__ == "__main__":
    run_command(main)
