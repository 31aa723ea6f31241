"""python -m pretrain.data: datasets in, betons out; and a look at the views that a recipe makes of them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whitebench.errors import UserError, run_command

if TYPE_CHECKING:
    from pretrain.data.betons.manifest import Manifest

EPILOG = """examples:
  python -m pretrain.data sample                                   the built-in sample
  python -m pretrain.data write /data/imagenet imagenet1k          original JPEG bytes
  python -m pretrain.data write /data/imagenet in1k-500 --max-side 500 --quality 90
  python -m pretrain.data subset imagenet1k imagenet100 --classes imagenet100.txt
  python -m pretrain.data subset cifar10 cifar10-400 --per-class 400
  python -m pretrain.data show sample/intl --out views.png
  python -m pretrain.data preflight imagenet1k/intl-100ep machine.workers=8
Datasets lie in $WHITEBENCH_DATA (./data where that is not set), one folder each."""


def main(arguments: Sequence[str] | None = None) -> None:
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
    _add_write(commands.add_parser("write", help="an ImageFolder as a dataset"))
    _add_subset(commands.add_parser("subset", help="some classes, or some images of each, as another dataset"))
    verify = commands.add_parser("verify", help="read every image of a dataset and compare with its manifest")
    verify.add_argument("dataset")
    _add_workers(verify)
    verify.set_defaults(run=_verify)
    show = commands.add_parser("show", help="a picture of the views that a recipe makes")
    _add_recipe(show)
    show.add_argument("--out", type=Path, default=Path("views.png"), metavar="FILE.png", help="default: %(default)s")
    show.add_argument("--images", type=int, default=8, metavar="N", help="rows; default: %(default)s")
    show.add_argument("--epoch", type=int, default=0, metavar="E")
    show.set_defaults(run=_show)
    preflight = commands.add_parser("preflight", help="will this machine feed the recipe: memory, cores, images/s")
    _add_recipe(preflight)
    preflight.set_defaults(run=_preflight)
    measure = commands.add_parser("measure", help="where colour runs quicker, loader or accelerator: keeps the answer")
    _add_recipe(measure)
    measure.add_argument("--steps", type=_positive, default=30, metavar="N", help="timed; default: %(default)s")
    measure.add_argument("--force", action="store_true", help="also where it was measured before")
    measure.set_defaults(run=_measure)
    sample = commands.add_parser("sample", help="make the built-in sample (sample and sample-det)")
    sample.add_argument("--force", action="store_true", help="also where it is there already")
    sample.set_defaults(run=_sample)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="e.g. sample/intl")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.dataset=mine")


def _add_write(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes SOURCE, an ImageFolder (<split>/<class>/<image>, or <class>/<image> for a training split alone), as "
        "the dataset DATASET: a beton a split, and a manifest. JPEGs keep their bytes; other formats, and JPEGs that "
        "libjpeg-turbo does not read as RGB (CMYK), are re-encoded and counted."
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("dataset", metavar="DATASET", help="name of the folder below $WHITEBENCH_DATA")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT=FOLDER", help="default: train=train, val=val or val=test")
    parser.add_argument("--val-fraction", type=_fraction, default=0.0, metavar="F", help="split off as val")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="only the classes named in FILE, one a line")
    parser.add_argument(
        "--max-side", type=_positive, metavar="N", help="reduce images with a longer side above N pixels"
    )
    parser.add_argument(
        "--quality", type=_quality, default=95, metavar="Q", help="of what is re-encoded; default: %(default)s"
    )
    parser.add_argument("--raw", action="store_true", help="keep pixels in place of JPEGs: faster, and much larger")
    parser.add_argument(
        "--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="of the channels, in 0..1; default: by name"
    )
    parser.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"))
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count images that do not decode")
    _add_writing(parser)
    parser.set_defaults(run=_write)


def _add_subset(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Splits some classes, or some images of each, off as a dataset of their own. ImageNet-100 is such a subset: "
        "its usual class list (of CMC) is published as imagenet100.txt in github.com/HobbitLong/CMC. Image bytes stay "
        "as they are."
    )
    parser.add_argument("source", metavar="SOURCE", help="a dataset's name, or an ImageFolder's path")
    parser.add_argument("dataset", metavar="NEW", help="name of the new dataset")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names, one a line; default: all classes")
    parser.add_argument(
        "--per-class", type=_positive, metavar="N", help="at most N images of each class in every split, for trials"
    )
    _add_writing(parser)
    parser.set_defaults(run=_subset)


def _add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace a dataset that is there already")
    _add_workers(parser)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_positive, default=1, metavar="N", help="threads; default: %(default)s")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _quality(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError("lies between 1 and 100")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("lies between 0 and 1")
    return value


def _write(options: argparse.Namespace) -> None:
    from pretrain.data.betons.images import WriteSettings
    from pretrain.data.betons.progress import shown_progress
    from pretrain.data.betons.write import write_image_folder

    if (options.mean is None) != (options.std is None):
        raise UserError("--mean and --std go together")
    with shown_progress() as progress:
        manifest = write_image_folder(
            options.source,
            _folder(options.dataset),
            splits=dict(_split(text) for text in options.splits) if options.splits else None,
            classes=_class_list(options.classes) if options.classes else None,
            val_fraction=options.val_fraction,
            settings=WriteSettings(options.max_side, options.quality, options.raw),
            statistics=(tuple(options.mean), tuple(options.std)) if options.mean else None,
            workers=options.workers,
            skip_bad=options.skip_bad,
            force=options.force,
            progress=progress,
        )
    _report(manifest)


def _subset(options: argparse.Namespace) -> None:
    from pretrain.data.betons.manifest import dataset_names, read_manifest
    from pretrain.data.betons.progress import shown_progress
    from pretrain.data.betons.write import write_image_folder, write_subset

    if options.classes is None and options.per_class is None:
        raise UserError(
            "subset: of what? name the classes (--classes FILE), or how many images of each (--per-class N)"
        )
    folder = _folder(options.dataset)
    classes = _class_list(options.classes) if options.classes else None
    how = {"per_class": options.per_class, "force": options.force, "workers": options.workers}
    with shown_progress() as progress:
        if options.source not in dataset_names() and Path(options.source).is_dir():
            manifest = write_image_folder(Path(options.source), folder, classes=classes, progress=progress, **how)
        else:
            manifest = write_subset(read_manifest(options.source), folder, classes, progress=progress, **how)
    _report(manifest)


def _verify(options: argparse.Namespace) -> None:
    from pretrain.data.betons.progress import shown_progress
    from pretrain.data.betons.write import verify_dataset

    with shown_progress() as progress:
        _report(verify_dataset(options.dataset, workers=options.workers, progress=progress))


def _show(options: argparse.Namespace) -> None:
    from pretrain.data.show import write_contact_sheet
    from pretrain.recipe import load

    write_contact_sheet(load(options.recipe, options.overrides), options.out, options.images, options.epoch)
    print(f"{options.out}: each row an image, and the views made of it")


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

    if not dataset or dataset.startswith((".", "-")) or "/" in dataset:
        raise UserError(f"'{dataset}': a dataset's name is the name of one folder")
    return data_root() / dataset


def _split(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not name.isidentifier() or not equals:
        raise UserError(f"--splits {text}: looks like train=FOLDER")
    return name, folder


def _class_list(path: Path) -> list[str]:
    """The first word of each line; empty lines and comments do not count."""
    try:
        lines = [line.partition("#")[0].split() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable list of classes ({error})") from error
    names = [line[0] for line in lines if line]
    if not names:
        raise UserError(f"{path}: names no classes")
    return names


def _report(manifest: "Manifest") -> None:
    print(f"{manifest.folder}: {len(manifest.classes)} classes, content {manifest.content_hash[:12]}")
    for name, split in manifest.splits.items():
        notes = [f"{count:,} re-encoded ({why})" for why, count in split.changed.items()]
        notes += [f"{split.skipped:,} left out that do not decode"] if split.skipped else []
        print("; ".join([f"  {name}: {split.count:,} images", *notes]))


if __name__ == "__main__":
    run_command(main)
