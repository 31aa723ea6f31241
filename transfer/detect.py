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
    from transfer.detection_set import DetectionSet
    from transfer.evaluation import Evaluation
    from transfer.protocol import Protocol
    from transfer.records import Options
    from transfer.trainer import FineTuning


def detect_in_processes(
    run: Run,
    d2_file: Path,
    options: "Options",
    cell: dict[str, Any] | None,
    encoder: str | None,
    out: Path | None,
) -> Record:
    """Runs `detect` by Detectron2's launcher; the first of the processes writes the record, and this one waits."""
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
                detect(run.folder, run, content, options, print)
        else:
            detect(run.folder, None, content, options, lambda _: None)


def detect(folder: Path, run: Run | None, content: "Converted", options: "Options", say: Callable[[str], None]) -> None:
    """Fine-tunes, evaluates, and writes metrics, detections, pictures and the model.

    Args:
        run: the record, in `folder`; None in processes other than the first.
    """
    from pretrain.repeatable import resolve_device
    from transfer.detection_set import find_folder, read_data
    from transfer.deviations import deviations, schedule_lines
    from transfer.protocol import (
        build_cfg,
        check_federated,
        check_masks,
        load_protocol,
        published_cfg,
        resolve,
    )

    protocol = load_protocol(options.protocol)
    masks = published_cfg(protocol).MODEL.MASK_ON
    data = read_data(find_folder(options.coco), options.files, masks=masks, skip=options.skip_faulty)
    settings = resolve(
        protocol, iterations=options.iterations, image_size=options.image_size, batch=options.batch, lr=options.lr
    )
    cfg = build_cfg(
        protocol,
        settings,
        content,
        classes=len(data.categories),
        mask_format=data.mask_format,
        device=resolve_device(options.device),
        seed=options.seed,
        processes=options.processes,
    )
    check_masks(protocol, cfg, data)
    check_federated(protocol, cfg, data)
    differences = [*deviations(cfg, protocol), *schedule_lines(protocol, settings), *content.changes]
    differences += _data_deviations(protocol, data, options.subset)
    differences += padding_deviation(protocol, settings.batch // options.processes)
    with phase(run, "setup"):
        tuning = _prepared(folder, run, cfg, content, data, protocol, options, differences, say)
    with phase(run, "training"):
        tuning.fit(run)
    with phase(run, "evaluation"):
        evaluation = tuning.evaluate(run)
    if run is not None and evaluation is not None:
        with phase(run, "pictures"):
            _record(run, tuning, evaluation, settings.iterations)


def phase(run: Run | None, name: str) -> contextlib.AbstractContextManager[None]:
    """`Run.phase`, in the process that has the record."""
    return run.phase(name) if run is not None else contextlib.nullcontext()


def _prepared(
    folder: Path,
    run: Run | None,
    cfg: Any,
    content: "Converted",
    data: "DetectionSet",
    protocol: "Protocol",
    options: "Options",
    differences: list[str],
    say: Callable[[str], None],
) -> "FineTuning":
    """The model with its weights and data, after everything that training or evaluation will read was tried."""
    from transfer.detection_set import SKIPPED, check_image_files
    from transfer.evaluate_trained import CONFIG
    from transfer.evaluation_trial import try_annotations
    from transfer.linter import lint, not_yet_named
    from transfer.trainer import FineTuning

    tuning = FineTuning(
        cfg,
        content,
        data,
        folder,
        optimizer=protocol.optimizer,
        threads=options.threads,
        workers=options.workers,
        subset=options.subset,
        say=say,
    )
    differences = differences + not_yet_named(
        lint(cfg, protocol, content, tuning.model, options.processes), differences
    )
    say(f"{folder.name}: {protocol.title}; {_counted(data)}, seed {options.seed}")
    for line in [*data.notes, *(f"deviates: {difference}" for difference in differences)]:
        say(f"  {line}")
    say(str(tuning.proof))
    if run is not None:
        check_image_files(data)
        try_annotations(data, tuning.val_set, cfg.MODEL.MASK_ON)
        if data.skipped:
            write_atomically(folder / SKIPPED, "".join(f"{line}\n" for line in data.skipped).encode())
        write_atomically(folder / CONFIG, cfg.dump().encode())
        run.metrics.update(
            **tuning.proof.metrics,
            iterations=cfg.SOLVER.MAX_ITER,
            deviations=differences,
            data={**data.counts, "notes": list(data.notes)},
            categories=list(data.categories),
        )
        run.save()
    return tuning


def _record(run: Run, tuning: "FineTuning", evaluation: "Evaluation", iterations: int) -> None:
    """Metrics first: a picture that cannot be drawn costs nothing."""
    from pretrain import resume
    from transfer.pictures import write_pictures
    from transfer.progress import log_group
    from whitebench.sinks import TensorBoard

    folder = run.folder
    run.metrics.update(evaluation.metrics)
    run.artifact("detections", evaluation.write(folder))
    run.save()
    pictures = write_pictures(evaluation, folder, tuning.val_images, tuning.val_set, tuning.say)
    for name, path in pictures.items():
        run.artifact(name, path)
    events = TensorBoard(folder, folder.name, {}, None)
    log_group(events, "val", evaluation.metrics, iterations)
    events.close()
    resume.forget_previous(folder)
    run.artifact("model", folder / resume.CHECKPOINT)


def padding_deviation(protocol: "Protocol", images: int) -> list[str]:
    """A line where another number of images than on a published GPU is padded to one size.

    Batch norm counts padding, too: 28 % of the pixels of 16 COCO images together, 11 % of those of 2 (simulated with
    the sizes of COCO's first 128).
    """
    from transfer.batches import GPU_IMAGES
    from transfer.vit_backbones import has_vit

    if (
        not protocol.papers_rules or images == GPU_IMAGES or has_vit(protocol.detectron2)
    ):  # no norm of ViTDet sees the padding
        return []
    return [f"padding: {images} images per process padded to one size, published {GPU_IMAGES} per GPU"]


def _data_deviations(protocol: "Protocol", data: "DetectionSet", subset: int | None) -> list[str]:
    from transfer.detection_set import SKIPPED, form
    from transfer.protocol import published_form

    published, actual = published_form(protocol), form(data)
    lines = [f"data: of {actual}'s form, published {published}"] if actual != published else []
    lines += data.differences
    if data.skipped:
        lines.append(f"data: {len(data.skipped)} faulty annotations left out ({SKIPPED})")
    if subset is not None:
        lines.append(f"data: {subset} images of each part at most, published all")
    return lines


def _counted(data: "DetectionSet") -> str:
    return ", ".join(f"{data.counts[f'train_{of}']} + {data.counts[f'val_{of}']} {of}" for of in ("images", "objects"))
