"""A detection set of a few drawn rectangles in LVIS's layout, for tests."""

import json
from pathlib import Path
from typing import Any

from tests.support.coco_folder import write_coco

CATEGORIES = [
    {"id": 1, "name": "red", "frequency": "f", "image_count": 6, "synset": "red.n.01", "synonyms": ["red"], "def": ""},
    {
        "id": 2,
        "name": "blue",
        "frequency": "r",
        "image_count": 6,
        "synset": "blue.n.01",
        "synonyms": ["blue"],
        "def": "",
    },
    {
        "id": 3,
        "name": "green",
        "frequency": "c",
        "image_count": 0,
        "synset": "green.n.01",
        "synonyms": ["green"],
        "def": "",
    },
]
NEW_IDS = {3: 1, 7: 2}


def write_lvis(folder: Path, **options: Any) -> Path:
    """Red and blue rectangles; of val's images, the first was not looked at for blue exhaustively, no one has green."""
    write_coco(folder, **options)
    for split in ("train", "val"):
        old = folder / "annotations" / f"instances_{split}2017.json"
        raw = json.loads(old.read_text())
        for number, image in enumerate(raw["images"]):
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image.pop('file_name')}"
            image["neg_category_ids"] = [3]
            image["not_exhaustive_category_ids"] = [] if number else [2]
        for item in raw["annotations"]:
            item["category_id"] = NEW_IDS[item["category_id"]]
            del item["iscrowd"]
        raw["categories"] = CATEGORIES
        (folder / f"lvis_v1_{split}.json").write_text(json.dumps(raw))
        old.unlink()
    return folder
