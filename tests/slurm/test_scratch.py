"""Datasets on a node's own disk: one copy for all that read it there, none where there is no room."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from slurm.scratch import SCRATCH, use_scratch
from slurm.stages import Task

TASK = Task("pretrain", "sample/intl", cell={"dataset": "tiny", "recipe": "sample/intl", "seed": 0})


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "data"
    for name in ("tiny", "other"):
        (root / name).mkdir(parents=True)
        (root / name / "manifest.json").write_text(name)
        (root / name / "train.beton").write_text(f"the images of {name}")
    monkeypatch.setenv("WHITEBENCH_DATA", str(root))
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    monkeypatch.setenv(SCRATCH, "$NODE_DISK/jobs")
    return root


def test_the_dataset_is_copied_once_and_the_rest_is_linked(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_scratch(TASK)
    here = Path(os.environ["WHITEBENCH_DATA"])
    assert here.is_relative_to(data.parent / "disk" / "jobs")
    assert (here / "tiny" / "train.beton").read_text() == "the images of tiny"
    assert not (here / "tiny").is_symlink()
    assert (here / "other").resolve() == data / "other"
    (here / "tiny" / "train.beton").write_text("the copy")
    monkeypatch.setenv("WHITEBENCH_DATA", str(data))
    use_scratch(TASK)
    assert Path(os.environ["WHITEBENCH_DATA"]) == here
    assert (here / "tiny" / "train.beton").read_text() == "the copy"  # not copied again
    (data / "tiny" / "manifest.json").write_text("other images")
    monkeypatch.setenv("WHITEBENCH_DATA", str(data))
    use_scratch(TASK)
    assert Path(os.environ["WHITEBENCH_DATA"]) not in (here, data)


def test_a_copy_that_was_cut_short_is_made_anew(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "train.beton").write_text("half of")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", dies)
        with pytest.raises(KeyboardInterrupt):
            use_scratch(TASK)
    use_scratch(TASK)
    copied = Path(os.environ["WHITEBENCH_DATA"]) / "tiny" / "train.beton"
    assert copied.read_text() == "the images of tiny"


def test_without_room_the_data_are_read_where_they_are_and_the_log_says_so(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(9, 9, 0))
    use_scratch(TASK)
    assert os.environ["WHITEBENCH_DATA"] == str(data)
    assert "no room for tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("/proc/nope", "scratch /proc/nope: No such file or directory"),
        ("$NO_SUCH_VARIABLE/wb", "scratch $NO_SUCH_VARIABLE/wb: not a folder on this node: a variable is not set"),
        ("scratch", "scratch scratch: not an absolute path"),
    ],
)
def test_a_node_without_the_scratch_disk_reads_the_data_where_they_are(
    setting: str, why: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SCRATCH, setting)
    use_scratch(TASK)
    assert os.environ["WHITEBENCH_DATA"] == str(data)
    assert f"{why}; tiny is read from {data}" in capsys.readouterr().out
