"""Which training images keep their labels in semi-supervised evaluation: those of a list, or a draw by seed.

The papers share the lists of SimCLR's authors: 12,811 images (1 %) and 128,116 (10 %) of ImageNet's 1,281,167, between
12 and 13, or 128 and 129, of each class. They may not be shipped with this suite; `SOURCE` says where they are.
"""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.data.betons.manifest import Manifest
from pretrain.evaluate.protocol_kinds import Finetune, Semi
from whitebench.errors import UserError

SOURCE = "github.com/google-research/simclr, imagenet_subsets/{1,10}percent.txt"
STANDARD = {
    1: "6581e723dbf23ae41ebd1d66d0b3c1c0eb8865d5abfa906987f6563513f4b9b8",
    10: "220f3e2f6dba9d26ec247224cbbf4f3581cbf7fe341e08b191ee0855ad19af56",
}
"""Per cent to `list_hash` of the standard list, as winci-ai/INTL@0aa69af has it in src/percent."""
DRAWN = "drawn"


def read_list(path: Path) -> list[str]:
    """The names in a list, one per line, sorted.

    Raises:
        UserError: it is not readable, empty, or lists an image twice.
    """
    try:
        names = sorted(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable list of images ({error}); the standard ones: {SOURCE}") from error
    if not names:
        raise UserError(f"{path}: lists no images (one per line); the standard lists: {SOURCE}")
    twice = [name for name, after in pairwise(names) if name == after]
    if twice:
        raise UserError(f"{path}: {twice[0]} is listed twice")
    return names


def list_hash(names: list[str]) -> str:
    """sha256 (hex) of sorted names: of what a list says, not of its order or line ends."""
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def identity(image_list: Path | None) -> str:
    """What determines the choice, apart from protocol, seed and data: "drawn", or the list by its hash."""
    return DRAWN if image_list is None else f"list sha256:{list_hash(read_list(image_list))}"


def deviation(protocol: Semi | Finetune, chosen: str) -> str | None:
    """How a choice of that `identity` differs from the protocol's source; None where it does not."""
    if not protocol.standard_list or chosen.endswith(STANDARD.get(int(protocol.percent), chosen)):
        return None
    return f"labelled images: {chosen}, published the standard list of {protocol.percent:g} %"


def choose(manifest: Manifest, protocol: Semi | Finetune, seed: int, image_list: Path | None) -> NDArray[np.int64]:
    """Dataset indices of the training images that keep their labels, int64 [n], ascending."""
    if protocol.percent == 100 and image_list is None:
        return every_labelled(manifest)
    files = manifest.file_names("train")
    chosen = _draw(files, protocol.percent, seed) if image_list is None else _find(files, image_list, manifest.dataset)
    index = np.array(sorted(chosen), np.int64)
    labelled = manifest.labelled("train")
    return index if labelled is None else np.intersect1d(index, labelled)


def every_labelled(manifest: Manifest) -> NDArray[np.int64]:
    """Dataset indices of all training images that have labels, ascending."""
    labelled = manifest.labelled("train")
    return np.arange(manifest.split("train").count) if labelled is None else labelled


def _draw(files: list[str], percent: float, seed: int) -> list[int]:
    """Of each class its share, rounded, at least one: the images whose names have the smallest hashes with the seed."""
    classes: dict[str, list[int]] = {}
    for index, name in enumerate(files):
        classes.setdefault(name.partition("/")[0], []).append(index)
    chosen = []
    for indices in classes.values():
        indices.sort(
            key=lambda index: hashlib.sha256(f"{seed} {files[index]}".encode(errors="surrogateescape")).digest()
        )
        chosen += indices[: max(1, round(percent / 100 * len(indices)))]
    return chosen


def _find(files: list[str], path: Path, dataset: str) -> list[int]:
    """The images of a list, which names files as `<class>/<file>`, or as `<file>` where that tells them apart."""
    indices: dict[str, list[int]] = {}
    for index, name in enumerate(files):
        for alias in {name, name.rpartition("/")[2]}:
            indices.setdefault(alias, []).append(index)
    names = read_list(path)
    absent = [name for name in names if name not in indices]
    if absent:
        raise UserError(f"{path}: {len(absent)} of {len(names)} images are not in {dataset}, e.g. {absent[0]}")
    several = [name for name in names if len(indices[name]) > 1]
    if several:
        raise UserError(f"{path}: {several[0]} is in several classes of {dataset}; name it as <class>/<file>")
    return [indices[name][0] for name in names]
