"""Pictures of an evaluation: validation photos with their annotations and with detections, and precision curves."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from transfer.evaluation import Curves, Evaluation
from whitebench.files import write_atomically

GRID, CURVES, CURVE_VALUES = "predictions.png", "pr_curves.png", "pr_curves.json"
CELL, HEADING = (320, 240), 16
"""Width and height of a picture in the grid, and height of the line above it, pixels."""
BEST = 8
"""Detections drawn in a picture, by score, whatever their scores."""


def write_pictures(
    evaluation: Evaluation, folder: Path, images: list[dict[str, Any]], name: str, say: Callable[[str], None] = print
) -> dict[str, Path]:
    """Draws curves and predictions into `folder`; the files that were written, by what they show.

    A picture that cannot be drawn is reported and left out: it never costs a run its metrics.

    Args:
        images: Detectron2's dictionaries of the validation set, with annotations.
        name: of that set in Detectron2's catalogue.
    """
    files = {"curves": folder / CURVES, "predictions": folder / GRID}
    draw: dict[str, Callable[[], None]] = {
        "curves": lambda: draw_curves(folder, evaluation.curves),
        "predictions": lambda: draw_predictions(files["predictions"], evaluation.examples, images, name),
    }
    for kind, act in draw.items():
        try:
            act()
        except Exception as error:  # drawing libraries, on whatever people's annotations hold
            say(f"warning: no picture of {kind}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return {kind: path for kind, path in files.items() if path.exists()}


def draw_predictions(
    path: Path, examples: list[tuple[dict[str, Any], Any]], images: list[dict[str, Any]], name: str
) -> None:
    """A grid of pairs: left the annotations, right the best detections with their scores.

    Args:
        examples: images and their detections, as `transfer.evaluation.Evaluation.examples`.
        images, name: as `write_pictures` takes them.
    """
    from detectron2.data import MetadataCatalog
    from detectron2.data.detection_utils import read_image
    from detectron2.utils.visualizer import Visualizer
    from PIL import Image

    metadata, truths = MetadataCatalog.get(name), {image["file_name"]: image for image in images}
    pairs = []
    for image, detections in examples:
        pixels = read_image(image["file_name"], format="RGB")  # turned as EXIF says, as the boxes are
        best = detections[detections.scores.argsort(descending=True)[:BEST]]
        truth = Visualizer(pixels, metadata).draw_dataset_dict(dict(truths[image["file_name"]])).get_image()
        drawn = Visualizer(pixels, metadata).draw_instance_predictions(best).get_image()
        pairs.append([Image.fromarray(np.ascontiguousarray(part)) for part in (truth, drawn)])
    if pairs:
        write_atomically(path, _png(_grid(pairs)))


def draw_curves(folder: Path, curves: Curves) -> None:
    """`pr_curves.png` and its values in `pr_curves.json`."""
    from matplotlib.figure import Figure

    write_atomically(folder / CURVE_VALUES, json.dumps(curves).encode())
    recalls = np.linspace(0, 1, 101)
    figure = Figure(figsize=(5 * max(1, len(curves)), 4), layout="constrained")
    for number, (kind, rows) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(1, len(curves), number)
        for metric, precision in rows.items():
            axes.plot(recalls, precision, label=f"{metric} {100 * np.mean(precision):.1f}")
        axes.set(title=f"{kind}, mean over classes", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
        if rows:
            axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    write_atomically(folder / CURVES, content.getvalue())


def _grid(pairs: list[list[Any]]) -> Any:
    """Two pairs per row, each picture in a cell of `CELL` pixels, under a line that says which is which."""
    from PIL import Image, ImageDraw, ImageOps

    columns, (width, height) = 2 * min(2, len(pairs)), CELL
    rows = -(-2 * len(pairs) // columns)
    sheet = Image.new("RGB", (columns * width, HEADING + rows * height), "white")
    write = ImageDraw.Draw(sheet)
    for column in range(columns):
        write.text((column * width + 4, 2), ("annotations", f"best {BEST} detections")[column % 2], fill="black")
    for number, part in enumerate(part for pair in pairs for part in pair):
        fitted = ImageOps.pad(part, CELL, color="white")
        sheet.paste(fitted, (number % columns * width, HEADING + number // columns * height))
    return sheet


def _png(image: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()
