"""One fine-tuning, from a proven conversion to AP in its record: in this process, or in several."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebench.errors import Interrupted, UserError
from whitebench.files import write_atomically
from whitebench.records import Record, Run, read_record

if TYPE_CHECKING:
    from transfer.convert import Converted
    from transfer.data import DetectionSet
    from transfer.protocol import Protocol
    from transfer.records import Options


def detect_in_processes(
    run: Run,
    d2_file: Path,
    options: "Options",
    cell: dict[str, Any] | None,
    encoder: str | None,
    out: Path | None,
) -> Record:
    """By Detectron2's launcher; the first of the processes keeps the record, and this one waits."""
    from transfer.parallel import Forwarding, check_processes, launch

    before = read_record(run.folder)
    if before is not None and before.status == "done":
        return before
    check_processes(options.processes, run.record.config["batch"], run.record.config["device"])
    command = run.record.command
    with Forwarding(acts=True) as stop:
        arguments = (d2_file, options, cell, encoder, out, command)
        try:
            launch(_work, options.processes, run.record.config["device"], arguments)
        except UserError:
            if not stop.requested:  # otherwise it was asked to stop before it had begun
                raise
        record = read_record(run.folder)
        if record is None or record.status != "done":
            stop.leave(record.error or run.id if record is not None else run.id)
    assert record is not None
    return record


def _work(
    d2_file: Path,
    options: "Options",
    cell: dict[str, Any] | None,
    encoder: str | None,
    out: Path | None,
    command: str,
) -> None:
    """One of several processes."""
    from detectron2.utils import comm

    from transfer.convert import read_d2
    from transfer.records import detection_run

    content = read_d2(d2_file)
    run = detection_run(content, options, cell, encoder, out)
    with contextlib.suppress(Interrupted):  # the record says so
        if comm.is_main_process():
            run.record.command = command
            with run:
                detect(run.folder, run, content, d2_file, options, print)
        else:
            detect(run.folder, None, content, d2_file, options, lambda _: None)


def detect(
    folder: Path, run: Run | None, content: "Converted", d2_file: Path, options: "Options", say: Callable[[str], None]
) -> None:
    """Fine-tunes, evaluates, and leaves metrics, detections, pictures and the model.

    Args:
        run: the record, in `folder`; None in processes other than the first.
    """
    from pretrain import resume
    from pretrain.repeatable import resolve_device
    from transfer.data import find_folder, read_data
    from transfer.linter import lint, not_yet_named
    from transfer.pictures import leave
    from transfer.progress import Events
    from transfer.protocol import build_cfg, check_masks, deviations, load_protocol, resolve
    from transfer.reevaluate import CONFIG

    protocol, data = load_protocol(options.protocol), read_data(find_folder(options.coco))
    settings = resolve(protocol, options.iterations, options.image_size, options.batch, options.lr)
    cfg = build_cfg(
        protocol, settings, content, len(data.categories), data.mask_format, resolve_device(options.device),
        options.seed, options.processes,
    )  # fmt: skip
    check_masks(protocol, cfg, data)
    differences = [*deviations(cfg, protocol), *_data_deviations(protocol, data, options.subset)]
    differences += padding_deviation(protocol, settings.batch // options.processes)

    from transfer.trainer import FineTuning

    tuning = FineTuning(
        cfg, content, d2_file, data, protocol.optimizer, options.threads, options.workers, options.subset, say
    )
    differences += not_yet_named(lint(cfg, protocol, content, tuning.model, options.processes), differences)
    say(f"{folder.name}: {protocol.title}; {_counted(data)}, seed {options.seed}")
    for line in [*data.notes, *(f"deviates: {difference}" for difference in differences)]:
        say(f"  {line}")
    say(str(tuning.proof))
    if run is not None:
        write_atomically(folder / CONFIG, cfg.dump().encode())
        run.metrics.update(
            **tuning.proof.metrics, iterations=settings.iterations, deviations=differences,
            data={**data.counts, "notes": list(data.notes)},
        )  # fmt: skip
        run.save()
    tuning.fit(folder, run)
    evaluation = tuning.evaluate(folder, run)
    if run is None or evaluation is None:
        return
    run.metrics.update(evaluation.metrics)
    for name, path in leave(evaluation, folder, tuning.val_images, tuning.val_set).items():
        if path.exists():
            run.artifact(name, path)
    events = Events(folder)
    events.add(evaluation.metrics, settings.iterations, "val")
    events.close()
    resume.forget_previous(folder)
    run.artifact("model", folder / resume.CHECKPOINT)


def padding_deviation(protocol: "Protocol", images: int) -> list[str]:
    """A line where another number of images than on a published GPU is padded to one size.

    Batch norm counts padding, too: 28 % of the pixels of 16 COCO images together, 11 % of those of 2 (measured on
    COCO's first 128).
    """
    from transfer.batches import GPU_IMAGES

    if not protocol.papers_rules or images == GPU_IMAGES:
        return []
    return [f"padding: {images} images per process padded to one size, published {GPU_IMAGES} per GPU"]


def _data_deviations(protocol: "Protocol", data: "DetectionSet", subset: int | None) -> list[str]:
    from transfer.protocol import published_cfg
    from transfer.voc_data import VocSet

    found = []
    wanted = "VOC" if any("voc" in name for name in published_cfg(protocol).DATASETS.TEST) else "COCO"
    given = "VOC" if isinstance(data, VocSet) else "COCO"
    if wanted != given:
        found.append(f"data: of {given}'s form, published {wanted}")
    if subset is not None:
        found.append(f"data: {subset} images of each part at most, published all")
    return found


def _counted(data: "DetectionSet") -> str:
    return ", ".join(f"{data.counts[f'train_{of}']} + {data.counts[f'val_{of}']} {of}" for of in ("images", "objects"))
