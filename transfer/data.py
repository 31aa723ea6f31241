"""The detection set of a run, in COCO's or VOC's layout: found, read, checked, known to Detectron2, cut to a part."""

from pathlib import Path
from typing import Any

from transfer import coco_data, voc_data
from transfer.coco_data import CocoSet
from transfer.voc_data import VocSet
from whitebench.errors import UserError, nearest
from whitebench.hashing import content_hash
from whitebench.records import data_root

DetectionSet = CocoSet | VocSet


def find_folder(given: str | Path) -> Path:
    """A folder, or the name of one in $WHITEBENCH_DATA.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(given), data_root() / given):
        if folder.is_dir():
            return folder
    if str(given) in ("sample", "sample-det"):
        raise UserError(f"there is no sample in {data_root()} yet: python -m pretrain.data sample")
    there = [path.parent.name for layout in ("annotations", "VOC2007") for path in data_root().glob(f"*/{layout}")]
    raise UserError(f"there is no COCO folder '{given}', here or in {data_root()}{nearest(str(given), there)}")


def annotation_hashes(folder: Path) -> dict[str, str]:
    """sha256 of the annotations, by split: of two files of COCO's, or of all of VOC's."""
    return voc_data.annotation_hashes(folder) if voc_data.is_voc(folder) else coco_data.annotation_hashes(folder)


def read_data(folder: Path) -> DetectionSet:
    """Reads and checks the set; see `read_coco` and `read_voc`."""
    return voc_data.read_voc(folder) if voc_data.is_voc(folder) else coco_data.read_coco(folder)


def register(data: DetectionSet) -> tuple[list[str], str]:
    """Makes the set known to Detectron2: names of the parts to train with there, and of the one to judge by."""
    return voc_data.register(data) if isinstance(data, VocSet) else coco_data.register(data)


def part_of(images: list[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """`count` of these images (Detectron2's form), drawn by their names: the same ones whatever else the set holds."""
    if count is None or count >= len(images):
        return images
    drawn = sorted(images, key=lambda image: content_hash(Path(image["file_name"]).name))[:count]
    names = {image["file_name"] for image in drawn}
    return [image for image in images if image["file_name"] in names]
