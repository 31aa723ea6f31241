"""What LVIS's annotations hold beyond COCO's, checked before training.

Each image names the categories that were looked for and are absent (neg_category_ids), and those that are not annotated
exhaustively; detections of all other categories are not judged there. Each category has a frequency: r, c or f.
Source: Gupta et al., arXiv 1908.03195; the `lvis` package.
"""

from pathlib import Path
from typing import Any

from transfer.coco_sections import ascii_text
from whitebench.errors import UserError

FREQUENCIES = ("r", "c", "f")
"""Rare, common, frequent: 1 to 10, 11 to 100, more images in train."""
LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
LOCAL = "./"
"""Begins the address of an image that has a file's name alone."""
Entry = dict[str, Any]


def is_lvis(raw: Any) -> bool:
    """Whether annotations are LVIS's: any image has its lists, or any category its frequency."""
    if not isinstance(raw, dict):
        return False
    images, categories = _entries(raw, "images"), _entries(raw, "categories")
    return any(LISTS[0] in image for image in images[:100]) or any("frequency" in item for item in categories)


def _entries(raw: dict[str, Any], section: str) -> list[Entry]:
    """What is a mapping there; `check_content` refuses the rest."""
    entries = raw.get(section)
    return [item for item in entries if isinstance(item, dict)] if isinstance(entries, list) else []


def as_coco(path: Path, raw: dict[str, Any]) -> None:
    """Checks what LVIS needs and adds, in place, what COCO's checks look for: file_name and iscrowd.

    Raises:
        UserError: an annotation without polygons; an image without a file's name, or without a list that evaluation
            needs; a category id in those lists that does not exist; categories without a frequency, or whose ids are
            not 1 to their number.
    """
    ids = _category_ids(path, raw)
    for image in _entries(raw, "images"):
        name = ascii_text(image.get("id"))
        if not isinstance(image.get("id"), int):
            raise UserError(f"{path}: an image has the id {name}; LVIS's are whole numbers")
        if not isinstance(image.get("coco_url"), str) and isinstance(image.get("file_name"), str):
            image["coco_url"] = LOCAL + image["file_name"]  # which Detectron2 reads
        image["file_name"] = _file_name(image)
        if image["file_name"] is None:
            raise UserError(f"{path}: image {name} has neither 'coco_url' nor 'file_name'")
        for key in LISTS:
            listed = image.get(key)
            if not isinstance(listed, list):
                raise UserError(f"{path}: image {name} has no list '{key}', which LVIS's evaluation needs")
            unknown = next((value for value in listed if not isinstance(value, int) or value not in ids), None)
            if unknown is not None:
                raise UserError(f"{path}: image {name} names an unknown category {ascii_text(unknown)} in '{key}'")
    for item in _entries(raw, "annotations"):
        item.setdefault("iscrowd", 0)
        if not isinstance(item.get("segmentation"), list):
            raise UserError(
                f"{path}: annotation {ascii_text(item.get('id'))} has no polygons, as LVIS's annotations have"
            )


def image_counts(raw: dict[str, Any]) -> list[int]:
    """Images of the annotations with each category, in the order of their ids; what a federated loss weighs by."""
    images: dict[int, set[Any]] = {item["id"]: set() for item in raw["categories"]}
    for item in raw["annotations"]:
        images[item["category_id"]].add(item["image_id"])
    return [len(images[key]) for key in sorted(images)]


def category_names(raw: dict[str, Any]) -> list[Any]:
    """In the order of their ids, as a detector knows them."""
    return [item.get("name") for item in sorted(_entries(raw, "categories"), key=lambda item: item.get("id") or 0)]


def corrected_lvis(raw: dict[str, Any], corrected: dict[str, list[Entry]] | None) -> dict[str, list[Entry]] | None:
    """What replaces a file: COCO's corrected content with LVIS's own keys again; None: the file itself is used."""
    if corrected is None:
        return raw if any(image["coco_url"].startswith(LOCAL) for image in raw["images"]) else None
    images = {image["id"]: image for image in raw["images"]}
    categories = {item["id"]: item for item in raw["categories"]}
    return {
        **corrected,
        "annotations": [{**item, **({"ignore": 1} if item["iscrowd"] else {})} for item in corrected["annotations"]],
        "images": [{**images[image["id"]], **image} for image in corrected["images"]],
        "categories": [categories[item["id"]] for item in corrected["categories"]],
    }


def _category_ids(path: Path, raw: dict[str, Any]) -> set[int]:
    entries = _entries(raw, "categories")
    for item in entries:
        if item.get("frequency") not in FREQUENCIES:
            raise UserError(
                f"{path}: category {ascii_text(item.get('name', item.get('id')))} has the frequency "
                f"{ascii_text(item.get('frequency'))}; LVIS's are r, c and f"
            )
    ids = [item.get("id") for item in entries]
    if sorted(value for value in ids if isinstance(value, int)) != list(range(1, len(ids) + 1)):
        raise UserError(f"{path}: LVIS's category ids are 1 to {len(ids)}, each once; these are others")
    return set(range(1, len(ids) + 1))


def _file_name(image: Entry) -> str | None:
    """train2017/000000155379.jpg, of the photo's address at COCO; LVIS's images are COCO's, of both of its parts."""
    url = image.get("coco_url")
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) and url.count("/") else None
