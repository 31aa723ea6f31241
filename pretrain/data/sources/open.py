"""Any source of images that `write` understands, as one `ImageSource`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pretrain.data.betons.images import EXTENSIONS
from pretrain.data.sources.arrays import array_source
from pretrain.data.sources.files import DiskFile, FileTree, Mounted, is_file, is_on_disk, list_folder, printable
from pretrain.data.sources.layouts import VAL, Layout, find_layout, read_layout, split_of_file
from pretrain.data.sources.parquet import ParquetSplit, read_parquet
from pretrain.data.sources.source import ImageSource, with_checked_classes, with_classes, without_empty_splits
from pretrain.data.sources.tars import is_tar, list_tar, stem
from whitebench.errors import UserError, nearest

KINDS = "a folder, a tar archive or a Parquet file"
PARQUET = ".parquet"


def open_source(
    path: Path,
    splits: Mapping[str, str] | None = None,
    labels: Mapping[str, Path] | None = None,
    classes: Sequence[str] | None = None,
) -> ImageSource:
    """The images of `path`, which is a folder, a tar archive, or Parquet files.

    Args:
        splits: name to folder (or archive, or Parquet file) below `path`; None finds them.
        labels: of splits whose labels are in a file.
        classes: lines of a list of classes, only these are taken; None takes all.
    Raises:
        UserError: a folder, its classes or its images are missing or contradict each other.
    """
    try:
        source = _opened(path, splits, labels or {}, classes)
    except UserError as error:
        raise UserError(printable(str(error))) from error
    return replace(source, notes=tuple(printable(note) for note in source.notes))


def _opened(
    path: Path, splits: Mapping[str, str] | None, labels: Mapping[str, Path], classes: Sequence[str] | None
) -> ImageSource:
    source = _source(path, splits, labels)
    unknown = [name for name in labels if name not in source.splits]
    if unknown:
        raise UserError(f"--labels {unknown[0]}: {path} has no such split{nearest(unknown[0], source.splits)}")
    if classes is not None:
        source = without_empty_splits(with_classes(source, classes))
    return with_checked_classes(source)


def _source(path: Path, splits: Mapping[str, str] | None, labels: Mapping[str, Path]) -> ImageSource:
    if splits is not None:
        files = {name: _parquet_files(path, pattern) for name, pattern in splits.items()}
        if all(files.values()):
            return _parquet_source(path, files)
        tree, layout = _tree_of_splits(path, splits), Layout({name: name for name in splits})
    elif path.suffix == PARQUET and path.is_file():
        return _parquet_source(path, {"train": [path]})
    else:
        tree = _tree(path)
        if not tree.images:
            return _without_images(tree)
        layout = find_layout(tree)
    source = replace(read_layout(tree, layout, labels), path=str(path.resolve()))
    if not all(is_on_disk(file) for file in tree.images):
        return replace(source, split_folders={})
    return source if splits is None else replace(source, split_folders=dict(splits))


def _without_images(tree: FileTree) -> ImageSource:
    """Of a tree whose images are in tables or arrays."""
    tables = [file.location for file in tree.others if isinstance(file, DiskFile) and file.path.endswith(PARQUET)]
    if tables:
        return _parquet_source(tree.root, _parquet_splits(tree.root, tables))
    source = array_source(tree)
    if source is None:
        raise UserError(f"{tree.root}: holds no images{_contents(tree)}")
    return source


def _parquet_splits(root: Path, tables: Sequence[Path]) -> dict[str, list[Path]]:
    """The tables of each split, by their own or their folders' names; all are the training split if none has a name."""
    named: dict[str | None, list[Path]] = {}
    for table in tables:
        parts = table.relative_to(root).parts[::-1]
        named.setdefault(next((split for part in parts if (split := split_of_file(part))), None), []).append(table)
    if set(named) == {None}:
        return {"train": named[None]}
    if "train" not in named:
        raise UserError(f"{root}: no Parquet file is named as training; name them with --splits 'train=data/*.parquet'")
    val = next((named[name] for name in VAL if name in named), None)
    return {"train": named["train"], **({"val": val} if val else {})}


def _parquet_files(path: Path, pattern: str) -> list[Path]:
    return sorted(path.glob(pattern)) if pattern.endswith(PARQUET) and not pattern.startswith("/") else []


def _parquet_source(path: Path, files: Mapping[str, Sequence[Path]]) -> ImageSource:
    tables: dict[str, ParquetSplit] = {split: read_parquet(paths) for split, paths in files.items()}
    labelled = {split: table for split, table in tables.items() if table.classes or split == "train"}
    notes = [f"{split}: left out, its images have no labels" for split in tables if split not in labelled]
    names = {table.classes for table in labelled.values() if table.classes}
    if len(names) > 1:
        raise UserError(f"{path}: its splits name different classes")
    classes = next(iter(names), ())
    entries = {split: table.entries for split, table in labelled.items()}
    return ImageSource(str(path.resolve()), classes, entries, notes=tuple(notes))


def _contents(tree: FileTree) -> str:
    """What there is instead of images."""
    suffixes = sorted({Path(file.path).suffix.lower() for file in tree.others} - {""})
    endings = ", ".join(EXTENSIONS)
    return f"; its files are {', '.join(suffixes)}, images are {endings}" if suffixes else f" ({endings})"


def _tree(path: Path) -> FileTree:
    """The files of a folder, with those of the archives in it, or of an archive."""
    if is_file(path):
        if not is_tar(path):
            raise UserError(f"{path}: not {KINDS}; unpack it, or give the folder that it is in")
        return list_tar(path)
    tree = list_folder(path)
    for file in [file for file in tree.others if is_tar(file.path)]:
        folder, _, name = file.path.rpartition("/")
        split = split_of_file(name) if not folder else None
        target = split or (f"{folder}/{stem(name)}" if folder else stem(name))
        if target not in tree.folders and isinstance(file, DiskFile):
            tree.others.remove(file)
            _mount(tree, list_tar(file.location), target)
    tree.sort()
    return tree


def _tree_of_splits(path: Path, splits: Mapping[str, str]) -> FileTree:
    if not path.is_dir():
        raise UserError(f"{path}: not a folder; --splits names folders or archives within one")
    tree = FileTree(path)
    for name, folder in splits.items():
        _mount(tree, _tree(path / folder), name)
    tree.sort()
    return tree


def _mount(tree: FileTree, other: FileTree, folder: str) -> None:
    """Adds the files of another tree in a new folder."""
    tree.folders.update([folder, *(f"{folder}/{path}" for path in other.folders)])
    tree.left_out += [item._replace(path=f"{folder}/{item.path}") for item in other.left_out]
    tree.images += [Mounted(f"{folder}/{file.path}", file) for file in other.images]
    tree.others += [Mounted(f"{folder}/{file.path}", file) for file in other.others]
    tree.origins[folder] = other.root
