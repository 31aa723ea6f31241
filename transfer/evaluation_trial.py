"""Tries, before training, what evaluation will read: in a process of its own that can be ended.

pycocotools' C code loops for ever on some broken masks, and neither Ctrl-C nor SIGTERM ends it. Our checks find the
kinds that are known; this is for the others.

python -m transfer.evaluation_trial ANNOTATIONS.json     prints the number of each annotation before it is tried
"""

import contextlib
import io
import json
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transfer.detection_set import DetectionSet
from transfer.voc_set import VocSet
from whitebench.errors import UserError

SECONDS = 60.0
"""For one annotation, and for reading the file (several times what COCO's take)."""
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


def _try_voc(data: VocSet) -> None:
    from detectron2.evaluation.pascal_voc_evaluation import parse_rec

    from transfer.evaluation import write_truths

    with tempfile.TemporaryDirectory() as folder:
        write_truths(Path(folder), list(data.by_name.values()), data.categories)
        for image in data.by_name.values():
            try:
                parse_rec.__wrapped__(str(Path(folder) / f"{image.name}.xml"))
            except Exception as error:  # Detectron2's parser can raise anything
                raise UserError(f"{image.annotation}: evaluation cannot read it ({error})") from error


def try_masks(path: Path, seconds: float = SECONDS) -> None:
    """Decodes every mask of an annotation file by pycocotools, in another process; raises as `try_annotations`."""
    command = [sys.executable, "-m", "transfer.evaluation_trial", str(path.resolve())]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        last = _follow(process, seconds)
        code = process.wait()
    if code < 0:
        where = f"annotation {last.removeprefix('try ')}" if last.startswith("try ") else "the file"
        raise UserError(f"{path}: evaluation cannot read {where}: pycocotools takes more than {seconds:g} s")
    if code:
        raise UserError(f"{path}: evaluation cannot read {last}")


def _follow(process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """The last line that the process printed; ends it when nothing came for this long."""
    assert process.stdout is not None
    last, rest, deadline = "", b"", time.monotonic() + seconds
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
        deadline = time.monotonic() + seconds


def _try_file(path: str) -> None:
    from pycocotools.coco import COCO

    with open(path) as file:
        content: dict[str, Any] = json.load(file)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    for number, item in enumerate(content["annotations"]):
        name = item.get("id", number)
        print(f"try {name}", flush=True)
        try:
            coco.annToRLE(item)
        except Exception as error:  # pycocotools can raise anything
            print(f"annotation {name} ({type(error).__name__}: {' '.join(str(error).split())[:200]})", flush=True)
            sys.exit(1)


if __name__ == "__main__":
    _try_file(sys.argv[1])
