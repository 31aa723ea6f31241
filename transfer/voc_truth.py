"""VOC's annotations as the evaluators of boxes read them: Detectron2's parser, and pycocotools."""

from pathlib import Path
from typing import Any

from transfer.voc_xml import VocImage, evaluation_xml


def write_truths(folder: Path, truths: list[VocImage], categories: tuple[str, ...]) -> None:
    """Writes the annotations and the list of their images, as Detectron2's evaluator of VOC reads them.

    Classes are called class0, class1, ...: they give names to its files.
    """
    names = {category: f"class{number}" for number, category in enumerate(categories)}
    for image in truths:
        (folder / f"{image.name}.xml").write_bytes(evaluation_xml(image, names))
    (folder / "images.txt").write_text("\n".join(image.name for image in truths))


def voc_by_coco(truths: list[VocImage], detections: list[dict[str, Any]], categories: tuple[str, ...]) -> Any:
    """pycocotools' evaluation of boxes on VOC; difficult objects are crowds there: found or not, they do not count.

    Returns:
        A COCOeval; None without detections.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not detections:
        return None
    truth = COCO()
    objects: list[dict[str, Any]] = []
    for image in truths:
        for item in image.objects:
            left, top, right, bottom = item.box
            box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            objects.append({
                "id": len(objects) + 1, "image_id": image.name, "category_id": categories.index(item.name),
                "bbox": box, "area": box[2] * box[3], "iscrowd": int(item.difficult),
            })  # fmt: skip
    truth.dataset = {
        "images": [{"id": image.name} for image in truths],
        "annotations": objects,
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories)],
    }
    truth.createIndex()
    coco_eval = COCOeval(truth, truth.loadRes(detections), "bbox")
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval
