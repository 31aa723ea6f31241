"""The content of a COCO annotation file, checked, and corrected where Detectron2 or pycocotools could not use it.

Tools that write COCO's format leave out or misspell what the two libraries read without a check: ids as text, `area`
null, `iscrowd` missing, polygons of NaN. What can be derived is derived and noted; a few faulty annotations are left
out and noted; more of them are refused, before anything is trained. A file in order is used as it is.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer.annotation_checks import (
    TOLERATED,
    Faults,
    coco_box_fault,
    fits,
    is_number,
    is_polygon,
    mask_area,
    mask_extent,
    mask_fault,
)
from transfer.coco_sections import ascii_text, check_names, check_sections, is_encodable, whole_side
from whitebench.errors import UserError

LARGEST_ID = 2**53
"""pycocotools keeps the ids of annotations as float64."""
FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1, "false": 0, "true": 1, "None": 0, "": 0}
HARMLESS = ("have an empty box", "have a box that reaches beyond the image", "have a box that does not fit their mask")
"""Kinds that Detectron2 clips or skips; it or pycocotools fails on the others."""
Entry = dict[str, Any]


@dataclass
class CocoContent:
    """A split as it is used."""

    names: tuple[str, ...]
    """File names of its images."""
    sizes: list[tuple[int, int]]
    """Width and height of each."""
    categories: tuple[str, ...]
    """In the order of the classes of a detector."""
    objects: int
    """Annotations without crowds."""
    has_masks: bool
    coded: bool
    """Whether masks are run-length coded."""
    corrected: dict[str, list[Entry]] | None
    """What replaces the file; None: the file itself is used."""
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """One line per annotation that is left out."""


def check_content(
    path: Path, raw: Any, masks: bool = True, skip: bool = False, order: Sequence[str] | None = None
) -> CocoContent:
    """Checks the content `raw` of the annotation file `path`.

    Args:
        masks: whether masks are trained and evaluated; otherwise they are neither needed nor looked at.
        skip: leave out every faulty annotation, however many there are.
        order: names of the categories as a detector knows them; None: by their ids.
    Raises:
        UserError: not COCO's format; ids that are double or unknown; other categories than `order`; more faulty
            annotations than are tolerated.
    """
    check_sections(path, raw)
    return _Check(path, raw, masks, skip).run(order)


class _Check:
    def __init__(self, path: Path, raw: dict[str, Any], masks: bool, skip: bool) -> None:
        self.path, self.raw, self.masks, self.skip = path, raw, masks, skip
        self.faults = Faults(path, len(raw["annotations"]), skip)
        self.changes: list[Entry] = []
        """Of each annotation, the values that replace its own."""
        self.removed: set[int] = set()
        self.counts: Counter[str] = Counter()
        """Annotations by what was derived."""
        self.rewrite = False
        """Whether the file itself cannot be used."""

    def run(self, order: Sequence[str] | None) -> CocoContent:
        images, annotations = self._images(), self.raw["annotations"]
        if not images:
            raise UserError(f"{self.path}: holds no images")
        categories = self._categories(order)
        self._check_references("image_id", images)
        self._check_references("category_id", {old: new for old, (new, _) in categories.items()})
        has_masks = self.masks and any("segmentation" in item for item in annotations)
        self._refuse_normalised(annotations)
        for index, item in enumerate(annotations):
            size = images[item["image_id"]]
            self.changes.append(self._annotation(index, item, size["width"], size["height"], has_masks))
        self._derive_doubtful_areas(annotations)
        remaining = [k for k in range(len(annotations)) if k not in self.removed]
        objects = sum(not self._value(k, "iscrowd") for k in remaining)
        if not objects:
            self.faults.notes()  # a fault of all of them says more
            raise UserError(f"{self.path}: holds no objects")
        notes = [*self.faults.notes(), *self._derivations()]
        corrected = self._corrected(images, categories, remaining)
        coded = any(
            isinstance(self._value(k, "segmentation"), dict) and not self._value(k, "iscrowd")
            for k in (remaining if has_masks else ())
        )
        return CocoContent(
            names=tuple(image["file_name"] for image in images.values()),
            sizes=[(image["width"], image["height"]) for image in images.values()],
            categories=tuple(name for _, name in categories.values()),
            objects=objects,
            has_masks=has_masks,
            coded=coded,
            corrected=corrected,
            notes=notes,
            skipped=self.faults.listing() if self.skip else [],
        )

    def _images(self) -> dict[Any, Entry]:
        """By the id in the file: entries with the id, name and size that are used."""
        entries = self.raw["images"]
        numbers = self._numbers("image", [item["id"] for item in entries])
        images = {}
        for item, number in zip(entries, numbers):
            name = item["file_name"]
            if not isinstance(name, str) or not name or not is_encodable(name):
                raise UserError(f"{self.path}: image {ascii_text(item['id'])} has no usable file_name: {name!a}")
            sides = [whole_side(item[side]) for side in ("width", "height")]
            if None in sides:
                text = f"{item['width']!a} x {item['height']!a}"
                raise UserError(f"{self.path}: image {ascii_text(item['id'])} has the impossible size {text[:60]}")
            images[item["id"]] = {"id": number, "file_name": name, "width": sides[0], "height": sides[1]}
            self.rewrite |= sides != [item["width"], item["height"]] or not isinstance(item["width"], int)
        return images

    def _categories(self, order: Sequence[str] | None) -> dict[Any, tuple[int, str]]:
        """By the id in the file, in the order of a detector's classes: the id that is used, and the name."""
        entries = self.raw["categories"]
        if not entries:
            raise UserError(f"{self.path}: holds no categories")
        for item in entries:
            if not isinstance(item["name"], str):
                raise UserError(f"{self.path}: a category has the name {ascii(item['name'])[:40]}, which is not a text")
        numbers = self._numbers("category", [item["id"] for item in entries])
        listed = sorted(zip(numbers, (item["name"] for item in entries), (item["id"] for item in entries)))
        names = [name for _, name, _ in listed]
        if order is None or list(order) == names:
            return {old: (number, name) for number, name, old in listed}
        check_names(self.path, names, order)
        position = {name: index for index, name in enumerate(order, 1)}
        self.rewrite = True
        listed = sorted((position[name], name, old) for _, name, old in listed)
        return {old: (number, name) for number, name, old in listed}

    def _numbers(self, kind: str, ids: list[Any]) -> list[int]:
        """The ids themselves where they are whole numbers, otherwise 1, 2, ..."""
        if all(isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_ID for value in ids):
            return ids
        self.rewrite = True
        self.counts[f"{kind} ids that are not whole numbers are numbered 1 to {len(ids)}"] += 1
        return list(range(1, len(ids) + 1))

    def _check_references(self, key: str, valid_ids: dict[Any, Any]) -> None:
        lost = []
        for item in self.raw["annotations"]:
            value = item[key]
            if not isinstance(value, int | float | str) or value not in valid_ids:
                lost.append(item)
        if lost:
            example = ascii_text(lost[0].get("id", "without an id"))
            raise UserError(f"{self.path}: {len(lost)} annotations name an unknown {key}, e.g. annotation {example}")

    def _refuse_normalised(self, annotations: list[Entry]) -> None:
        """Boxes in parts of the image's size, as other formats have them, would train to an AP of 0."""
        boxes = [item["bbox"] for item in annotations if isinstance(item["bbox"], list) and item["bbox"]]
        small = sum(all(is_number(value) and 0 <= value <= 1 for value in box) for box in boxes)
        if boxes and 2 * small > len(boxes):
            raise UserError(
                f"{self.path}: {small} of {len(boxes)} boxes lie within 0..1, as if normalised; COCO's are in pixels: "
                "[left, top, width, height]"
            )

    def _annotation(self, index: int, item: Entry, width: int, height: int, has_masks: bool) -> Entry:
        """Values that replace the annotation's own; counts its fault."""
        change: Entry = {}
        kind = coco_box_fault(item["bbox"], width, height)
        crowd = FLAGS.get(str(item.get("iscrowd")))
        if crowd is None:
            kind = "have an 'iscrowd' that is neither 0 nor 1"
        elif FLAGS.get(str(item.get("ignore")), 1):
            crowd = 1
            self.counts["'ignore' is set: not trained, and not counted in evaluation, as crowds"] += 1
        elif item.get("iscrowd") is None:
            self.counts["'iscrowd' is missing: taken as 0"] += 1
        change["iscrowd"] = crowd or 0
        breaks = kind is not None and kind not in HARMLESS
        if not self.masks and "segmentation" in item and mask_fault(item["segmentation"], width, height):
            self.rewrite = True  # Detectron2 reads masks, whether they are trained or not: without them
        if has_masks and not breaks:
            fault, mask_breaks = self._mask(item, change, width, height)
            kind, breaks = (fault, True) if mask_breaks else (kind or fault, breaks)
        if kind:
            self.faults.add(
                kind, f"annotation {ascii_text(item.get('id', index))} of image {ascii_text(item['image_id'])}"
            )
        if kind and (breaks or self.skip):
            self.removed.add(index)
        elif not is_number(item.get("area")) or item["area"] < 0:
            self.counts["'area' is missing or not a number: derived"] += 1
            change["area"] = _area(item, change, has_masks)
        return change

    def _mask(self, item: Entry, change: Entry, width: int, height: int) -> tuple[str | None, bool]:
        """The fault of a mask, and whether pycocotools fails on it."""
        if "segmentation" not in item:
            return "have no mask", True
        segmentation = item["segmentation"]
        kind = mask_fault(segmentation, width, height)
        if isinstance(segmentation, list) and (kind is None or kind == "have an empty mask"):
            polygons = [points for points in segmentation if is_polygon(points)]
            if len(polygons) < len(segmentation):
                change["segmentation"] = polygons
            if not polygons:
                return kind, True
        if kind is None and not fits(item["bbox"], mask_extent(segmentation, height)):
            kind = "have a box that does not fit their mask"
        return kind, kind is not None and kind not in (*HARMLESS, "have an empty mask")

    def _derive_doubtful_areas(self, annotations: list[Entry]) -> None:
        """Areas of 0, or far beyond their box, decide nothing but APs, APm and APl: a few stay, many are derived."""
        doubtful = [
            k
            for k, item in enumerate(annotations)
            if k not in self.removed
            and "area" not in self.changes[k]
            and not 0 < item["area"] <= 2 * (abs(item["bbox"][2]) + 1) * (abs(item["bbox"][3]) + 1)
            and item["bbox"][2] * item["bbox"][3] > 0
        ]
        if len(doubtful) > TOLERATED * len(annotations):
            self.counts["'area' is 0 or larger than the box: derived"] = len(doubtful)
            for k in doubtful:
                has_mask = self.masks and "segmentation" in annotations[k]
                self.changes[k]["area"] = _area(annotations[k], self.changes[k], has_mask)

    def _derivations(self) -> list[str]:
        return [f"{self.path.name}: {text} ({count})" for text, count in sorted(self.counts.items())]

    def _value(self, index: int, key: str) -> Any:
        return self.changes[index].get(key, self.raw["annotations"][index].get(key))

    def _corrected(
        self, images: dict[Any, Entry], categories: dict[Any, tuple[int, str]], remaining: list[int]
    ) -> dict[str, list[Entry]] | None:
        """The content that replaces the file, or None where nothing in it has to change."""
        annotations = self.raw["annotations"]
        ids = [item.get("id") for item in annotations]
        renumber = not all(isinstance(i, int) and not isinstance(i, bool) and 0 < i < LARGEST_ID for i in ids)
        changed = (
            any(
                item.get(key) != value
                for item, change in zip(annotations, self.changes)
                for key, value in change.items()
            )
            or any("keypoints" in item or "ignore" in item for item in annotations)
            or any(not isinstance(item.get("iscrowd"), int) for item in annotations)
        )
        if not (self.rewrite or self.removed or renumber or changed):
            return None
        keys = ["image_id", "category_id", "bbox", "area", "iscrowd", *(["segmentation"] if self.masks else [])]
        entries = []
        for number, k in enumerate(remaining, 1):
            item = annotations[k]
            entry = {key: value for key in keys if (value := self._value(k, key)) is not None}
            entry["id"] = number if renumber else item["id"]
            entry["image_id"], entry["category_id"] = images[item["image_id"]]["id"], categories[item["category_id"]][0]
            entries.append(entry)
        return {
            "images": list(images.values()),
            "annotations": entries,
            "categories": [{"id": number, "name": name} for number, name in categories.values()],
        }


def _area(item: Entry, change: Entry, has_mask: bool) -> float:
    if has_mask and "segmentation" in item:
        area: Callable[[Any], float] = mask_area
        return area(change.get("segmentation", item["segmentation"]))
    return float(abs(item["bbox"][2] * item["bbox"][3]))
