"""python -m pretrain.data: writes datasets from people's images, checks them, and shows the views a recipe makes."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whitebench.errors import UserError, run_command

if TYPE_CHECKING:
    from pretrain.data.betons.manifest import Manifest, SplitRecord

EPILOG = """examples:
  python -m pretrain.data sample                                   the built-in sample
  python -m pretrain.data write /data/imagenet imagenet1k          original JPEG bytes
  python -m pretrain.data write /data/imagenet in1k-500 --max-side 500 --quality 90
  python -m pretrain.data write cifar-10-python.tar.gz cifar10     as its site ships it
  python -m pretrain.data subset imagenet1k imagenet100 --classes imagenet100.txt
  python -m pretrain.data subset cifar10 cifar10-400 --per-class 400
  python -m pretrain.data show sample/intl --out views.png
  python -m pretrain.data preflight imagenet1k/intl-100ep machine.workers=8
Datasets are folders of $WHITEBENCH_DATA (./data if that is not set)."""

WRITE = """Writes SOURCE as the dataset DATASET: a beton (FFCV's file format) per split, and a manifest.

SOURCE is one of
  a folder <split>/<class>/<image>, or <class>/<image> for a training split alone (an ImageFolder);
  a folder whose validation images are labelled by a file: Tiny-ImageNet's val_annotations.txt and Kaggle's
    LOC_val_solution.csv are found by themselves, others are named by --labels;
  a flat folder of photos without labels (for pretraining; evaluations need labels);
  a tar archive of any of these, or of one tar per class (ILSVRC2012_img_train.tar);
  Parquet files of images, as Hugging Face's datasets have them;
  CIFAR-10, CIFAR-100 or STL-10 as their sites ship them. STL-10's unlabelled images join the training split.

JPEGs keep their bytes. Images of lossless formats (PNG, BMP, ...) of up to 256 x 256 pixels are stored as pixels,
larger ones, and JPEGs that are not RGB (CMYK), become JPEGs, with loss; --raw stores the exact pixels of all. What is
re-encoded or left out is counted, and what is left out is listed in <split>.left_out.txt in the dataset's folder."""

SUBSET = """Writes some classes of a dataset, or some images of each class, as a dataset of their own. ImageNet-100 is
such a subset: its usual list of classes (of CMC) is published as imagenet100.txt in github.com/HobbitLong/CMC. Image
bytes stay as they are."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the arguments name."""
    options = _parser().parse_args(arguments)
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.data",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter
    _add_write(commands.add_parser("write", help="write images as a dataset", description=WRITE, formatter_class=raw))
    _add_subset(commands.add_parser("subset", help="some classes, or some images of each", description=SUBSET))
    verify = commands.add_parser("verify", help="read every image of a dataset and compare with its manifest")
    verify.add_argument("dataset")
    _add_workers(verify)
    verify.set_defaults(run=_verify)
    show = commands.add_parser("show", help="a picture of the views that a recipe makes")
    _add_recipe(show)
    show.add_argument("--out", type=Path, default=Path("views.png"), metavar="FILE.png", help="default: %(default)s")
    show.add_argument("--images", type=_positive, default=8, metavar="N", help="rows; default: %(default)s")
    show.add_argument("--epoch", type=_epoch, default=0, metavar="E", help="of the random draws; default: %(default)s")
    show.set_defaults(run=_show)
    preflight = commands.add_parser("preflight", help="can this host feed the recipe: memory, cores, images per second")
    _add_recipe(preflight)
    preflight.set_defaults(run=_preflight)
    measure = commands.add_parser(
        "measure", help="measure whether colour augmentation is faster in the loader or on the accelerator; store it"
    )
    _add_recipe(measure)
    measure.add_argument("--steps", type=_positive, default=30, metavar="N", help="timed; default: %(default)s")
    measure.add_argument("--force", action="store_true", help="measure again what was measured before")
    measure.set_defaults(run=_measure)
    sample = commands.add_parser("sample", help="make the built-in sample (sample and sample-det)")
    sample.add_argument("--force", action="store_true", help="make it again if it exists")
    sample.set_defaults(run=_sample)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="e.g. sample/intl")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.dataset=mine")


def _add_write(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("dataset", metavar="DATASET", help="name of the new folder in $WHITEBENCH_DATA")
    parser.add_argument(
        "--splits",
        nargs="+",
        metavar="SPLIT=FOLDER",
        help="folders (archives, 'data/train-*.parquet') below SOURCE; default: by name, train and val (or test)",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="SPLIT=FILE",
        help="a split's labels: lines of file and class, separated by comma, tab or space; Kaggle's and "
        "Tiny-ImageNet's files; ILSVRC2012_validation_ground_truth.txt with meta.mat next to it",
    )
    parser.add_argument("--val-fraction", type=_fraction, default=0.0, metavar="F", help="move a share of train to val")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="only the classes named in FILE, one per line")
    parser.add_argument(
        "--max-side", type=_positive, metavar="N", help="reduce images with a longer side above N pixels"
    )
    parser.add_argument(
        "--quality", type=_quality, default=95, metavar="Q", help="of JPEGs that are written; default: %(default)s"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="store the exact pixels of all images (JPEGs decoded by Pillow): faster to read, 5 times as large",
    )
    parser.add_argument(
        "--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="of the channels, in 0..1; default: by name"
    )
    parser.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"))
    parser.add_argument("--skip-bad", action="store_true", help="leave out and list images that do not decode")
    _add_writing(parser)
    parser.set_defaults(run=_write)


def _add_subset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a dataset's name, or an ImageFolder's path")
    parser.add_argument("dataset", metavar="NEW", help="name of the new dataset")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one per line; default: all classes")
    parser.add_argument(
        "--per-class", type=_positive, metavar="N", help="at most N images of each class in every split, for trials"
    )
    _add_writing(parser)
    parser.set_defaults(run=_subset)


def _add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite a dataset that exists")
    _add_workers(parser)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_positive, default=1, metavar="N", help="threads; default: %(default)s")


def _positive(text: str) -> int:
    return _number(text, 1, 1 << 31)


def _epoch(text: str) -> int:
    return _number(text, 0, 1 << 31)


def _quality(text: str) -> int:
    return _number(text, 1, 100)


def _number(text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from error
    if not low <= value <= high:
        limits = f"at least {low}" if high >= 1 << 31 and value < low else f"between {low} and {high}"
        raise argparse.ArgumentTypeError(f"{value}: must be {limits}")
    return value


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from error
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return value


def _write(options: argparse.Namespace) -> None:
    from pretrain.data.betons.images import WriteSettings
    from pretrain.data.betons.progress import progress_display
    from pretrain.data.betons.write import write_dataset

    with progress_display() as progress:
        manifest = write_dataset(
            options.source,
            _folder(options.dataset),
            splits=_pairs("--splits", options.splits, "FOLDER") if options.splits else None,
            labels={name: Path(file) for name, file in _pairs("--labels", options.labels or [], "FILE").items()},
            classes=_class_list(options.classes),
            val_fraction=options.val_fraction,
            settings=WriteSettings(options.max_side, options.quality, options.raw),
            statistics=_statistics(options.mean, options.std),
            workers=options.workers,
            skip_bad=options.skip_bad,
            force=options.force,
            progress=progress,
        )
    _report(manifest)


def _subset(options: argparse.Namespace) -> None:
    from pretrain.data.betons.manifest import dataset_names, read_manifest
    from pretrain.data.betons.progress import progress_display
    from pretrain.data.betons.write import write_dataset, write_subset

    if options.classes is None and options.per_class is None:
        raise UserError("subset: choose classes (--classes FILE), or a number of images of each (--per-class N)")
    folder, classes = _folder(options.dataset), _class_list(options.classes)
    settings = {"per_class": options.per_class, "force": options.force, "workers": options.workers}
    with progress_display() as progress:
        if options.source not in dataset_names() and Path(options.source).exists():
            manifest = write_dataset(Path(options.source), folder, classes=classes, progress=progress, **settings)
        else:
            source = read_manifest(options.source)
            if source.folder.resolve() == folder.resolve():
                raise UserError(f"{folder}: a subset needs a name of its own")
            manifest = write_subset(source, folder, classes, progress=progress, **settings)
    _report(manifest)


def _verify(options: argparse.Namespace) -> None:
    from pretrain.data.betons.progress import progress_display
    from pretrain.data.betons.write import verify_dataset

    with progress_display() as progress:
        _report(verify_dataset(options.dataset, workers=options.workers, progress=progress))


def _show(options: argparse.Namespace) -> None:
    from pretrain.data.show import write_contact_sheet
    from pretrain.recipe import load

    write_contact_sheet(load(options.recipe, options.overrides), options.out, options.images, options.epoch)
    print(f"{options.out}: one image per row, and the views made of it")


def _preflight(options: argparse.Namespace) -> None:
    from pretrain.data.loaders.preflight import run_preflight
    from pretrain.recipe import load

    print(run_preflight(load(options.recipe, options.overrides)).text)


def _measure(options: argparse.Namespace) -> None:
    from pretrain.measure_placement import measure
    from pretrain.recipe import load

    print(measure(load(options.recipe, options.overrides), options.steps, options.force))


def _sample(options: argparse.Namespace) -> None:
    from pretrain.data.sample.write import write_sample
    from whitebench.records import data_root

    write_sample(data_root(), force=options.force)


def _folder(dataset: str) -> Path:
    from whitebench.records import data_root

    if not dataset or dataset.startswith((".", "-")) or "/" in dataset or not dataset.isprintable():
        raise UserError(f"{dataset!r}: a dataset's name is the name of one folder")
    return data_root() / dataset


def _pairs(option: str, texts: Sequence[str], value: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, content = text.partition("=")
        if not name.isidentifier() or not equals or not content:
            raise UserError(f"{option} {text}: looks like train={value}")
        if name in pairs:
            raise UserError(f"{option}: the split '{name}' is listed twice")
        pairs[name] = content
    return pairs


def _statistics(mean: list[float] | None, std: list[float] | None):  # type: ignore[no-untyped-def]
    """Mean and standard deviation of the options; None without them."""
    if (mean is None) != (std is None):
        raise UserError("--mean and --std go together")
    if mean is None or std is None:
        return None
    for name, values, lowest in (("--mean", mean, 0.0), ("--std", std, 1e-6)):
        if not all(math.isfinite(value) and lowest <= value <= 1 for value in values):
            hint = " (divide levels in 0..255 by 255)" if all(1 < value <= 255 for value in values) else ""
            text = " ".join(f"{value:g}" for value in values)
            raise UserError(f"{name} {text}: must be in 0..1{' and above 0' if lowest else ''}{hint}")
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _class_list(path: Path | None) -> list[str] | None:
    from pretrain.data.sources.class_lists import read_class_list

    return read_class_list(path) if path else None


def _report(manifest: "Manifest") -> None:
    from pretrain.data.statistics import STATISTICS

    values = (manifest.mean, manifest.std)
    name = next((name for name, statistics in STATISTICS.items() if statistics == values), None)
    source = f"{name}'s mean and std" if name else "its own mean and std"
    content = f"content {manifest.content_hash[:12]}, normalised by {source}"
    print(f"{manifest.folder}: {len(manifest.classes)} classes, {content}")
    for name, split in manifest.splits.items():
        print(f"  {name}: {'; '.join(_notes(split))}")
    for note in manifest.notes:
        print(f"  note: {note}")


def _notes(split: "SplitRecord") -> list[str]:
    notes = [f"{split.count:,} images"]
    notes += [f"{split.unlabelled:,} without labels"] if split.unlabelled else []
    notes += [f"{count:,} {change}" for change, count in split.changed.items()]
    notes += [f"{split.rotated:,} with an EXIF orientation that is not applied"] if split.rotated else []
    if split.left_out:
        reasons = ", ".join(f"{count:,} left out ({reason})" for reason, count in split.left_out.items())
        notes.append(f"{reasons}: see {split.left_out_list}")
    return notes


if __name__ == "__main__":
    run_command(main)
