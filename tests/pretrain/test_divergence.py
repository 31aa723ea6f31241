"""A training that diverges ends at once, keeps its last good state, and says what helps."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from pretrain import divergence, methods, resume
from pretrain.progress import EpochMeter
from pretrain.recipe import load
from pretrain.train import train
from whitebench.errors import UserError
from whitebench.records import read_metrics

SMALL = {
    "data.dataset": "tiny", "batch": 64, "schedule.epochs": 2, "monitor.knn_every": 0, "monitor.spectra_every": 0,
    "machine.checkpoint_minutes": 0, "data.views.0.size": 16,
}  # fmt: skip
FAULTY = """
from pretrain.method import Step
from pretrain.methods.simclr import Config, SimCLR as _Base

class Faulty(_Base):
    def forward(self, batch):
        step = super().forward(batch)
        factor = float("nan") if self.step in {steps} else 1.0
        return Step(step.loss * factor, step.scalars)
"""


@pytest.fixture
def faulty(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Trains six steps an epoch with a loss that is NaN in the given steps; the run's folder."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])

    def run(steps: str, precision: str) -> Path:
        name = f"faulty_{abs(hash((steps, precision)))}"
        (tmp_path / f"{name}.py").write_text(FAULTY.replace("{steps}", steps))
        train(load("sample/simclr", {**SMALL, "method": {"name": name}, "precision": precision}))
        return next((places / "pretrain").iterdir())

    return run


def test_a_nan_loss_ends_the_run_and_the_last_good_checkpoint_stays(
    faulty: Callable[[str, str], Path], places: Path
) -> None:
    for _ in range(2):  # started again, it fails at the same step, and destroys nothing
        with pytest.raises(UserError, match=r"diverged: .* after step 4; .* lower optimizer.lr") as caught:
            faulty("(3,)", "fp32")
        assert "\n" not in str(caught.value)
        (folder,) = (places / "pretrain").iterdir()
        state = resume.load(folder)
        assert state is not None
        assert state["step"] == 3
        assert all(tensor.isfinite().all() for tensor in state["method"].values())


def test_a_step_that_the_scaler_skips_does_not_end_a_run(
    faulty: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # fp16 on a CPU takes minutes
    folder = faulty("(3,)", "fp16")
    lines = read_metrics(folder)
    assert [line.get("skipped_steps") for line in lines] == [1.0, None]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_steps_that_are_skipped_again_and_again_end_it() -> None:
    losses = divergence.FiniteLoss()
    for step in range(1, 21):
        losses.add(torch.tensor(math.nan))
        losses.check(step, "fp16")
    losses.add(torch.tensor(math.inf))
    with pytest.raises(UserError, match=r"not been finite in the last 21 step\(s\), after step 21"):
        losses.check(21, "fp16")
    losses.add(torch.tensor(1.0))
    losses.check(22, "fp32")


def test_means_are_over_the_steps_that_count() -> None:
    meter = EpochMeter()
    for value in (1.0, math.nan, 3.0):
        meter.add(8, {"loss": torch.tensor(value), "other": torch.tensor(2 * value)})
    resumed = EpochMeter()
    resumed.load_state_dict(meter.state_dict(), torch.device("cpu"))
    for each in (meter, resumed):
        values = each.finish()
        assert (values["loss"], values["other"], values["skipped_steps"]) == (2.0, 4.0, 1.0)
    meter.add(8, {"loss": torch.tensor(math.nan)})
    assert math.isnan(meter.finish()["loss"])


def test_weights_that_are_not_finite_are_named() -> None:
    state = {
        "step": 3,
        "method": {"encoder.conv": torch.ones(2)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
    }
    divergence.check_state(state, 3, "bf16")
    state["optimizer"]["state"][0]["exp_avg"][1] = math.inf  # type: ignore[index]
    with pytest.raises(UserError, match=r"optimizer.state.0.exp_avg has values .* precision=fp32 instead of bf16"):
        divergence.check_state(state, 3, "bf16")
