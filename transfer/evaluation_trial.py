"""Tries, before training, what evaluation will read: in a process of its own that can be ended.

pycocotools' C code loops for ever on some broken masks, and neither Ctrl-C nor SIGTERM ends it. Our checks find the
kinds that are known; this is for the others.

python -m transfer.evaluation_trial ANNOTATIONS.json     prints the number of each annotation before it is tried
python -m transfer.evaluation_trial FOLDER               the same for a folder of VOC's annotations
"""

import contextlib
import io
import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transfer.detection_set import DetectionSet
from transfer.voc_set import VocSet
from whitebench.errors import UserError

SECONDS = 60.0
"""For one annotation, and for reading the file (several times what COCO's take)."""
READY = "ready"
TRY = "try "
"""Begins each line of the other process that names an annotation."""
START_SECONDS = 300.0
"""Until the other process has imported what it needs, from a slow file system."""
REPOSITORY = Path(__file__).parents[1]


def try_annotations(data: DetectionSet, name: str, masks: bool) -> None:
    """Reads the annotations of val as Detectron2's evaluators will.

    Args:
        name: of val, as registered with Detectron2.
        masks: whether masks are evaluated.
    Raises:
        UserError: one cannot be read, or not in time.
    """
    if isinstance(data, VocSet):
        _try_voc(data)
    elif masks:
        from detectron2.data import MetadataCatalog

        try_masks(Path(MetadataCatalog.get(name).json_file))


def _try_voc(data: VocSet, seconds: float = SECONDS) -> None:
    """Reads the annotations that evaluation will have by Detectron2's parser, in another process."""
    from transfer.voc_truth import write_truths

    with tempfile.TemporaryDirectory() as folder:
        write_truths(Path(folder), list(data.by_name.values()), data.categories)
        name, fault = _run(folder, "Detectron2's parser", seconds)
    if fault:
        path = data.by_name[name].annotation if name in data.by_name else data.folder
        raise UserError(f"{path}: evaluation cannot read it ({fault})")


def try_masks(path: Path, seconds: float = SECONDS) -> None:
    """Decodes every mask of an annotation file by pycocotools, in another process; raises as `try_annotations`."""
    name, fault = _run(str(path.resolve()), "pycocotools", seconds)
    if fault:
        where = f"annotation {name}" if name else "the file"
        raise UserError(f"{path}: evaluation cannot read {where} ({fault})")


def _run(path: str, tool: str, seconds: float) -> tuple[str, str | None]:
    """Tries one path in another process: the last annotation that it came to, and what is wrong with it."""
    command = [sys.executable, "-m", "transfer.evaluation_trial", path]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        last = _follow(process, seconds)
        code = process.wait()
    name, _, fault = last.removeprefix(TRY).partition("\t") if last.startswith(TRY) else ("", "", last)
    if code < 0:
        return name, f"{tool} takes more than {seconds:g} s"
    return name, (fault or "unknown") if code else None


def _follow(process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """The last line that the process printed; ends it when nothing came for this long."""
    assert process.stdout is not None
    last, rest, limit = "", b"", max(seconds, START_SECONDS)
    deadline = time.monotonic() + limit
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            process.kill()
            return last
        chunk = process.stdout.read1(65536)  # type: ignore[attr-defined]
        if not chunk:
            return last
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        last = next((line.decode(errors="replace") for line in reversed(lines) if line), last)
        limit = seconds if READY.encode() in lines else limit  # before that, lines are warnings of imports
        deadline = time.monotonic() + limit


def _try_file(path: str) -> None:
    from pycocotools.coco import COCO

    print(READY, flush=True)
    with open(path) as file:
        content: dict[str, Any] = json.load(file)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    for number, item in enumerate(content["annotations"]):
        _try(item.get("id", number), partial(coco.annToRLE, item))


def _try_folder(path: str) -> None:
    from detectron2.evaluation.pascal_voc_evaluation import parse_rec

    print(READY, flush=True)
    for annotation in sorted(Path(path).glob("*.xml")):
        _try(annotation.stem, partial(parse_rec.__wrapped__, str(annotation)))


def _try(name: Any, act: Callable[[], Any]) -> None:
    """Prints the name; ends the process if the act fails."""
    print(f"{TRY}{name}", flush=True)
    try:
        act()
    except Exception as error:  # pycocotools and Detectron2's parser can raise anything
        print(f"{TRY}{name}\t{type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    (_try_folder if Path(sys.argv[1]).is_dir() else _try_file)(sys.argv[1])
