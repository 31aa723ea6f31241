"""Datasets of an evaluation by their names: those of this suite, and ImageFolders that become one on first use."""

import sys
from pathlib import Path

from pretrain.distributed import World
from whitebench.errors import UserError, nearest
from whitebench.records import data_root


def prepare_datasets(names: list[str], world: World, workers: int = 1) -> list[str]:
    """The datasets' names in $WHITEBENCH_DATA; ImageFolders among them are written as datasets, in their own folders.

    All are there before the first is used. A path to an ImageFolder elsewhere becomes a dataset of its folder's name.

    Raises:
        UserError: a name that is neither, or is listed twice.
    """
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise UserError(f"datasets: '{twice}' is listed twice")
    sources = [_source(name) for name in names]
    if world.is_main:
        for source in sources:
            _write_if_needed(source, workers)
    world.broadcast(None)  # the others wait until all are written
    return [source.name for source in sources]


def _source(name: str) -> Path:
    """The folder that has, or will have, the dataset's images."""
    inside, elsewhere = data_root() / name, Path(name)
    if inside.is_dir():
        return inside
    if "/" in name and elsewhere.is_dir():
        return elsewhere.resolve()
    folders = [path.name for path in data_root().iterdir() if path.is_dir()] if data_root().is_dir() else []
    raise UserError(f"no dataset '{name}' in {data_root()}{nearest(name, folders)}")


def _write_if_needed(source: Path, workers: int) -> None:
    from pretrain.data.betons.manifest import MANIFEST
    from pretrain.data.betons.write import write_dataset

    folder = data_root() / source.name
    if (folder / MANIFEST).exists():
        return
    print(f"writing {source} as a dataset (on its first use)", file=sys.stderr, flush=True)
    write_dataset(source, folder, workers=workers)
