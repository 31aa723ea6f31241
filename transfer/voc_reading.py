"""Reads VOC's annotation files in a process of its own, which is ended when one file takes too long.

python -m transfer.voc_reading FOLDER     parses what FOLDER/files.json lists, and writes FOLDER/images.json
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from transfer.trial_process import SECONDS, announce_ready, attempt, run_trial
from transfer.voc_xml import VocImage, VocObject, parse_image
from whitebench.errors import UserError

FILES, IMAGES = "files.json", "images.json"


def read_images(files: list[tuple[Path, Path]], seconds: float = SECONDS) -> list[VocImage]:
    """Parses annotation files.

    Args:
        files: each annotation, and the image that it describes.
        seconds: for one file.
    Raises:
        UserError: one cannot be read (see `parse_image`), or not in time.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / FILES).write_text(json.dumps([[str(path.absolute()) for path in pair] for pair in files]))
        fault = run_trial("transfer.voc_reading", folder, "the XML parser", seconds)
        if fault is not None:
            path = files[int(fault.item)][0] if fault.item else files[0][0].parent
            raise UserError(f"{path}: cannot be read ({fault.message})")
        answer = json.loads((folder / IMAGES).read_text())
    if isinstance(answer, str):
        raise UserError(answer)
    return [_image(*pair, *content) for pair, content in zip(files, answer)]


def _image(annotation: Path, image: Path, width: int, height: int, objects: list[Any]) -> VocImage:
    items = tuple(VocObject(name, difficult, tuple(box)) for name, difficult, box in objects)
    return VocImage(annotation.stem, image, annotation, width, height, items)


def _content(image: VocImage) -> list[Any]:
    return [image.width, image.height, [[item.name, item.difficult, item.box] for item in image.objects]]


def _read_listed(folder: Path) -> None:
    """Writes the contents of all images, or the message about the first that cannot be read."""
    files = [(Path(annotation), Path(image)) for annotation, image in json.loads((folder / FILES).read_text())]
    announce_ready()
    answer: list[Any] | str = []
    try:
        answer = [
            _content(attempt(number, partial(parse_image, annotation, image)))
            for number, (annotation, image) in enumerate(files)
        ]
    except UserError as error:
        answer = str(error)
    (folder / IMAGES).write_text(json.dumps(answer))


if __name__ == "__main__":
    _read_listed(Path(sys.argv[1]))
