"""Whatever annotations hold, they are either refused in one line, or evaluated to the end by the libraries."""

import contextlib
import copy
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.coco_folder import write_coco
from tests.support.lvis_folder import write_lvis
from tests.support.voc_folder import write_voc
from transfer.coco_content import CocoContent, check_content
from transfer.lvis_content import as_coco, category_names, corrected_lvis, is_lvis
from transfer.lvis_evaluation import lvis_api
from transfer.voc_xml import evaluation_xml, parse_image
from whitebench.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
T = TypeVar("T")
QUICK, LONG = 200, 10_000
ODD_NUMBERS = [0, -1, 1, 0.5, 640.0, 2**60, 10**400, 1e400, -1e400, float("nan"), 10**9]
ODD_MASKS: list[Any] = [
    [[float("nan")] * 6],
    [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]],
    [[1, 2, 3, 4]],
    [[[1, 2], [3, 4]]],
    [[0, 0, 10**9, 0, 5, 5]],
    [[5, 5, 9, None, 9, 9]],
    {"size": [64, 64], "counts": "PPYo0"},
    {"size": [64, 64], "counts": "oooooooooooooooooooo"},
    {"size": [64, 64], "counts": ""},
    {"size": [64, 64], "counts": [64 * 64]},
    {"size": [64, 64], "counts": [-1, 64 * 64 + 1]},
    {"size": [64, 64], "counts": [10**9]},
    {"size": [64, 64], "counts": [1.5, 64 * 64 - 1.5]},
    {"size": [1, 1]},
]
ODD_VALUES: list[Any] = [
    *ODD_NUMBERS, *ODD_MASKS, None, True, False, "", "0", "1", "text", "\0", "a\ud800", [], {}, [1], [None],
    [1, 2, "x", 4], [1, 2, 3, 4], [0.1, 0.1, 0.5, 0.5],
]  # fmt: skip
KEYS = ["ignore", "keypoints", "iscrowd", "area", "segmentation"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Content of val, with polygons and with run-length codes; 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("fuzz")
    return [
        json.loads((write_coco(folder / str(coded), coded=coded) / "annotations/instances_val2017.json").read_text())
        for coded in (False, True)
    ]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutate(data: st.DataObject, content: dict[str, Any]) -> None:
    """Changes, removes, doubles or adds something somewhere."""
    *path, last = data.draw(st.sampled_from(list(places(content))))
    parent: Any = content
    for key in path:
        parent = parent[key]
    change = data.draw(st.sampled_from(["value", "value", "value", "remove", "double", "key"]))
    if change == "remove":
        del parent[last]
    elif change == "double" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[last]))
    elif change == "key" and isinstance(parent, dict):
        parent[data.draw(st.sampled_from(KEYS))] = copy.deepcopy(data.draw(st.sampled_from(ODD_VALUES)))
    else:
        parent[last] = copy.deepcopy(data.draw(st.sampled_from(ODD_VALUES)))


def checked_or_message(act: Callable[[], T]) -> T | str:
    try:
        return act()
    except UserError as error:
        return str(error)


def assert_printable(line: str) -> None:
    assert "\n" not in line
    line.encode()


def check_coco(data: st.DataObject, originals: list[dict[str, Any]], path: Path) -> None:
    content = copy.deepcopy(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(data, content)
    masks = data.draw(st.booleans())
    path.write_text(json.dumps(content))
    raw = json.loads(path.read_bytes())
    skip = data.draw(st.booleans())
    checked = checked_or_message(lambda: check_content(path, raw, masks, skip))
    if isinstance(checked, str):
        assert_printable(checked)
        return
    for line in (*checked.notes, *checked.skipped):
        assert_printable(line)
    if checked.corrected is not None:
        path.write_text(json.dumps(checked.corrected))
    evaluate_itself(path, masks)


def evaluate_itself(path: Path, masks: bool) -> None:
    """Loads the file as Detectron2 does, and evaluates its annotations as if they were detections."""
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import load_coco_json
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert load_coco_json(str(path), "images", "fuzz")
    MetadataCatalog.remove("fuzz")  # the next example has other classes
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        detections = [
            {"image_id": item["image_id"], "category_id": item["category_id"], "bbox": item["bbox"], "score": 0.5}
            for item in truth.dataset["annotations"]
        ]
        for item, detection in zip(truth.dataset["annotations"], detections):
            if masks:
                detection["segmentation"] = truth.annToRLE(item)
        for task in ("bbox", *(["segm"] if masks else [])):
            evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), task)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()


@settings(max_examples=QUICK, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_coco_annotations_are_refused_or_evaluated(
    data: st.DataObject, originals: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_coco(data, originals, tmp_path_factory.getbasetemp() / "fuzz.json")


@pytest.mark.long
@pytest.mark.timeout(7200)
@settings(max_examples=LONG, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_coco_annotations_are_refused_or_evaluated(
    data: st.DataObject, originals: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_coco(data, originals, tmp_path_factory.getbasetemp() / "fuzz-long.json")


TEXTS = [
    "", "0", "1", "-5", "3.7", "1e400", "nan", "inf", "three", "9" * 400, "&lt;", "<b/>", "<name>cat</name>", "\0",
    "é", "<object/>", "</object>", "<bndbox><xmin>1</xmin></bndbox>", '<!DOCTYPE a [<!ENTITY x "y">]>', "&x;",
]  # fmt: skip


@pytest.fixture(scope="module")
def annotation(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (write_voc(tmp_path_factory.mktemp("voc")) / "VOC2007/Annotations/000000.xml").read_bytes()


def check_voc(data: st.DataObject, annotation: bytes, path: Path) -> None:
    from detectron2.evaluation.pascal_voc_evaluation import parse_rec

    text = annotation.decode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 40)))
        text = text[:start] + data.draw(st.sampled_from(TEXTS)) + text[end:]
    path.write_bytes(text.encode(data.draw(st.sampled_from(["utf-8", "utf-16", "latin-1"])), "replace"))
    image = checked_or_message(lambda: parse_image(path, path.with_suffix(".jpg")))
    if isinstance(image, str):
        assert_printable(image)
        return
    finite = tuple(item for item in image.objects if all(abs(side) < 1e9 for side in item.box))  # others are faulty
    names = {item.name: f"class{k}" for k, item in enumerate(finite)}
    path.write_bytes(evaluation_xml(image.with_objects(finite), names))
    assert len(parse_rec.__wrapped__(str(path))) == len(finite)


@settings(max_examples=QUICK, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_voc_annotations_are_refused_or_read(
    data: st.DataObject, annotation: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_voc(data, annotation, tmp_path_factory.getbasetemp() / "fuzz.xml")


@pytest.mark.long
@pytest.mark.timeout(7200)
@settings(max_examples=LONG, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_voc_annotations_are_refused_or_read(
    data: st.DataObject, annotation: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_voc(data, annotation, tmp_path_factory.getbasetemp() / "fuzz-long.xml")


@pytest.fixture(scope="module")
def lvis_original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (write_lvis(tmp_path_factory.mktemp("fuzz") / "lvis") / "lvis_v1_val.json").read_text()
    )
    return content


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_lvis_annotations_are_refused_or_evaluated(
    data: st.DataObject, lvis_original: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("lvis", reason="the package lvis is not installed")
    from detectron2.data.datasets import load_lvis_json

    content, path = copy.deepcopy(lvis_original), tmp_path / "lvis.json"
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(data, content)
    path.write_text(json.dumps(content))
    raw, skip = json.loads(path.read_bytes()), data.draw(st.booleans())
    if not is_lvis(raw):
        return

    def check() -> CocoContent:
        as_coco(path, raw)
        return check_content(path, raw, True, skip, category_names(raw))

    checked = checked_or_message(check)
    if isinstance(checked, str):
        assert_printable(checked)
        return
    replaced = corrected_lvis(raw, checked.corrected)
    if replaced is not None:
        path.write_text(json.dumps(replaced))
    assert len(load_lvis_json(str(path), f"{tmp_path}/")) == len(checked.names)
    api = lvis_api()
    found = [
        {"image_id": item["image_id"], "category_id": item["category_id"], "bbox": item["bbox"], "score": 0.5}
        for item in json.loads(path.read_text())["annotations"]
    ]
    judged = api.LVISEval(str(path), found, "bbox")
    judged.run()
