"""The command of a record is one that a person would type, and that the commands understand."""

from results.leaderboards.repeat_command import repeat
from whitebench.records import Record


def test_commands_of_jobs_are_those_that_a_person_would_type() -> None:
    job = "python -u -m submitit.core._submit /x"
    config = {"parent": "intl-s0-1", "protocol": {"name": "sample"}, "dataset": "sample", "seed": 1, "threads": 2}
    probe = Record("a", "linear", config, command=job)
    assert repeat(probe) == (
        "python -m pretrain.evaluate linear --ckpt runs/pretrain/intl-s0-1 --protocol sample "
        "--dataset sample --seed 1 --threads 2"
    )
    detect = Record("a", "detect", {**config, "iterations": 9}, cell={"dataset": "coco"}, command=job)
    assert repeat(detect) == (
        "python transfer/coco_det.py --ckpt runs/pretrain/intl-s0-1 --protocol sample --coco coco --seed 1 --threads 2"
    )
    detect.metrics["deviations"] = ["SOLVER.MAX_ITER"]
    assert repeat(detect).endswith("--iterations 9")
    assert repeat(Record("a", "linear", config, command="python mine.py")) == "python mine.py"


def test_commands_of_jobs_are_understood_by_the_commands() -> None:
    import shlex

    from pretrain.evaluate.__main__ import parser as evaluate
    from transfer.coco_det import parser as detect

    job = "python -u -m submitit.core._submit /x"
    config = {"parent": "intl-s0-1", "protocol": {"name": "p"}, "dataset": "d", "crop": 32, "resize": 32, "seed": 1}
    config |= {"device": "cpu", "threads": 2, "encoder": None, "iterations": 9, "image_size": 96, "batch": 2, "lr": 0.1}
    words = shlex.split(repeat(Record("a", "knn", config, command=job)))
    assert evaluate().parse_args(words[3:]).resize == 32
    record = Record("a", "detect", config, metrics={"deviations": ["x"]}, command=job)
    assert detect().parse_args(shlex.split(repeat(record))[2:]).image_size == 96
