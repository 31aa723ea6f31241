"""Retrieval by cosine similarity of frozen features: mean average precision over queries.

Two layouts. Oxford's and Paris's: images in `jpg/` beside a ground truth `gnd_<name>.pkl` or `.json` with `imlist`,
`qimlist` and for each query its box and either easy, hard and junk images (the revisited sets) or ok and junk ones.
Without a ground truth: a folder per class, where every image queries all others.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pretrain.evaluate.image_files import Box, class_folders, encode, find_folder, squeezed
from pretrain.evaluate.whole_images import at_scales, in_proportion
from whitebench.errors import UserError
from whitebench.hashing import content_hash

if TYPE_CHECKING:
    from pretrain.evaluate.features import FrozenEncoder
    from pretrain.evaluate.protocol_kinds import Retrieval

REVISITED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mAP_easy": (("easy",), ("junk", "hard")),
    "mAP_medium": (("easy", "hard"), ("junk",)),
    "mAP_hard": (("hard",), ("junk", "easy")),
}
"""Metric -> which images are right, and which are left out of the ranking."""
PLAIN: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {"mAP": (("ok",), ("junk",))}
SUFFIXES = (".jpg", ".jpeg", ".png", "")


@dataclass(frozen=True)
class Query:
    image: Path
    box: Box | None
    relevance: dict[str, tuple[int, ...]]
    """"easy", "hard", "junk", "ok" -> positions in the database."""


@dataclass(frozen=True)
class RetrievalSet:
    folder: Path
    database: tuple[Path, ...]
    queries: tuple[Query, ...]
    metrics: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]

    @property
    def content_hash(self) -> str:
        """Of names and ground truth; not of the images' bytes."""
        names = [path.relative_to(self.folder).as_posix() for path in self.database]
        queries = [[query.image.name, query.box, query.relevance] for query in self.queries]
        return content_hash({"database": names, "queries": queries})

    @property
    def summary(self) -> dict[str, Any]:
        """What a record says of its data."""
        splits = {"train": {"count": len(self.database)}, "val": {"count": len(self.queries)}}
        return {"dataset": self.folder.name, "splits": splits}


def read_set(dataset: str) -> RetrievalSet:
    """The set in the folder `dataset`, of $WHITEBENCH_DATA or a path.

    Raises:
        UserError: no such folder or layout, a damaged ground truth, images that it names and that are not there.
    """
    folder = find_folder(dataset)
    truths = sorted([*folder.glob("gnd_*.pkl"), *folder.glob("gnd_*.json")])
    if len(truths) > 1:
        raise UserError(f"{folder}: several ground truths ({', '.join(path.name for path in truths)}); keep one")
    return _with_truth(folder, truths[0]) if truths else _by_class(folder)


def evaluate(frozen: "FrozenEncoder", protocol: "Retrieval") -> dict[str, float]:
    """The metrics that the set has, in per cent: "mAP", of revisited sets "mAP_easy", "mAP_medium" and "mAP_hard", too.

    Their "mAP" is that of the medium set-up.
    """
    retrieval_set = read_set(frozen.target.dataset)
    database = _encoded(frozen, protocol, [(path, None) for path in retrieval_set.database])
    position = {path: number for number, path in enumerate(retrieval_set.database)}
    images = [(query.image, query.box if protocol.boxes else None) for query in retrieval_set.queries]
    if all(box is None and path in position for path, box in images):
        queries = database[[position[path] for path, _ in images]]
    else:
        queries = _encoded(frozen, protocol, images)
    ranks = rankings(queries, database)
    truths = [query.relevance for query in retrieval_set.queries]
    metrics = {name: 100 * mean_precision(ranks, truths, *rule) for name, rule in retrieval_set.metrics.items()}
    return {"mAP": metrics.get("mAP_medium", math.nan), **metrics}


def _encoded(frozen: "FrozenEncoder", protocol: "Retrieval", images: Sequence[tuple[Path, Box | None]]) -> Tensor:
    """Features of images, or of their boxes, each of length 1: [N, F]."""
    longest = protocol.longest
    if longest is None:
        features = encode(frozen, images, lambda image: squeezed(image[0], frozen.target, image[1]))
    else:
        embed = at_scales(frozen, protocol)
        features = encode(frozen, images, lambda image: in_proportion(image[0], longest, image[1]), embed)
    return F.normalize(features, dim=1)


def rankings(queries: Tensor, database: Tensor) -> NDArray[np.int64]:
    """Positions in the database, most similar first, of each query: [Q, N]; equal ones in the database's order."""
    orders = [(part @ database.T).argsort(dim=1, descending=True, stable=True).cpu() for part in queries.split(256)]
    return torch.cat(orders).numpy()


def mean_precision(
    ranks: NDArray[np.int64],
    truths: Sequence[Mapping[str, Sequence[int]]],
    right: Sequence[str],
    ignored: Sequence[str],
) -> float:
    """Mean of average precisions as the revisited sets define it; queries without a right image do not count."""
    precisions = []
    for order, truth in zip(ranks, truths, strict=True):
        positive = [number for kind in right for number in truth.get(kind, ())]
        junk = [number for kind in ignored for number in truth.get(kind, ())]
        if positive:
            ranked = order[~np.isin(order, junk)]
            precisions.append(average_precision(np.flatnonzero(np.isin(ranked, positive)), len(positive)))
    return float(np.mean(precisions)) if precisions else float("nan")


def average_precision(ranks: NDArray[np.int64], positives: int) -> float:
    """The area under precision over recall, by trapezoids, of right images at these ranks (from 0, ascending)."""
    count = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, count / np.maximum(ranks, 1))
    after = (count + 1) / (ranks + 1)
    return float(((before + after) / 2).sum() / positives)


def _with_truth(folder: Path, path: Path) -> RetrievalSet:
    truth = _read_truth(path)
    try:
        database = tuple(_image(folder, str(name)) for name in truth["imlist"])
        entries = list(zip(truth["qimlist"], truth["gnd"], strict=True))
        revisited = all("easy" in entry and "hard" in entry for _, entry in entries)
        kinds = ("easy", "hard", "junk") if revisited else ("ok", "junk")
        queries = tuple(
            Query(
                _image(folder, str(name)),
                tuple(float(x) for x in entry["bbx"]) if "bbx" in entry else None,  # type: ignore[arg-type]
                {kind: _positions(entry[kind], len(database)) for kind in kinds},
            )
            for name, entry in entries
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a ground truth of retrieval ({type(error).__name__}: {error})") from error
    if not queries or not database:
        raise UserError(f"{path}: names no queries or no images")
    return RetrievalSet(folder, database, queries, REVISITED if revisited else PLAIN)


def _positions(values: Any, count: int) -> tuple[int, ...]:
    positions = tuple(int(value) for value in np.asarray(values).ravel().tolist())
    if any(not 0 <= number < count for number in positions):
        raise ValueError(f"a position outside of its {count} images")
    return positions


def _read_truth(path: Path) -> Any:
    """Pickles by the list of safe names, so that a file of others runs no code."""
    from pretrain import pickles

    try:
        if path.suffix == ".json":
            return json.loads(path.read_bytes())
        return pickles.read_plain(path)
    except UserError:
        raise
    except Exception as error:  # of a damaged pickle, anything
        raise UserError(f"{path}: not a readable ground truth ({type(error).__name__}: {error})") from error


def _image(folder: Path, name: str) -> Path:
    for suffix in SUFFIXES:
        path = folder / "jpg" / f"{name}{suffix}"
        if path.is_file():
            return path
    raise UserError(f"{folder / 'jpg'}: image '{name}' of the ground truth is missing")


def _by_class(folder: Path) -> RetrievalSet:
    """Every image queries all others; right are those of its own class."""
    classes = class_folders(folder)
    if len(classes) < 2:
        raise UserError(
            f"{folder}: neither a ground truth gnd_<name>.pkl (or .json) with jpg/, nor at least two folders of images"
        )
    database = [path for paths in classes.values() for path in paths]
    queries, start = [], 0
    for paths in classes.values():
        members = range(start, start + len(paths))
        start += len(paths)
        for number, path in zip(members, paths, strict=True):
            others = tuple(member for member in members if member != number)
            queries.append(Query(path, None, {"ok": others, "junk": (number,)}))
    return RetrievalSet(folder, tuple(database), tuple(queries), PLAIN)
