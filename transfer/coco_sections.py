"""What every entry of a COCO annotation file needs: sections, keys, ids, names, sizes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfer.annotation_checks import is_number
from whitebench.errors import UserError

NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
LARGEST_SIDE = 1_000_000


def check_sections(path: Path, raw: Any) -> None:
    """Raises `UserError` where a section, or what each of its entries needs, is missing."""
    for section, needed in NEEDED.items():
        if not isinstance(raw, dict) or not isinstance(raw.get(section), list):
            raise UserError(f"{path}: not COCO annotations, it has no list '{section}'")
        for item in raw[section]:
            absent = [key for key in needed if not isinstance(item, dict) or key not in item]
            if absent:
                raise UserError(f"{path}: an entry of '{section}' has no '{absent[0]}': {ascii(item)[:80]}")
        _check_ids(path, section, raw[section])


def _check_ids(path: Path, section: str, entries: list[dict[str, Any]]) -> None:
    ids = [item["id"] for item in entries if "id" in item or section != "annotations"]
    for value in ids:
        if not isinstance(value, int | float | str) or (isinstance(value, float) and not is_number(value)):
            raise UserError(f"{path}: an entry of '{section}' has the id {ascii(value)[:40]}: not a number or a text")
    double = next((value for value, count in Counter(ids).items() if count > 1), None)
    if double is not None:
        raise UserError(f"{path}: two entries of '{section}' have the id {ascii_text(double)}")


def check_names(path: Path, names: Sequence[str], order: Sequence[str]) -> None:
    """Raises `UserError` where the categories `names` are others than those of `order`."""
    for these, those, text in ((names, order, "'{}' is not among them"), (order, names, "'{}' is missing")):
        other = sorted(set(these) - set(those))
        if other:
            raise UserError(
                f"{path}: its {len(names)} categories are not the {len(order)} that are expected: "
                + text.format(ascii_text(other[0]))
            )
    if len(set(names)) < len(names):
        double = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{path}: two categories have the name '{ascii_text(double)}'")


def ascii_text(value: Any) -> str:
    """For messages: a text as it is, but for characters that a terminal cannot print."""
    return str(value)[:80].encode("utf-8", "backslashreplace").decode()


def whole_side(value: Any) -> int | None:
    """A side of an image: a positive whole number, also one written as 640.0; None for anything else."""
    if not is_number(value) or not 0 < value <= LARGEST_SIDE or value != int(value):
        return None
    return int(value)


def is_encodable(name: str) -> bool:
    try:
        return "\0" not in name and bool(name.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
