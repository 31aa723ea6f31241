"""A detection set in COCO's format, LVIS's or Cityscapes': read, checked, and made known to Detectron2."""

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from transfer import cityscapes_content
from transfer.coco_content import CocoContent, check_content
from transfer.coco_layout import USUAL_FILES, Files, SplitFiles, split_files
from transfer.coco_sections import ascii_text, check_names
from transfer.detectron import quiet
from transfer.image_checks import check_images
from transfer.lvis_content import as_coco, category_names, corrected_lvis, image_counts, is_lvis
from whitebench.errors import UserError
from whitebench.files import write_atomically
from whitebench.hashing import file_hash


@dataclass(frozen=True)
class CocoSplit:
    annotations: Path
    images: Path
    content: CocoContent


@dataclass(frozen=True)
class RawAnnotations:
    """Both splits' annotations in another form: LVIS's, as `lvis_content.as_coco` left them, or of Cityscapes."""

    form: Literal["LVIS", "Cityscapes"]
    train: dict[str, Any]
    val: dict[str, Any]

    def replaced(self, use: str, corrected: dict[str, Any] | None) -> dict[str, Any] | None:
        """What replaces the annotation file of a split; None: the file itself is used."""
        raw = self.train if use == "train" else self.val
        return corrected_lvis(raw, corrected) if self.form == "LVIS" else corrected or raw


@dataclass(frozen=True)
class CocoSet:
    """A set in which everything was checked."""

    folder: Path
    train: CocoSplit
    val: CocoSplit
    raw: RawAnnotations | None = None
    """Of annotations in another form than COCO's."""

    @property
    def form(self) -> str:
        """COCO, LVIS or Cityscapes."""
        return self.raw.form if self.raw is not None else "COCO"

    @property
    def categories(self) -> tuple[str, ...]:
        """Names, in the order of a detector's classes."""
        return self.train.content.categories

    @property
    def mask_format(self) -> str:
        """Detectron2's INPUT.MASK_FORMAT: "bitmask" where masks are run-length coded, else "polygon"."""
        return "bitmask" if self.train.content.coded else "polygon"

    @property
    def has_masks(self) -> bool:
        return self.train.content.has_masks and self.val.content.has_masks

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found wrong and is tolerated, and what was derived."""
        return (*self.train.content.notes, *self.val.content.notes)

    @property
    def skipped(self) -> tuple[str, ...]:
        return (*self.train.content.skipped, *self.val.content.skipped)

    @property
    def counts(self) -> dict[str, int]:
        splits = (("train", self.train.content), ("val", self.val.content))
        return {
            f"{name}_{key}": len(content.names) if key == "images" else content.objects
            for name, content in splits
            for key in ("images", "objects")
        }

    @property
    def differences(self) -> list[str]:
        """Deviations from the published COCO 2017: images of val that are also trained."""
        shared = _shared_images(self.train, self.val)
        lines = [f"data: {shared} of {len(self.val.content.names)} val images are also in train"] if shared else []
        if self.form == "Cityscapes":
            lines.append("data: masks of Cityscapes' instance ids, published those of its polygons (the same objects)")
        return lines


def annotation_hashes(folder: Path, files: Files = USUAL_FILES) -> dict[str, str]:
    """sha256 of both annotation files, e.g. {"train2017": ..., "val2017": ...}."""
    paths = {split.name: split.annotations for split in split_files(folder, files)}
    return {name: _hash(path, path.stat().st_size, path.stat().st_mtime_ns) for name, path in paths.items()}


@lru_cache
def _hash(path: Path, size: int, modified: int) -> str:
    """Of a file that has this size and time: COCO's is 450 MB, and a sweep asks for it once per cell."""
    return file_hash(path)


def read_coco(
    folder: Path,
    files: Files = USUAL_FILES,
    masks: bool = True,
    skip: bool = False,
    categories: tuple[str, ...] | None = None,
) -> CocoSet:
    """Reads and checks the annotations of both splits, and that their images exist.

    Args:
        masks: whether masks are trained and evaluated.
        skip: leave out every faulty annotation.
        categories: names in the order in which a detector knows them; None: the order of the ids in train.
    Raises:
        UserError: annotations or images missing (counted, the first named), not COCO's JSON, splits that do not fit.
    """
    train_files, val_files = split_files(folder, files)
    train_raw = _load(train_files.annotations)
    train = _checked_split(train_files, train_raw, masks, skip, categories)
    raw = _load(val_files.annotations)
    if is_lvis(train_raw) != is_lvis(raw):
        raise UserError(
            f"{folder}: {train_files.name} and {val_files.name} are of COCO's and of LVIS's form, not of one"
        )
    names = [item["name"] for item in raw["categories"]] if _has_names(raw) else []
    if names and set(names) != set(train.content.categories):
        _refuse_other_categories(folder, (train_files.name, val_files.name), names, train.content.categories)
    val = _checked_split(val_files, raw, masks, skip, train.content.categories)
    return CocoSet(folder, train, val, RawAnnotations("LVIS", train_raw, raw) if is_lvis(raw) else None)


def read_cityscapes(folder: Path, masks: bool, skip: bool, categories: tuple[str, ...] | None) -> CocoSet:
    """As `read_coco`, of Cityscapes' folders; see `transfer.cityscapes_content`."""
    raw, splits = {}, {}
    for split in cityscapes_content.SPLITS:
        truths, images = folder / cityscapes_content.TRUTHS / split, cityscapes_content.image_folder(folder, split)
        raw[split] = cityscapes_content.read_split(folder, split)
        splits[split] = CocoSplit(truths, images, check_content(truths, raw[split], masks, skip, categories))
    return CocoSet(folder, splits["train"], splits["val"], RawAnnotations("Cityscapes", raw["train"], raw["val"]))


def check_image_files(coco: CocoSet) -> None:
    """Decodes all images of val, and reads the headers of train's; raises `UserError` for the first that is wrong."""
    for split, decode in ((coco.train, False), (coco.val, True)):
        content = split.content
        check_images(((split.images / name, *size) for name, size in zip(content.names, content.sizes)), decode)


def register(coco: CocoSet, folder: Path | None = None) -> tuple[list[str], str]:
    """Makes the set known to Detectron2; the names there of what is trained, and of what is evaluated.

    Args:
        folder: where corrected annotations are written.
    Raises:
        UserError: annotations are corrected, and no folder is given for them.
    """
    names = []
    for use, split in (("train", coco.train), ("val", coco.val)):
        path, corrected = split.annotations, split.content.corrected
        if coco.raw is not None:
            corrected = coco.raw.replaced(use, corrected)
        if corrected is not None:
            if folder is None:
                raise UserError(f"{path}: needs corrections, but no folder to write them to was passed")
            path = folder / "annotations" / f"{use}.json"
            write_atomically(path, json.dumps(corrected).encode())
        names.append(
            _registered(path, split.images) if coco.form != "LVIS" else _registered_lvis(path, split.images, coco)
        )
    return names[:-1], names[-1]


def _registered(path: Path, images: Path) -> str:
    from detectron2.data import DatasetCatalog
    from detectron2.data.datasets import register_coco_instances

    name = f"coco-{file_hash(path)[:12]}-{path.resolve()}-{images.resolve()}"
    if name not in DatasetCatalog:
        with quiet("detectron2"):
            register_coco_instances(name, {}, str(path), str(images))
    return name


def _registered_lvis(path: Path, images: Path, coco: CocoSet) -> str:
    """By Detectron2's own reader of LVIS's form."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import load_lvis_json

    assert coco.raw is not None
    name = f"lvis-{file_hash(path)[:12]}-{path.resolve()}-{images.resolve()}"
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_lvis_json(str(path), f"{images}/"))
        counts = [{"id": number, "image_count": count} for number, count in enumerate(image_counts(coco.raw.train), 1)]
        MetadataCatalog.get(name).set(
            json_file=str(path),
            image_root=str(images),
            evaluator_type="lvis",
            thing_classes=list(coco.categories),
            class_image_count=counts,
        )
    return name


def _load(path: Path) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON, or truncated ({ascii_text(error)})") from error
    return raw


def _has_names(raw: Any) -> bool:
    entries = raw.get("categories") if isinstance(raw, dict) else None
    return isinstance(entries, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) for item in entries
    )


def _refuse_other_categories(
    folder: Path, splits: tuple[str, str], names: list[str], expected: tuple[str, ...]
) -> None:
    try:
        check_names(folder, names, expected)
    except UserError as error:
        detail = str(error).rpartition(": ")[2]
        raise UserError(
            f"{folder}: the categories of {splits[0]} and {splits[1]} are not the same ({splits[1]}: {detail})"
        ) from error


def _checked_split(
    files: SplitFiles, raw: dict[str, Any], masks: bool, skip: bool, order: tuple[str, ...] | None
) -> CocoSplit:
    if is_lvis(raw):
        as_coco(files.annotations, raw)
        masks = True  # Detectron2's reader takes them, whether they are trained or not
        if order is not None:
            order = None if list(order) == category_names(raw) else order
    content = check_content(files.annotations, raw, masks, skip, order)
    return CocoSplit(files.annotations, _image_folder(files, content.names), content)


def _image_folder(files: SplitFiles, names: tuple[str, ...]) -> Path:
    """The folder that holds the images.

    Raises:
        UserError: images are missing.
    """
    some = names[:: max(1, len(names) // 20)]
    folder = next((f for f in files.images if any(os.path.isfile(f / name) for name in some)), files.images[0])
    listed = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    missing = [name for name in names if name not in listed and not os.path.isfile(folder / name)]
    if missing:
        raise UserError(f"{folder}: {len(missing)} of {len(names)} images are missing, e.g. {ascii_text(missing[0])}")
    return folder


def _shared_images(train: CocoSplit, val: CocoSplit) -> int:
    """Images of val that train holds, too: of one path, or of one name and the same bytes."""
    names = set(train.content.names) & set(val.content.names)
    if train.images.resolve() == val.images.resolve():
        return len(names)
    return sum(_same_bytes(train.images / name, val.images / name) for name in names)


def _same_bytes(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()
