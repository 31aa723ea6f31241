"""One image's annotations in VOC's XML: read, and written as Detectron2's evaluator reads it."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transfer.annotation_checks import is_number
from transfer.coco_sections import LARGEST_SIDE, ascii_text
from whitebench.errors import UserError

SIDES = ("xmin", "ymin", "xmax", "ymax")
FLAGS = {"0": False, "1": True}


@dataclass(frozen=True)
class VocObject:
    name: str
    difficult: bool
    box: tuple[float, float, float, float]
    """Left, top, right, bottom, in pixels counted from 1, both ends within."""

    @property
    def is_whole(self) -> bool:
        return all(side == round(side) for side in self.box)


@dataclass(frozen=True)
class VocImage:
    name: str
    path: Path
    annotation: Path
    width: int
    height: int
    objects: tuple[VocObject, ...]

    def with_objects(self, objects: tuple[VocObject, ...]) -> "VocImage":
        return replace(self, objects=objects)


def parse_image(annotation: Path, image: Path) -> VocImage:
    """Reads one annotation file; what nothing depends on (pose, truncated, ...) may be missing or of any form.

    Raises:
        UserError: it is missing, not XML, or lacks what is needed.
    """
    try:
        tree = ET.parse(annotation).getroot()
    except FileNotFoundError as error:
        raise UserError(f"{annotation}: is missing, though the lists name it") from error
    except (ET.ParseError, ValueError, LookupError) as error:  # also an encoding that does not exist
        raise UserError(f"{annotation}: not XML, or truncated ({ascii_text(error)})") from error
    width, height = (_side(annotation, tree.find("size"), side) for side in ("width", "height"))
    objects = tuple(_object(annotation, item) for item in tree.findall("object"))
    return VocImage(annotation.stem, image, annotation, width, height, objects)


def _object(path: Path, item: ET.Element) -> VocObject:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{path}: an object has no name")
    difficult = FLAGS.get((item.findtext("difficult") or "").strip())
    if difficult is None:
        raise UserError(f"{path}: an object does not say whether it is difficult (0 or 1)")
    box = tuple(_number(path, item.find("bndbox"), side) for side in SIDES)
    return VocObject(name, difficult, box)  # type: ignore[arg-type]  # four of them


def _side(path: Path, node: Any, key: str) -> int:
    value = _number(path, node, key)
    if not is_number(value) or not 1 <= value <= LARGEST_SIDE:
        raise UserError(f"{path}: has the impossible {key} {value:g}")
    return int(value)


def _number(path: Path, node: Any, key: str) -> float:
    text = node.findtext(key) if node is not None else None
    try:
        return float(text or "")
    except ValueError as error:
        fault = f"not a number: {ascii_text(text)[:40]}" if text else "missing"
        raise UserError(f"{path}: '{key}' is {fault}") from error


def evaluation_xml(image: VocImage, names: dict[str, str]) -> bytes:
    """The annotations as Detectron2's `parse_rec` takes them: whole pixels, every element that it asks for.

    Args:
        names: what each class is called there.
    """
    root = ET.Element("annotation")
    for item in image.objects:
        node = ET.SubElement(root, "object")
        for key, text in (
            ("name", names[item.name]),
            ("pose", "Unspecified"),
            ("truncated", "0"),
            ("difficult", str(int(item.difficult))),
        ):
            ET.SubElement(node, key).text = text
        box = ET.SubElement(node, "bndbox")
        for key, value in zip(SIDES, item.box):
            ET.SubElement(box, key).text = str(round(value))
    return ET.tostring(root)
