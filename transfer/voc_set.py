"""A detection set in VOC's layout: found, checked, and made known to Detectron2.

<folder>/VOC2007/{Annotations/*.xml, ImageSets/Main/*.txt, JPEGImages/*}     <folder>/VOC2012/{...}

With both years, as MoCo takes them: 2007 and 2012 trainval to train, 2007 test to evaluate. With one year, or another
folder of this layout: trainval and test where both lists exist, otherwise train and val. <folder> may also be the one
above VOCdevkit, or the one that holds Annotations itself. Classes of one's own are found in the annotations, or listed
in <folder>/classes.txt, one per line.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transfer.annotation_checks import Faults, box_fault
from transfer.coco_sections import ascii_text, check_names
from transfer.image_checks import check_images
from transfer.voc_layout import VocList, image_files, voc_lists
from transfer.voc_reading import read_images
from transfer.voc_xml import VocImage, VocObject
from whitebench.errors import UserError, nearest

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CLASS_FILE = "classes.txt"
OWN_CLASSES = 0.1
"""Share of objects of other classes above which they are the set's own, rather than misspelt."""


@dataclass(frozen=True)
class VocPart:
    """The images of one list, with what was found wrong in them."""

    source: VocList
    images: tuple[VocImage, ...]
    notes: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class VocSet:
    """A set in which everything was checked."""

    folder: Path
    train: tuple[VocPart, ...]
    val: tuple[VocPart, ...]
    categories: tuple[str, ...] = CLASSES
    """In the order of a detector's classes."""
    mask_format: str = "polygon"
    """Detectron2's default."""
    has_masks: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for part in (*self.train, *self.val) for note in part.notes)

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(line for part in (*self.train, *self.val) for line in part.skipped)

    @property
    def counts(self) -> dict[str, int]:
        return {
            f"{name}_{key}": sum(len(part.images) if key == "images" else _objects(part.images) for part in parts)
            for name, parts in (("train", self.train), ("val", self.val))
            for key in ("images", "objects")
        }

    @property
    def is_2007(self) -> bool:
        """Whether VOC 2007's metric applies (11 points of recall), rather than that of later years (all points)."""
        return self.val[0].source.folder.name == "VOC2007"

    @property
    def differences(self) -> list[str]:
        """Deviations from the published 07+12 trainval and 07 test."""
        lines = []
        lists = [
            [f"{part.source.folder.name} {part.source.split}" for part in parts] for parts in (self.train, self.val)
        ]
        if lists != [["VOC2007 trainval", "VOC2012 trainval"], ["VOC2007 test"]]:
            lines.append(
                f"data: {' + '.join(lists[0])} and {lists[1][0]}, published VOC2007 + VOC2012 trainval and VOC2007 test"
            )
        if self.categories != CLASSES:
            lines.append(f"data: {len(self.categories)} classes of its own, published VOC's 20")
        trained = {image.path for part in self.train for image in part.images}
        shared = sum(image.path in trained for part in self.val for image in part.images)
        if shared:
            lines.append(f"data: {shared} of {sum(len(part.images) for part in self.val)} val images are also in train")
        return lines

    @cached_property
    def by_name(self) -> dict[str, VocImage]:
        """The images of val."""
        return {image.name: image for part in self.val for image in part.images}


def read_voc(folder: Path, skip: bool = False, categories: tuple[str, ...] | None = None) -> VocSet:
    """Reads and checks all annotations, and that their images exist.

    Args:
        skip: leave out every faulty annotation.
        categories: names in the order in which a detector knows them; None: VOC's, or the set's own.
    Raises:
        UserError: lists, annotations or images missing, not VOC's XML, not read in time, unknown classes, faulty
            boxes.
    """
    files = {use: [_files(source) for source in lists] for use, lists in voc_lists(folder).items()}
    parsed = iter(read_images([pair for parts in files.values() for part in parts for pair in part]))
    images = {use: [[next(parsed) for _ in part] for part in parts] for use, parts in files.items()}
    dataset_classes = _classes(folder, images)
    if categories is not None:
        check_names(folder, dataset_classes, categories)
    parts = {
        use: tuple(
            _checked(source, entries, categories or dataset_classes, skip)
            for source, entries in zip(voc_lists(folder)[use], images[use])
        )
        for use in images
    }
    return VocSet(folder, parts["train"], parts["val"], categories or dataset_classes)


def check_image_files(voc: VocSet) -> None:
    """Decodes all images of val, and reads the headers of train's; raises `UserError` for the first that is wrong."""
    for parts, decode in ((voc.train, False), (voc.val, True)):
        for part in parts:
            check_images(((image.path, image.width, image.height) for image in part.images), decode)


def register(voc: VocSet) -> tuple[list[str], str]:
    """Makes the parts known to Detectron2; the names of those that are trained, and of the one that is evaluated."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    names = []
    for part in (*voc.train, *voc.val):
        digest = hashlib.sha256(repr((part.images, voc.categories)).encode()).hexdigest()
        name = f"voc-{digest[:12]}-{part.source.split}-{part.source.folder.resolve()}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, lambda part=part: detectron2_images(part.images, voc.categories))
            MetadataCatalog.get(name).set(
                thing_classes=list(voc.categories),
                dirname=str(part.source.folder),
                split=part.source.split,
                year=2007 if voc.is_2007 else 2012,
            )
        names.append(name)
    return names[:-1], names[-1]


def detectron2_images(images: tuple[VocImage, ...], categories: tuple[str, ...]) -> list[dict[str, Any]]:
    """Detectron2's dictionaries, as its own `load_voc_instances` makes them, whatever an image's extension is.

    Difficult objects are trained, too. Boxes: VOC counts pixels from 1, both ends within.
    """
    from detectron2.structures import BoxMode

    def annotation(item: VocObject) -> dict[str, Any]:
        left, top, right, bottom = item.box
        box = [left - 1.0, top - 1.0, right, bottom]
        return {"category_id": categories.index(item.name), "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}

    return [
        {
            "file_name": str(image.path),
            "image_id": image.name,
            "height": image.height,
            "width": image.width,
            "annotations": [annotation(item) for item in image.objects],
        }
        for image in images
    ]


def _files(source: VocList) -> list[tuple[Path, Path]]:
    """Annotation and image of each image of a list."""
    names = source.names()
    if len(names) < 2:
        raise UserError(f"{source.path}: lists {len(names)} images; at least 2 are needed")
    double = next((name for name, count in Counter(names).items() if count > 1), None)
    if double is not None:
        raise UserError(f"{source.path}: lists {ascii_text(double)} twice")
    folder = source.folder / "JPEGImages"
    files = image_files(folder)
    missing = [name for name in names if name not in files]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(names)} images are missing, e.g. {ascii_text(missing[0])}.jpg"
        )
    return [(source.folder / "Annotations" / f"{name}.xml", files[name]) for name in names]


def _classes(folder: Path, images: dict[str, list[list[VocImage]]]) -> tuple[str, ...]:
    """VOC's, or those of `CLASS_FILE`, or the set's own: those in train, sorted."""
    path = next((root / CLASS_FILE for root in (folder, folder / "VOCdevkit") if (root / CLASS_FILE).is_file()), None)
    if path is not None:
        names = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        if not names or len(set(names)) < len(names):
            raise UserError(f"{path}: lists {'a class twice' if names else 'no classes'}")
        return tuple(names)
    counts = {
        use: Counter(item.name for part in parts for image in part for item in image.objects)
        for use, parts in images.items()
    }
    whole = counts["train"] + counts["val"]
    other = sum(count for name, count in whole.items() if name not in CLASSES)
    return tuple(sorted(counts["train"])) if other > OWN_CLASSES * whole.total() else CLASSES


def _checked(source: VocList, images: list[VocImage], categories: tuple[str, ...], skip: bool) -> VocPart:
    objects = _objects(images)
    if not objects:
        raise UserError(f"{source.path}: its images hold no objects")
    faults, checked = Faults(source.path, objects, skip), []
    for image in images:
        good = []
        for item in image.objects:
            if item.name not in categories:
                whose = "VOC's classes" if categories == CLASSES else "the classes"
                hint = nearest(item.name, categories) if len(categories) < 40 else ""
                raise UserError(
                    f"{image.annotation}: '{ascii_text(item.name)}' is none of {whose}{hint}; list classes of your "
                    f"own in {CLASS_FILE}, one per line"
                )
            left, top, right, bottom = item.box
            kind = box_fault(left - 1, top - 1, right, bottom, image.width, image.height)
            if kind:
                faults.add(kind, image.annotation.name)
            if not kind or not (skip or kind == "have a box that is not finite"):
                good.append(item)
        checked.append(image.with_objects(tuple(good)))
    notes = faults.notes()
    decimals = sum(not item.is_whole for image in checked for item in image.objects)
    if decimals:
        notes.append(f"{source.path.name}: {decimals} boxes have decimals: rounded for VOC's own metric")
    return VocPart(source, tuple(checked), tuple(notes), tuple(faults.listing() if skip else ()))


def _objects(images: Any) -> int:
    return sum(len(image.objects) for image in images)
