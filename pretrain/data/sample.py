"""The built-in sample: a classification and a detection set made of the real images that scikit-learn ships.

Its 1,797 handwritten digits (8x8) are placed on its two photos. Digits are split between train and val, and so are the
photos (left half, right half): nothing that is seen in training is part of a validation picture. Every picture is drawn
by a generator of its own, seeded by (SEED, set, split, number), and only with arithmetic that gives the same bits on
every machine (sums and products, Pillow's integer resampling), so that the same versions write the same bytes.

    sample/      {train,val}/<digit>/NNNN.jpg, one digit a picture on a soft background, their betons and manifest
    sample-det/  annotations/instances_{train,val}2017.json, {train,val}2017/*.jpg: scenes of several digits,
                 some overlapping, in COCO's layout

On sharp photo backgrounds self-supervised learning learns the background and not the digit; hence the soft ones.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from results.command import UserError
from results.record import write_json

VERSION = 1
"""Of this generator: a sample that another version has written is written anew."""
SEED = 1797
CLASSES = tuple("0123456789")
CLASSIFICATION, DETECTION = "sample", "sample-det"
SPLITS = ("train", "val")
STAMP = "sample.json"
VAL_DIGITS = 36
"""Digits of each class that only validation pictures show (360 of 1,797)."""

PICTURE_SIDE = 64
DIGIT_SIDES = (44, 60)
"""Least and greatest side of a digit's square in a classification picture, pixels."""
BACKGROUND_CELLS = 4
"""A soft background is a photo crop reduced to so many pixels a side and scaled up again."""
BACKGROUND_CROPS = (64, 320)
"""Sides of the photo crop behind a digit, photo pixels."""
BACKGROUND_FADE = 0.6
"""How far a background is faded to its own mean colour: the digit, not the photo, has to tell pictures apart."""
CONTRAST = 88.0
"""Least difference in luma (0..255) between a digit's tint and what it covers."""

SCENE_SIDE = 160
SCENE_COUNTS = {"train": 400, "val": 100}
SCENE_OBJECTS = (2, 5)
SCENE_DIGIT_SIDES = (32, 88)
SCENE_CROPS = (160, 320)
SCENE_FADE = 0.35
"""How far a scene's photo is faded to its own mean colour, so that digits stand out."""
SCENE_CONTRAST = 80.0
STROKE = 0.5
"""Coverage from which a pixel of a scene belongs to the digit: the edge of its mask."""
EDGE = 6.0
"""How steeply coverage rises from 0 to 1 across the edge of a mask: about one pixel, for an average digit."""
MIN_VISIBLE = 0.2
"""Share of a digit's pixels that must stay visible; a later digit that would hide more is placed elsewhere."""

JPEG_QUALITY = 92
LUMA = np.array([0.299, 0.587, 0.114])

Pixels = NDArray[np.uint8]
Coverage = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Material:
    """What one split is made of; the splits' material is disjoint."""

    digits: Pixels
    """[N, 8, 8], 0..255: ink."""
    labels: NDArray[np.int64]
    """[N]"""
    source: NDArray[np.int64]
    """[N]: places in scikit-learn's `load_digits`, ascending."""
    photos: tuple[Pixels, ...]
    """Half photos, each [427, 320, 3]."""

    def __len__(self) -> int:
        return len(self.digits)


@dataclass(frozen=True)
class Object:
    """A digit in a scene."""

    label: int
    mask: Mask
    """[S, S]: its pixels that no later digit covers."""


@dataclass(frozen=True)
class Scene:
    image: Pixels
    """[S, S, 3], as it is before it becomes a JPEG."""
    objects: tuple[Object, ...]
    """In the order in which they were drawn: later ones occlude earlier ones."""


def write_sample(root: Path, force: bool = False) -> None:
    """Writes `root/sample` and `root/sample-det`; what is there whole and unaltered is left alone, unless `force`.

    Raises:
        UserError: a folder of that name is there that this function has not written.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / ".sample.lock"):
        for name, write in ((CLASSIFICATION, _write_classification), (DETECTION, _write_detection)):
            if force or not is_whole(root / name):
                _publish(root / name, write)


def is_whole(folder: Path) -> bool:
    """Whether `folder` is a sample as this version writes it, with every byte in its place."""
    stamp = _read_stamp(folder)
    return stamp is not None and stamp["generator"] == VERSION and stamp["files"] == folder_hash(folder)


def folder_hash(folder: Path) -> str:
    """sha256 over names and bytes of all files below `folder`, its stamp aside."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / STAMP):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def material() -> dict[str, Material]:
    """Split -> its digits and photo halves. The digits of val are drawn class by class."""
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    ink = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    rng = np.random.Generator(np.random.PCG64(SEED))
    of_class = [rng.permutation(np.flatnonzero(digits.target == label)) for label in range(len(CLASSES))]
    chosen = {
        "train": np.sort(np.concatenate([members[VAL_DIGITS:] for members in of_class])),
        "val": np.sort(np.concatenate([members[:VAL_DIGITS] for members in of_class])),
    }
    photos = [np.asarray(photo) for photo in load_sample_images().images]
    middle = photos[0].shape[1] // 2
    halves = {"train": slice(None, middle), "val": slice(middle, None)}
    return {
        split: Material(ink[places], digits.target[places], places, tuple(photo[:, halves[split]] for photo in photos))
        for split, places in chosen.items()
    }


def picture(split: str, number: int, made_of: Material) -> Pixels:
    """[64, 64, 3]: digit `number` of the split at a random place, size and tint on a soft background."""
    rng = _generator(CLASSIFICATION, split, number)
    cells = _photo_crop(rng, made_of.photos, BACKGROUND_CROPS, BACKGROUND_CELLS)
    background = _faded(_resized(cells, PICTURE_SIDE, Image.Resampling.BICUBIC), BACKGROUND_FADE)
    return _painted(rng, background, _placed(rng, made_of.digits[number], DIGIT_SIDES, PICTURE_SIDE), CONTRAST)


def scene(split: str, number: int, made_of: Material) -> Scene:
    """[160, 160, 3]: two to five digits on a sharp photo crop, with the exact masks of what is visible of them."""
    rng = _generator(DETECTION, split, number)
    which = rng.integers(len(made_of), size=int(rng.integers(*SCENE_OBJECTS, endpoint=True)))
    layers: list[Coverage] = []
    for digit in made_of.digits[which]:
        layers.append(_layer_beside(rng, layers, digit))
    image = _faded(_photo_crop(rng, made_of.photos, SCENE_CROPS, SCENE_SIDE), SCENE_FADE)
    for layer in layers:
        image = _painted(rng, image, layer, SCENE_CONTRAST)
    masks = visible([layer >= 0.5 for layer in layers])
    return Scene(image, tuple(Object(int(label), mask) for label, mask in zip(made_of.labels[which], masks)))


def visible(masks: Sequence[Mask]) -> list[Mask]:
    """Of masks in the order of drawing, what later ones leave of each."""
    covered = np.zeros((SCENE_SIDE, SCENE_SIDE), dtype=bool)
    left: list[Mask] = []
    for mask in reversed(masks):
        left.append(mask & ~covered)
        covered |= mask
    return left[::-1]


def _layer_beside(rng: np.random.Generator, before: Sequence[Coverage], digit: Pixels) -> Coverage:
    """[S, S]: a sharp `digit`, drawn anew until no digit of `before` is hidden too far by it and those between."""
    while True:
        soft = _placed(rng, digit, SCENE_DIGIT_SIDES, SCENE_SIDE)
        layer = np.clip((soft - STROKE) * EDGE + 0.5, 0.0, 1.0)
        masks = [other >= 0.5 for other in (*before, layer)]
        if all(seen.sum() >= MIN_VISIBLE * mask.sum() for seen, mask in zip(visible(masks), masks)):
            return layer


def _placed(rng: np.random.Generator, digit: Pixels, sides: tuple[int, int], canvas: int) -> Coverage:
    """[canvas, canvas], 0..1: `digit` [8, 8] smoothly enlarged to a random side, at a random place wholly inside."""
    side = int(rng.integers(*sides, endpoint=True))
    top, left = (int(offset) for offset in rng.integers(canvas - side, size=2, endpoint=True))
    coverage = np.zeros((canvas, canvas))
    enlarged = _resized(np.pad(digit, 1), side, Image.Resampling.BICUBIC)  # padded: strokes end inside
    coverage[top : top + side, left : left + side] = enlarged / 255
    return coverage


def _painted(rng: np.random.Generator, image: Pixels, coverage: Coverage, contrast: float) -> Pixels:
    """`image` with a uniform tint laid on by `coverage`; the tint's luma is at least `contrast` from what it covers."""
    behind = _luma(image[coverage >= 0.5].mean(axis=0))
    tint = rng.uniform(0, 255, size=3)
    while abs(_luma(tint) - behind) < contrast:
        tint = rng.uniform(0, 255, size=3)
    return np.rint(image + coverage[..., None] * (tint - image)).astype(np.uint8)


def _luma(colour: NDArray[np.float64]) -> float:
    return float((colour * LUMA).sum())


def _photo_crop(rng: np.random.Generator, photos: Sequence[Pixels], sides: tuple[int, int], size: int) -> Pixels:
    """[size, size, 3]: a random square of a random photo, mirrored half of the time, averaged down to `size`."""
    photo = photos[int(rng.integers(len(photos)))]
    side = int(rng.integers(*sides, endpoint=True))
    top, left = (int(rng.integers(extent - side, endpoint=True)) for extent in photo.shape[:2])
    crop = photo[top : top + side, left : left + side]
    if rng.integers(2):
        crop = crop[:, ::-1]
    return _resized(crop, size, Image.Resampling.BOX)


def _faded(photo: Pixels, share: float) -> Pixels:
    """`photo` drawn towards its own mean colour: by 0 not at all, by 1 wholly."""
    return np.rint(photo + share * (photo.mean(axis=(0, 1)) - photo)).astype(np.uint8)


def _resized(image: Pixels, side: int, how: Image.Resampling) -> Pixels:
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), how))


def _generator(dataset: str, split: str, number: int) -> np.random.Generator:
    """Of one picture, so that each is the same whatever else is drawn."""
    place = [SEED, (CLASSIFICATION, DETECTION).index(dataset), SPLITS.index(split), number]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(place)))


def _write_classification(folder: Path) -> None:
    for split, made_of in material().items():
        for number, label in enumerate(made_of.labels):
            _save_jpeg(folder / split / CLASSES[label] / f"{number:04d}.jpg", picture(split, number, made_of))


def _write_detection(folder: Path) -> None:
    (folder / "annotations").mkdir()
    for split, made_of in material().items():
        scenes = []
        for number in range(SCENE_COUNTS[split]):
            scenes.append(scene(split, number, made_of))
            _save_jpeg(folder / f"{split}2017" / _file_name(number), scenes[-1].image)
        annotations = json.dumps(coco_annotations(scenes), separators=(",", ":"))
        (folder / "annotations" / f"instances_{split}2017.json").write_text(annotations)


def coco_annotations(scenes: Sequence[Scene]) -> dict[str, Any]:
    """The scenes in COCO's instance format.

    Masks are compressed RLE, the one form that is exact to the pixel, also with holes: Detectron2 reads it with
    INPUT.MASK_FORMAT "bitmask".
    """
    objects = [(number, item) for number, drawn in enumerate(scenes) for item in drawn.objects]
    return {
        "info": {"description": "digits on photos: the built-in sample of Whitebench", "version": str(VERSION)},
        "licenses": [],
        "images": [
            {"id": number + 1, "file_name": _file_name(number), "height": SCENE_SIDE, "width": SCENE_SIDE}
            for number in range(len(scenes))
        ],
        "annotations": [
            {"id": i, **_annotation(number + 1, item)} for i, (number, item) in enumerate(objects, start=1)
        ],
        "categories": [{"id": i, "name": name, "supercategory": "digit"} for i, name in enumerate(CLASSES, start=1)],
    }


def _annotation(image_id: int, item: Object) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(item.mask, dtype=np.uint8))
    return {
        "image_id": image_id,
        "category_id": item.label + 1,
        "bbox": [float(side) for side in coco_mask.toBbox(rle)],
        "area": int(item.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(item.mask.shape), "counts": rle["counts"].decode("ascii")},
    }


def _file_name(number: int) -> str:
    return f"{number + 1:012d}.jpg"


def _save_jpeg(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=JPEG_QUALITY, subsampling=0)


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a new folder, stamps it and puts it in `folder`'s place: whole or not at all."""
    if folder.exists() and _read_stamp(folder) is None and any(folder.iterdir()):
        raise UserError(f"{folder}: is there and is not the built-in sample; move it away, its name is needed")
    new, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)  # left by a run that was killed
    shutil.rmtree(old, ignore_errors=True)
    new.mkdir()
    try:
        write(new)
        write_json(new / STAMP, {"generator": VERSION, "files": folder_hash(new)})
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    """None where `folder` has no stamp of this generator, of whatever version."""
    try:
        stamp = json.loads((folder / STAMP).read_bytes())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and {"generator", "files"} <= stamp.keys() else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time writes the sample; another waits, and then finds it whole."""
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
