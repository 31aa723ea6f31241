"""Which folders are splits, and which are classes, in the layouts that people have."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.betons.images import EXTENSIONS
from pretrain.data.sources.files import FileTree, LeftOut, StoredFile, is_below, relative
from pretrain.data.sources.label_files import known_label_file, labels_of
from pretrain.data.sources.source import UNLABELLED, ImageEntry, ImageSource, some
from whitebench.errors import UserError

SPLIT_NAMES = {
    "train": ("train", "training", "trainset", "train_set", "train-set"),
    "val": ("val", "validation", "valid", "validate", "dev", "eval", "val_set", "valset", "val-set"),
    "test": ("test", "testing", "testset", "test_set", "test-set"),
    "unlabelled": ("unlabeled", "unlabelled", "unlabeled_data"),
}
"""Names of folders (in lower case), the usual one first."""
VAL = ("val", "test")
"""Names of the validation split: the first that exists is used."""
HIDDEN = "a hidden file"
SEARCHED_DEPTH = 4
"""Folders of splits are looked for this far below the source."""


@dataclass(frozen=True)
class Layout:
    """Where the splits of a tree are."""

    folders: dict[str, str]
    """Folder of each split below the tree's root."""
    unlabelled: str | None = None
    """A folder of images without labels, for training."""
    notes: tuple[str, ...] = ()


def find_layout(tree: FileTree) -> Layout:
    """The splits of a tree; all of it is the training split where no folder is named like one.

    Raises:
        UserError: there is a validation split alone, or several folders have splits.
    """
    base = "" if _is_base(tree, "") else _deeper_base(tree)
    if base is None:
        base = _folder_of_classes(tree)
        notes = [f"the classes are in {base}/"] if base else []
        return Layout({"train": base}, notes=(*notes, *_notes_on_classes(tree, base)))
    named = _named_splits(tree, base)
    if "train" not in named:
        present = next(iter(named.values()))[0]
        raise UserError(
            f"{tree.root / base}: has {present}/ but no train/; name the folders with --splits train=FOLDER ..."
        )
    folders = {"train": _join(base, named["train"][0])}
    val = next((named[name][0] for name in VAL if name in named), None)
    if val is not None:
        folders["val"] = _join(base, val)
    unlabelled = named.get("unlabelled", [None])[0]
    used = {named["train"][0], val, unlabelled}
    unused = [name for name in _subfolders(tree, base) if name not in used and tree.has_images(_join(base, name))]
    notes = [f"the splits are in {base}/"] if base else []
    notes += [f"not used: {some([f'{name}/' for name in unused])}"] if unused else []
    return Layout(folders, _join(base, unlabelled) if unlabelled else None, tuple(notes))


def read_layout(tree: FileTree, layout: Layout, label_files: Mapping[str, Path]) -> ImageSource:
    """The images of a layout with their classes.

    Args:
        label_files: of splits whose labels are in a file.
    Raises:
        UserError: a split has no images, or images without labels that need them.
    """
    named: dict[str, dict[str, str | None]] = {}
    left_out: dict[str, list[LeftOut]] = {}
    notes = list(layout.notes)
    train_classes: set[str] = set()
    by_file: set[str] = set()
    for split in sorted(layout.folders, key=lambda name: name != "train"):
        folder = layout.folders[split]
        file = label_files.get(split) or _label_file_for(tree, folder, split, train_classes)
        if file and split not in label_files:
            notes.append(f"{split}: labels from {file}")
        by_file |= {split} if file else set()
        named[split] = _classes_of(tree, folder, split, file)
        left_out[split] = _left_out(tree, folder, named[split])
        if split == "train":
            train_classes = {name for name in named[split].values() if name is not None}
    if layout.unlabelled is not None and "train" in named:
        named["train"] |= {file.path: None for file in tree.images_below(layout.unlabelled)}
    _merge_unlabelled_class(named)
    by_folder = [
        folder for split, folder in layout.folders.items() if split not in by_file and _has_classes(named[split])
    ]
    classes = _class_names(named, {name for folder in by_folder for name in _subfolders(tree, folder)})
    if not classes:
        notes.append("no folders of classes: the images have no labels, and evaluations need them")
    number = {name: label for label, name in enumerate(classes)}
    by_path = {file.path: file for file in tree.images}
    splits = {
        split: [
            _entry(by_path[path], layout.folders[split], name, number) for path, name in _ordered(named[split], number)
        ]
        for split in layout.folders
    }
    return ImageSource(str(tree.root.resolve()), classes, splits, dict(layout.folders), left_out, tuple(notes))


def _ordered(named: Mapping[str, str | None], number: Mapping[str, int]) -> list[tuple[str, str | None]]:
    """By class, then by path; unlabelled images last."""
    return sorted(
        named.items(), key=lambda item: (number[item[1]] if item[1] is not None else len(number), _key(item[0]))
    )


def _key(path: str) -> tuple[tuple[bool, str], ...]:
    """Files of a folder before its subfolders."""
    *folders, name = path.split("/")
    return (*((True, folder) for folder in folders), (False, name))


def _entry(file: StoredFile, folder: str, name: str | None, number: Mapping[str, int]) -> ImageEntry:
    inside = file.path.removeprefix(f"{folder}/") if folder else file.path
    group = name if name is not None else "unlabeled"
    listed = inside if inside.startswith(f"{group}/") else f"{group}/{inside}"
    return ImageEntry(listed, number[name] if name is not None else UNLABELLED, file.size, file.read)


def _classes_of(tree: FileTree, folder: str, split: str, label_file: Path | None) -> dict[str, str | None]:
    """The class of each image of a split, by its path; None for those without."""
    files = tree.images_below(folder)
    if not files:
        raise UserError(f"{tree.root / folder}: holds no images ({', '.join(EXTENSIONS)}){_hint(tree, folder)}")
    if label_file:
        return dict(labels_of(label_file, files))
    inside = [(file.path, relative(file.path, folder)) for file in files]
    classes = {path: below.partition("/")[0] for path, below in inside if "/" in below}
    if classes:
        return dict(classes)
    if split != "train":
        raise UserError(
            f"{tree.root / folder}: has no folders of classes; name the file of its labels: --labels {split}=FILE "
            "(Kaggle's LOC_val_solution.csv, Tiny-ImageNet's val_annotations.txt, or lines of file and class)"
        )
    return {file.path: None for file in files}


def _hint(tree: FileTree, folder: str) -> str:
    names = {Path(file.path).suffix.lower() for file in tree.others if is_below(file.path, folder)}
    archives = sorted(
        names
        & {
            ".tar",
            ".zip",
            ".rar",
            ".7z",
            ".gz",
            ".tgz",
            ".parquet",
            ".arrow",
            ".tfrecord",
            ".bin",
            ".mat",
            ".npz",
            ".h5",
        }
    )
    return f"; it holds {', '.join(archives)} files: unpack them, or give one as SOURCE" if archives else ""


def _label_file_for(tree: FileTree, folder: str, split: str, train_classes: set[str]) -> Path | None:
    """A list of labels near a split without folders of classes."""
    if split == "train":
        return None
    inside = [relative(file.path, folder) for file in tree.images_below(folder)]
    names = {path.partition("/")[0] for path in inside if "/" in path}
    if names & train_classes or (names and not train_classes):
        return None
    start = tree.origins.get(folder, tree.root / folder)
    return known_label_file(split, [start, *list(start.resolve().parents)[: SEARCHED_DEPTH + 1]])


def _merge_unlabelled_class(named: dict[str, dict[str, str | None]]) -> None:
    """A class folder `unlabeled` that only train has holds images without labels (STL-10's)."""
    others = {name for split, classes in named.items() if split != "train" for name in classes.values()}
    if "val" not in named or "train" not in named:
        return
    for path, name in named["train"].items():
        if name is not None and name.lower() in SPLIT_NAMES["unlabelled"] and name not in others:
            named["train"][path] = None


def _class_names(named: Mapping[str, Mapping[str, str | None]], empty: set[str]) -> tuple[str, ...]:
    present = {name for classes in named.values() for name in classes.values() if name is not None}
    unlabelled = {name for name in empty if name.lower() in SPLIT_NAMES["unlabelled"]}
    return tuple(sorted(present | (empty - unlabelled)))


def _has_classes(named: Mapping[str, str | None]) -> bool:
    return any(name is not None for name in named.values())


def _left_out(tree: FileTree, folder: str, named: Mapping[str, str | None]) -> list[LeftOut]:
    entries = [item for item in tree.left_out if is_below(item.path, folder) and item.reason != HIDDEN]
    loose = [file.path for file in tree.images_below(folder) if file.path not in named]
    entries += [LeftOut(path, "not in a folder of a class") for path in loose]
    others = [file.path for file in tree.others if is_below(file.path, folder)]
    # files next to the folders of classes are lists and notes, not images that someone misses
    entries += [LeftOut(path, _reason(path)) for path in others if folder or "/" in path]
    return [LeftOut(relative(item.path, folder), item.reason) for item in entries]


def _reason(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix in (".tar", ".zip", ".tgz", ".gz", ".rar", ".7z"):
        return "an archive next to folders"
    return f"not an image ({suffix or 'no suffix'})"


def _is_base(tree: FileTree, folder: str) -> bool:
    """Whether the subfolders of `folder` are splits.

    A class may be called train, too: then it has no classes within, and its neighbours hold images as it does.
    """
    named = {name for names in _named_splits(tree, folder).values() for name in names}
    if not named or not any(tree.has_images(_join(folder, name)) for name in named):
        return False
    others = [name for name in _subfolders(tree, folder) if name not in named]
    has_classes = any(
        tree.has_images(_join(split, name))
        for split in (_join(folder, name) for name in named)
        for name in _subfolders(tree, split)
    )
    return has_classes or not any(_holds_images(tree, _join(folder, name)) for name in others)


def _deeper_base(tree: FileTree) -> str | None:
    """The one folder below whose subfolders are splits, if any."""
    tops = sorted(
        {
            folder.rpartition("/")[0]
            for folder in tree.folders
            if folder.count("/") <= SEARCHED_DEPTH and _split_of(folder.rpartition("/")[2])
        }
    )
    bases = [folder for folder in tops if folder and "train" in _named_splits(tree, folder) and _is_base(tree, folder)]
    bases = [folder for folder in bases if not any(folder.startswith(f"{other}/") for other in bases)]
    if len(bases) > 1:
        raise UserError(f"{tree.root}: several folders hold splits: {some(bases)}; give one of them as SOURCE")
    return bases[0] if bases else None


def _folder_of_classes(tree: FileTree) -> str:
    """The root, or the folder below it that alone holds images, all in several folders of its own."""
    base = ""
    while not _holds_images(tree, base):
        inside = [_join(base, name) for name in _subfolders(tree, base) if tree.has_images(_join(base, name))]
        if len(inside) != 1 or _holds_images(tree, inside[0]):
            break
        if sum(tree.has_images(_join(inside[0], name)) for name in _subfolders(tree, inside[0])) < 2:
            break
        base = inside[0]
    return base


def _notes_on_classes(tree: FileTree, base: str) -> Iterator[str]:
    classes = [name for name in _subfolders(tree, base) if tree.has_images(_join(base, name))]
    if len(classes) > 1 and not any(_holds_images(tree, _join(base, name)) for name in classes):
        yield (
            f"each of the {len(classes)} folders ({some(classes)}) holds only folders, whose images count as one class"
        )
    elif len(classes) == 1:
        yield f"all images are of one class, '{classes[0]}': is {tree.root / base} the folder that holds the classes?"


def _named_splits(tree: FileTree, folder: str) -> dict[str, list[str]]:
    """Subfolders named like splits, by split; the usual name first."""
    named: dict[str, list[str]] = {}
    for name in _subfolders(tree, folder):
        if split := _split_of(name):
            named.setdefault(split, []).append(name)
    for split, names in named.items():
        usual = SPLIT_NAMES[split]
        names.sort(key=lambda name: (name not in usual, usual.index(name.lower()), name))
    return named


def _split_of(name: str) -> str | None:
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def split_of_file(name: str) -> str | None:
    """The split that a file's name speaks of: 'ILSVRC2012_img_train.tar', 'validation-00000-of-00014.parquet'."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in SPLIT_NAMES.items() if any(word in names for word in words)), None)


def _subfolders(tree: FileTree, folder: str) -> list[str]:
    return sorted(relative(path, folder) for path in tree.folders if path.rpartition("/")[0] == folder and path)


def _holds_images(tree: FileTree, folder: str) -> bool:
    """Whether there are images in the folder itself."""
    return any("/" not in relative(file.path, folder) for file in tree.images_below(folder))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
