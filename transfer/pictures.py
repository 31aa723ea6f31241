"""Pictures of an evaluation: what was found in validation photos beside what is there, and curves of precision."""

import io
import json
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


def leave(evaluation: Evaluation, folder: Path, images: list[dict[str, Any]], name: str) -> dict[str, Path]:
    """Detections, pictures and curves in `folder`: the files by what they are. For `images` and `name` see below."""
    files = {"detections": evaluation.write(folder), "curves": folder / CURVES, "predictions": folder / GRID}
    draw_curves(folder, evaluation.curves)
    draw_predictions(files["predictions"], evaluation.shown, images, name)
    return files


def draw_predictions(
    path: Path, shown: list[tuple[dict[str, Any], Any]], images: list[dict[str, Any]], name: str
) -> None:
    """A grid of pairs: left what is there, right the best detections with their scores.

    Args:
        shown: images and their detections, as `transfer.evaluation.Evaluation.shown`.
        images: Detectron2's dictionaries of the validation set, with annotations.
        name: of that set in Detectron2's catalogue.
    """
    from detectron2.data import MetadataCatalog
    from detectron2.utils.visualizer import Visualizer
    from PIL import Image

    metadata, truths = MetadataCatalog.get(name), {image["file_name"]: image for image in images}
    pairs = []
    for image, found in shown:
        with Image.open(image["file_name"]) as file:
            pixels = np.asarray(file.convert("RGB"))
        best = found[found.scores.argsort(descending=True)[:BEST]]
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
    for place, (kind, rows) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(1, len(curves), place)
        for metric, precision in rows.items():
            axes.plot(recalls, precision, label=f"{metric} {100 * np.mean(precision):.1f}")
        axes.set(title=f"{kind}, mean over classes", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
        if rows:
            axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    write_atomically(folder / CURVES, content.getvalue())


def _grid(pairs: list[list[Any]]) -> Any:
    """Two pairs a row, each picture in a cell of `CELL` pixels, under a line that says which is which."""
    from PIL import Image, ImageDraw, ImageOps

    columns, (width, height) = 2 * min(2, len(pairs)), CELL
    rows = -(-2 * len(pairs) // columns)
    sheet = Image.new("RGB", (columns * width, HEADING + rows * height), "white")
    write = ImageDraw.Draw(sheet)
    for column in range(columns):
        write.text((column * width + 4, 2), ("in the annotations", f"found, best {BEST}")[column % 2], fill="black")
    for place, part in enumerate(part for pair in pairs for part in pair):
        fitted = ImageOps.pad(part, CELL, color="white")
        sheet.paste(fitted, (place % columns * width, HEADING + place // columns * height))
    return sheet


def _png(image: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()
