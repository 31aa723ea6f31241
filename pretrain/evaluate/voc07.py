"""Multi-label classification of VOC 2007 by linear SVMs on frozen features: mean average precision over classes.

A folder in VOC's layout: ImageSets/Main/<class>_trainval.txt and <class>_test.txt, lines of an image and 1 (present),
-1 (absent) or 0 (difficult: not counted), with JPEGImages/<image>.jpg.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pretrain.evaluate.image_files import encode, find_folder, squeezed
from pretrain.evaluate.protocol_kinds import SVM
from whitebench.errors import UserError
from whitebench.hashing import content_hash

if TYPE_CHECKING:
    from pretrain.evaluate.features import FrozenEncoder

PARTS = ("VOC2007", "VOCdevkit/VOC2007", "VOCdevkit", ".")
"""Where, below the named folder, the layout may begin."""
LISTS = Path("ImageSets/Main")
SPLITS = ("trainval", "test")


@dataclass(frozen=True)
class VocLabels:
    """Images of both splits and their labels."""

    folder: Path
    classes: tuple[str, ...]
    images: dict[str, tuple[str, ...]]
    """Split -> names of images, sorted."""
    labels: dict[str, NDArray[np.int64]]
    """Split -> 1, -1 or 0 of each image and class, [N, C]."""

    @property
    def content_hash(self) -> str:
        """Of names and labels; not of the images' bytes."""
        plain = {split: [list(self.images[split]), self.labels[split].tolist()] for split in SPLITS}
        return content_hash({"classes": self.classes, **plain})

    @property
    def summary(self) -> dict[str, Any]:
        """What a record says of its data."""
        splits = {name: {"count": len(self.images[split])} for name, split in (("train", "trainval"), ("val", "test"))}
        return {"dataset": self.folder.name, "classes": len(self.classes), "splits": splits}


def read_labels(dataset: str) -> VocLabels:
    """The set in the folder `dataset`, of $WHITEBENCH_DATA or a path.

    Raises:
        UserError: no such folder or layout, a list that is missing or damaged, a class without images.
    """
    root = find_folder(dataset)
    folder = next((root / part for part in PARTS if (root / part / LISTS).is_dir()), None)
    if folder is None:
        raise UserError(f"{root}: no folder {LISTS} in it, nor in VOC2007 or VOCdevkit/VOC2007 (VOC's layout)")
    names = sorted(path.name.removesuffix("_trainval.txt") for path in (folder / LISTS).glob("*_trainval.txt"))
    if not names:
        raise UserError(f"{folder / LISTS}: no lists <class>_trainval.txt")
    lists = {split: [_read_list(folder / LISTS / f"{name}_{split}.txt") for name in names] for split in SPLITS}
    images, labels = {}, {}
    for split, columns in lists.items():
        images[split] = tuple(sorted(columns[0]))
        for name, column in zip(names, columns, strict=True):
            if set(column) != set(columns[0]):
                raise UserError(f"{folder / LISTS}: {name}_{split}.txt names other images than {names[0]}_{split}.txt")
        labels[split] = np.array([[column[image] for column in columns] for image in images[split]], np.int64)
        for number, name in enumerate(names):
            if not (labels[split][:, number] == 1).any():
                raise UserError(f"{folder / LISTS}: {name}_{split}.txt: no image shows class '{name}'")
    return VocLabels(folder, tuple(names), images, labels)


def evaluate(frozen: "FrozenEncoder", protocol: SVM) -> dict[str, Any]:
    """{"mAP": per cent, "ap": of each class, "costs": the chosen C of each class}."""
    voc = read_labels(frozen.target.dataset)
    features = {}
    for split in SPLITS:
        paths = [voc.folder / "JPEGImages" / f"{name}.jpg" for name in voc.images[split]]
        x = encode(frozen, paths, lambda path: squeezed(path, frozen.target)).cpu().numpy()
        features[split] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    precisions, costs = {}, {}
    for number, name in enumerate(voc.classes):
        train, test = (voc.labels[split][:, number] for split in SPLITS)
        costs[name], precisions[name] = class_precision(features["trainval"], train, features["test"], test, protocol)
    return {"mAP": 100 * float(np.mean(list(precisions.values()))), "ap": precisions, "costs": costs}


def class_precision(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    protocol: SVM,
) -> tuple[float, float]:
    """The cost that cross-validation on the training images chose, and the average precision on the test images.

    Args:
        train_labels, test_labels: 1, -1 or 0 (not counted).
    """
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import cross_val_score

    x, y = train[train_labels != 0], train_labels[train_labels != 0]
    folds = min(protocol.folds, int((y == 1).sum()), int((y == -1).sum()))
    cost = protocol.costs[0]
    if folds > 1 and len(protocol.costs) > 1:
        scores = [
            cross_val_score(_svm(c, protocol), x, y, cv=folds, scoring="average_precision").mean()
            for c in protocol.costs
        ]
        cost = protocol.costs[int(np.argmax(scores))]
    decisions = _svm(cost, protocol).fit(x, y).decision_function(test[test_labels != 0])
    return cost, float(average_precision_score(test_labels[test_labels != 0] == 1, decisions))


def _svm(cost: float, protocol: SVM) -> Any:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    warnings.filterwarnings("ignore", category=ConvergenceWarning)  # the source stops after as many iterations
    weights = {1: 2, -1: 1}
    return LinearSVC(C=cost, class_weight=weights, dual=True, max_iter=protocol.iterations, random_state=0)


def _read_list(path: Path) -> dict[str, int]:
    """Image -> 1, -1 or 0."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable list of images ({error})") from error
    labels = {}
    for line in lines:
        match = re.fullmatch(r"\s*(\S+)\s+(-?1|0)\s*", line)
        if match is None:
            raise UserError(f"{path}: '{line[:80]}' is not an image and 1, -1 or 0")
        labels[match[1]] = int(match[2])
    if not labels:
        raise UserError(f"{path}: lists no images")
    return labels
