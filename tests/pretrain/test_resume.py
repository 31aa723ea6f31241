"""A checkpoint is trusted only when it has the bytes that were written."""

from pathlib import Path

import pytest
import torch

from pretrain import resume
from whitebench.errors import UserError


def state(step: int) -> dict[str, object]:
    return {"step": step, "weights": torch.full((100,), float(step))}


def test_the_newest_state_comes_back(tmp_path: Path) -> None:
    assert resume.load(tmp_path) is None
    for step in (1, 2, 3):
        resume.save(tmp_path, state(step))
    loaded = resume.load(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 3
    assert torch.equal(loaded["weights"], torch.full((100,), 3.0))
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    resume.save(tmp_path, state(1))
    resume.save(tmp_path, state(2))
    newest = tmp_path / resume.CHECKPOINT
    content = bytearray(newest.read_bytes())
    if damage == "truncate":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    else:
        newest.unlink()
    loaded = resume.load(tmp_path)
    assert loaded is not None
    assert loaded["step"] == 1


def test_nothing_whole_left_is_an_error_that_says_so(tmp_path: Path) -> None:
    resume.save(tmp_path, state(1))
    (tmp_path / resume.CHECKPOINT).write_bytes(b"not what was written")
    with pytest.raises(UserError, match=r"damaged: checkpoint\.pt"):
        resume.load(tmp_path)


def test_a_crash_between_the_steps_of_saving_leaves_a_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume.save(tmp_path, state(1))
    real, calls = resume.os.replace, []

    def crash_on(number: int):
        def replace(source, target):
            calls.append(target)
            if len(calls) == number:
                raise OSError("power cut")
            real(source, target)

        return replace

    for number in (1, 2, 3, 1, 2):  # after the third, only the previous file is there
        calls.clear()
        monkeypatch.setattr(resume.os, "replace", crash_on(number))
        with pytest.raises(OSError, match="power cut"):
            resume.save(tmp_path, state(2))
        monkeypatch.setattr(resume.os, "replace", real)
        loaded = resume.load(tmp_path)
        assert loaded is not None
        assert loaded["step"] == 1
