"""Whole trainings equal those of the methods' official code, loss by loss and weight by weight, in float64."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden_trajectories import SETTINGS, STEPS, run, train, training_step

VALUES = Path(__file__).parents[1] / "data" / "trajectories.json"
TRAJECTORIES: dict[str, dict[str, Any]] = {
    entry["name"]: entry for entry in json.loads(VALUES.read_text())["trajectories"]
}
every = pytest.mark.parametrize("name", TRAJECTORIES)


def test_every_official_trajectory_has_its_settings() -> None:
    assert set(SETTINGS) == set(TRAJECTORIES)


@every
def test_a_training_equals_its_official_code(name: str) -> None:
    expected, trained = TRAJECTORIES[name], run(name)
    assert trained["losses"] == pytest.approx(expected["losses"], rel=1e-7)
    for ours, official in zip(trained["learning_rates"], expected["learning_rates"], strict=True):
        assert [ours[0], ours[-1]] == pytest.approx([official[0], official[-1]], rel=1e-12)
    compared = {key for key, value in expected.items() if isinstance(value, dict)}
    assert {"features0", "conv1", "conv2", "bn1_running_mean", "projector_last"} <= compared
    for key in compared:
        tensor, official = trained[key], expected[key]
        assert tensor.dtype == torch.float64
        assert float(tensor.norm()) == pytest.approx(official["norm"], rel=1e-7), key
        assert tensor.flatten()[:4].tolist() == pytest.approx(official["first"], rel=1e-7, abs=1e-9), key


@every
def test_a_training_continues_from_its_saved_state_to_the_same_bits(name: str) -> None:
    whole = training_step(name)
    before, _ = train(whole, name, range(7))
    saved = copy.deepcopy(whole.state_dict())
    after, _ = train(whole, name, range(7, STEPS))
    resumed = training_step(name)
    resumed.load_state_dict(saved)
    assert train(resumed, name, range(7, STEPS))[0] == after
    state = whole.method.state_dict()
    assert all(tensor.equal(state[key]) for key, tensor in resumed.method.state_dict().items())
    assert before + after == run(name)["losses"]


@every
def test_another_phase_is_another_training(name: str) -> None:
    """A guard of the test itself: the values above could not come from anything fixed."""
    assert run(name, phase=0.25)["losses"] != pytest.approx(TRAJECTORIES[name]["losses"], rel=1e-4)
