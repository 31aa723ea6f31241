"""Checkpoints of other projects' transformers are evaluated by the command, and each refusal is one clear line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.evaluate import __main__ as command
from tests.support.evaluation_sets import image_folder
from tests.support.vit_formats import FORMATS
from whitebench.errors import UserError
from whitebench.records import Record, read_record

LAYOUT = {form.project: form for form in FORMATS}
SIZE = ("--dataset", "shapes", "--crop", "32", "--resize", "32")
Evaluate = Callable[..., list[Record]]


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """The command in this process on a small ImageFolder; the stage's records that are there afterwards."""
    image_folder(tmp_path / "data" / "shapes", ("apple", "banana"))
    monkeypatch.setenv("WHITEBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))

    def run(stage: str, ckpt: Path, *arguments: str) -> list[Record]:
        sets = ("--datasets", "shapes", *SIZE[2:])  # which writes the dataset on first use
        monkeypatch.setattr(sys, "argv", ["evaluate", stage, "--ckpt", str(ckpt), *sets, *arguments])
        command.main()
        folders = sorted((tmp_path / "runs" / stage).iterdir())
        return [record for folder in folders if (record := read_record(folder))]

    return run


def write(path: Path, project: str, **more: Any) -> Path:
    form = LAYOUT[project]
    content = form.layout(dict(form.build(1).state_dict()), dict(form.build(2).state_dict()))
    torch.save({**content, **more}, path)
    return path


@pytest.mark.parametrize("project", ["DINOv2 with registers", "MAE", "DINOv3"])
def test_a_transformer_of_another_project_is_evaluated(project: str, tmp_path: Path, evaluate: Evaluate) -> None:
    (record,) = evaluate("knn", write(tmp_path / "theirs.pth", project))
    assert record.status == "done"
    assert 0 <= record.metrics["top1"] <= 100
    assert (record.cell["method"], record.cell["recipe"]) == ("foreign", "theirs.pth")


def test_either_encoder_of_a_file_is_evaluated_under_an_id_of_its_own(tmp_path: Path, evaluate: Evaluate) -> None:
    file = write(tmp_path / "dino.pth", "DINO")
    (teacher,) = evaluate("knn", file)
    both = evaluate("knn", file, "--encoder", "student")
    assert sorted(record.cell["recipe"] for record in both) == ["dino.pth", "dino.pth (student)"]
    assert "encoder" not in teacher.config
    assert len({record.id for record in both}) == 2
    with pytest.raises(UserError, match=r"dino\.pth: no encoder called 'momentum'.*--encoder") as error:
        evaluate("knn", file, "--encoder", "momentum")
    assert "\n" not in str(error.value)


class Unknown:
    """Stands for a class of its project, which only an unsafe pickle may build."""


def test_the_flag_that_the_refusal_names_is_one_of_the_command(tmp_path: Path, evaluate: Evaluate) -> None:
    file = write(tmp_path / "mae.pth", "MAE", args=Unknown())
    with pytest.raises(UserError, match=r"mae\.pth: refused.*--unsafe-pickle"):
        evaluate("linear", file)
    (record,) = evaluate("linear", file, "--unsafe-pickle")
    assert record.status == "done"


def test_a_crop_that_is_no_multiple_of_the_patch_is_refused(tmp_path: Path, evaluate: Evaluate) -> None:
    file = write(tmp_path / "mae.pth", "MAE")
    with pytest.raises(UserError, match=r"--crop: 36 pixels are not a multiple of the patch of .* 8; use 32 or 40"):
        evaluate("knn", file, "--crop", "36", "--resize", "36")
