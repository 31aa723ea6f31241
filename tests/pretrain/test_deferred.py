"""Checks for which the host does not wait; the CPU plays the accelerator here."""

from collections.abc import Iterator

import pytest
import torch

from pretrain.losses import deferred
from pretrain.losses.whitening import whiten
from whitebench.errors import UserError

GOOD, BAD = torch.tensor([True, True]), torch.tensor([True, False])


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(deferred, "DEFERRED", {"cpu"})
    yield
    deferred._pending.clear()


def test_on_a_cpu_a_failed_check_is_an_error_at_once() -> None:
    deferred.require(GOOD, lambda: UserError("no"))
    with pytest.raises(UserError, match="no"):
        deferred.require(BAD, lambda: UserError("no"))
    deferred.report_failed_checks()


def test_on_an_accelerator_a_later_check_or_the_report_raises_the_first_error(accelerator: None) -> None:
    deferred.require(GOOD, lambda: UserError("none"))
    deferred.require(BAD, lambda: UserError("first"))
    with pytest.raises(UserError, match="first"):
        deferred.require(BAD, lambda: UserError("second"))
    deferred.report_failed_checks()
    deferred.require(BAD, lambda: UserError("third"))
    with pytest.raises(UserError, match="third"):
        deferred.report_failed_checks()


@pytest.mark.parametrize("transform", ["iternorm", "cholesky", "zca"])
def test_embeddings_that_cannot_be_whitened_are_reported_there_too(accelerator: None, transform: str) -> None:
    axis = "batch" if transform == "cholesky" else "channel"
    x = torch.ones(12, 4) if axis == "batch" else torch.ones(4, 12)
    whiten(x, transform, axis=axis)
    with pytest.raises(UserError, match="constant"):
        deferred.report_failed_checks()
