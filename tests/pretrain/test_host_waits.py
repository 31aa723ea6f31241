"""No step of a method holds the host until an accelerator has caught up, except where that is listed with a reason."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pretrain.data.batch import Batch
from pretrain.losses import deferred, iterated_whitening
from pretrain.method import Method, method_names
from tests.support.host_waits import host_waits
from tests.support.method_cases import CASES, Case
from tests.support.two_ranks import NOT_TRAINED, TRANSFORMERS, batch_case, build_case

EIGENVALUES = {"_linalg_eigh"}
"""torch.linalg.eigh reads LAPACK's status, and has no variant that leaves it on the device."""
WAITS: dict[str, set[str]] = {
    "cwrgp": EIGENVALUES,
    "shuffled_dbn": EIGENVALUES,
    "spectral": EIGENVALUES,
    "zero_cl": EIGENVALUES,
    "mmcr": EIGENVALUES,
    "ivne": EIGENVALUES,
    "tregs": {"cpu", "numpy"},  # the tree is grown on the host
    "mae": {"cpu", "numpy"},  # masks are drawn on the host, from the images' indices
    "pcl": {"nonzero"},  # how many prototypes are of none of the batch's images is a matter of values
    "pauc": {"nonzero", "_unique2", "__int__"},  # so is how many prototypes the batch has
    "visreg": {"__int__", "numpy"},  # a seed drawn on the host; sorting on a CPU alone
}
"""What may be seen in a step of a method after its first one."""
BEGUN = {"swav": {"queue_epoch": 0, "queue": 40}, "pcl": {"warmup_epochs": 0}, "pauc": {"warmup_epochs": 0}}
"""Options with which all parts of a method are in use from the start."""
VARIANTS = [
    *CASES,
    Case("spectral", {"transform": "zca", "eps": 0.1}, "spectral-zca"),
    Case("cwrgp", {"window": 8, "transform": "pca"}, "cwrgp-pca"),
]


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU defers checks, and their values never arrive."""
    monkeypatch.setattr(deferred, "DEFERRED", {"cpu"})
    monkeypatch.setattr(deferred, "_check_of", lambda passed, error: deferred._Check(passed, None, error))
    monkeypatch.setattr(deferred, "_has_arrived", lambda check: False)
    yield
    deferred._pending.clear()


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: case.id)
def test_a_step_waits_for_the_accelerator_only_where_that_is_listed(accelerator: None, case: Case) -> None:
    options = {**case.options, **BEGUN.get(case.name, {})}
    projector = case.projector and case.name != "supervised"
    begun = Case(case.name, options, case.label, case.images, case.views, projector, case.width)
    assert waits_of(begun.build(torch.float32), begun.batch(torch.float32)) <= WAITS.get(case.name, set())


def test_whitening_without_eigenvalues_does_not_wait(accelerator: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterated_whitening, "_converges", deferred.Outlook())
    case = Case("cwrgp", {"window": 8, "transform": "zca_iterated"})
    assert waits_of(case.build(torch.float32), case.batch(torch.float32)) == set()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_so_does_a_step_of_a_transformer(accelerator: None, name: str) -> None:
    assert waits_of(build_case(name), batch_case(name)) <= WAITS.get(TRANSFORMERS[name][0], set())


def waits_of(method: Method[Any], batch: Batch) -> set[str]:
    """In a step that is not the first one after the start."""
    method(batch)  # what is read once after the start is read here
    with host_waits() as waits:
        method(batch).loss.backward()
        method.before_update()
        method.after_update()
    return set(waits)


def test_every_method_is_looked_at_and_every_exception_is_one() -> None:
    names = {case.name for case in VARIANTS} | {name for name, _ in TRANSFORMERS.values()}
    assert names | NOT_TRAINED == set(method_names())
    assert set(WAITS) <= names


@pytest.mark.parametrize(
    ("work", "seen"),
    [
        (lambda x: x.sum().item(), ["item"]),
        (lambda x: bool((x > 0).all()), ["__bool__"]),
        (lambda x: x[x > 0], ["boolean index"]),
        (lambda x: (x > 0).nonzero(), ["nonzero"]),
        (lambda x: x.cpu().numpy(), ["cpu", "numpy"]),
        (lambda x: x.tolist(), ["tolist"]),
        (lambda x: torch.linalg.cholesky(x), ["_linalg_check_errors"]),
        (lambda x: torch.linalg.cholesky_ex(x).L @ x, []),
        (lambda x: torch.where(x > 0, x, 0).sum(), []),
    ],
)
def test_waits_are_recorded(work: object, seen: list[str]) -> None:
    with host_waits() as waits:
        work(torch.eye(3))  # type: ignore[operator]
    assert waits == seen


def test_a_wait_in_a_backward_pass_is_recorded() -> None:
    x = torch.ones(3, requires_grad=True)
    y = x.clone()
    y.register_hook(lambda gradient: gradient * gradient.sum().item())
    with host_waits() as waits:
        y.sum().backward()
    assert waits == ["item"]
