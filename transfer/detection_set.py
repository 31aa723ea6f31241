"""The detection set of a run, in the form of COCO, LVIS, Cityscapes or VOC: found, checked, known to Detectron2."""

from pathlib import Path
from typing import Any

from transfer import cityscapes_content, coco_layout, coco_set, voc_layout, voc_set
from transfer.coco_layout import USUAL_FILES, Files
from transfer.coco_set import CocoSet
from transfer.voc_set import VocSet
from whitebench.errors import UserError, nearest
from whitebench.hashing import content_hash
from whitebench.records import data_root

DetectionSet = CocoSet | VocSet
SKIPPED = "skipped_annotations.txt"
"""In a run's folder: the annotations that were left out, one per line."""


def find_folder(name: str | Path) -> Path:
    """A folder, or the one of this name in $WHITEBENCH_DATA.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(name), data_root() / name):
        if folder.is_dir():
            return folder
    if Path(name).is_file():
        raise UserError(f"{name}: is a file; --coco takes the folder, --train-json and --val-json the files in it")
    if str(name) in ("sample", "sample-det"):
        raise UserError(f"no sample in {data_root()} yet: python -m pretrain.data sample")
    names = [
        path.parent.name for layout in ("annotations", "VOC2007", "gtFine") for path in data_root().glob(f"*/{layout}")
    ]
    raise UserError(f"no COCO folder '{name}', here or in {data_root()}{nearest(str(name), names)}")


def annotation_hashes(folder: Path, files: Files = USUAL_FILES) -> dict[str, str]:
    """sha256 of the annotations, by split: of two files of COCO's, or of all of VOC's."""
    if _is_voc(folder, files):
        return voc_layout.annotation_hashes(folder)
    if _is_cityscapes(folder, files):
        return cityscapes_content.annotation_hashes(folder)
    return coco_set.annotation_hashes(folder, files)


def read_data(
    folder: Path,
    files: Files = USUAL_FILES,
    masks: bool = True,
    skip: bool = False,
    categories: tuple[str, ...] | None = None,
) -> DetectionSet:
    """Reads and checks the annotations; see `read_coco` and `read_voc`."""
    if _is_voc(folder, files):
        return voc_set.read_voc(folder, skip, categories)
    if _is_cityscapes(folder, files):
        return coco_set.read_cityscapes(folder, masks, skip, categories)
    return coco_set.read_coco(folder, files, masks, skip, categories)


def check_image_files(data: DetectionSet) -> None:
    """Decodes all images of val, and reads the headers of train's.

    Raises:
        UserError: an image does not decode, or is of another size than its annotations say.
    """
    if isinstance(data, VocSet):
        voc_set.check_image_files(data)
    else:
        coco_set.check_image_files(data)


def form(data: DetectionSet) -> str:
    """COCO, LVIS, Cityscapes or VOC."""
    if isinstance(data, VocSet):
        return "VOC"
    return data.form


def register(data: DetectionSet, folder: Path | None = None) -> tuple[list[str], str]:
    """Makes the set known to Detectron2: names of the parts to train with there, and of the one to evaluate with.

    Args:
        folder: of the run, where corrected annotations are written.
    """
    return voc_set.register(data) if isinstance(data, VocSet) else coco_set.register(data, folder)


def subset_of(images: list[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """`count` of these images (Detectron2's form), drawn by their names: the same ones whatever else the set holds."""
    if count is None or count >= len(images):
        return images
    drawn = sorted(images, key=lambda image: content_hash(Path(image["file_name"]).name))[:count]
    names = {image["file_name"] for image in drawn}
    return [image for image in images if image["file_name"] in names]


def _is_cityscapes(folder: Path, files: Files) -> bool:
    return files == USUAL_FILES and not coco_layout.is_coco(folder) and cityscapes_content.is_cityscapes(folder)


def _is_voc(folder: Path, files: Files) -> bool:
    return files == USUAL_FILES and not coco_layout.is_coco(folder) and voc_layout.is_voc(folder)
