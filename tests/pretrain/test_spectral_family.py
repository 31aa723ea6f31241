"""The spectral family and its baselines: other implementations, properties, and inputs at which losses break."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pretrain.losses.similarity import unit_rows
from pretrain.losses.sliced import random_directions
from pretrain.losses.whitening import at_least_float32
from pretrain.method import Method
from pretrain.methods.all4one import all4one_loss, build_transformer
from pretrain.methods.corinfomax import corinfomax_loss, initial_state
from pretrain.methods.cwrgp import cwrgp_loss
from pretrain.methods.dcl import dcl_loss
from pretrain.methods.deepcluster import deepcluster_loss
from pretrain.methods.emp_ssl import emp_ssl_loss
from pretrain.methods.frossl import frossl_loss
from pretrain.methods.ivne import ivne_loss
from pretrain.methods.lejepa import bcs_loss, lejepa_loss, sigreg
from pretrain.methods.matrix_ssl import matrix_ssl_loss
from pretrain.methods.mec import mec_loss
from pretrain.methods.mmcr import mmcr_loss
from pretrain.methods.moco_v3 import moco_v3_loss
from pretrain.methods.nnclr import nnclr_loss
from pretrain.methods.resa import assignment, resa_loss
from pretrain.methods.ressl import ressl_loss
from pretrain.methods.simclr import simclr_loss
from pretrain.methods.simdino import simdino_loss
from pretrain.methods.supcon import supcon_loss
from pretrain.methods.tico import tico_loss
from pretrain.methods.tregs import tregs_loss
from pretrain.methods.vibcreg import vibcreg_loss
from pretrain.methods.visreg import visreg_loss
from tests.support.method_cases import CASES, build, embeddings
from tests.support.tiny_encoder import batch_of
from whitebench.errors import UserError

Loss = Callable[[list[Tensor]], Tensor]


def directions(views: list[Tensor]) -> Tensor:
    return random_directions(views[0].shape[1], 12, torch.Generator().manual_seed(3))


def queue(views: list[Tensor]) -> Tensor:
    drawn = torch.randn(20, views[0].shape[1], generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return unit_rows(drawn)


def labels(views: list[Tensor]) -> Tensor:
    return torch.arange(len(views[0])) % 3


def others(views: list[Tensor]) -> list[Tensor]:
    """What a target network might give."""
    return [view.detach().roll(1, dims=0) for view in views]


def corinfomax(views: list[Tensor]) -> Tensor:
    return corinfomax_loss(views, initial_state(views[0].shape[1]), memory=0.1).loss


def tico(views: list[Tensor]) -> Tensor:
    return tico_loss(views[0], views[1], torch.zeros(views[0].shape[1], views[0].shape[1])).loss


def all4one(views: list[Tensor]) -> Tensor:
    torch.manual_seed(0)
    transformer = build_transformer(views[0].shape[1], dropout=0.0).to(at_least_float32(views[0]).dtype)
    return all4one_loss(views, [unit_rows(x) for x in others(views)], views, views, queue(views), transformer)


LOSSES: dict[str, Loss] = {
    "sigreg": lambda views: sigreg(views, directions(views)),
    "lejepa": lambda views: lejepa_loss(views, directions(views)),
    "lejepa-flat": lambda views: lejepa_loss(views, directions(views), 0.1, 1, flatten=True, convex=False),
    "bcs": lambda views: bcs_loss(views, directions(views)),
    "visreg": lambda views: visreg_loss(views, directions(views)),
    "resa": lambda views: resa_loss(views, others(views), views[0], others(views)[0]),
    "corinfomax": corinfomax,
    "mmcr": lambda views: mmcr_loss(views, others(views), 0.1),
    "mec": lambda views: mec_loss(views, others(views), 10.0),
    "matrix-ssl": lambda views: matrix_ssl_loss(views, others(views)),
    "frossl": frossl_loss,
    "frossl-two-view": lambda views: frossl_loss(views, form="two-view"),
    "tico": tico,
    "vibcreg": vibcreg_loss,
    "tregs": tregs_loss,
    "simdino": lambda views: simdino_loss(views, others(views)),
    "emp-ssl": emp_ssl_loss,
    "ivne": ivne_loss,
    "nnclr": lambda views: nnclr_loss(views, views, queue(views)),
    "moco-v3": lambda views: moco_v3_loss(views, others(views)),
    "deepcluster": lambda views: deepcluster_loss(views, queue(views)[None], labels(views)[None]),
    "ressl": lambda views: ressl_loss(*views, queue(views)),
    "supcon": lambda views: supcon_loss(views, labels(views)),
    "supcon-inside": lambda views: supcon_loss(views, labels(views), inside=True),
    "all4one": all4one,
    "dcl": dcl_loss,
    "dclw": lambda views: dcl_loss(views, sigma=0.5),
    "cw-none": lambda views: cwrgp_loss(views, 1, transform="none"),
    "cw-batch-norm": lambda views: cwrgp_loss(views, 1, transform="batch_norm"),
}
"""Of two views [N, D], any N >= 2 and D (all4one: a multiple of 8)."""
NEW = sorted(LOSSES)


def near_collapse(n: int, d: int, noise: float) -> list[Tensor]:
    views = [1 + noise * view for view in embeddings(n, d)]
    return [view.float().requires_grad_() for view in views]


INPUTS: dict[str, Callable[[int], list[Tensor]]] = {
    "fewer images than channels": lambda width: [v.float().requires_grad_() for v in embeddings(6, 3 * width)],
    "more images than channels": lambda width: [v.float().requires_grad_() for v in embeddings(40, width)],
    "one channel": lambda width: [v.float().requires_grad_() for v in embeddings(12, 1 if width < 8 else 8)],
    "near collapse": lambda width: near_collapse(12, width, 1e-4),
    "collapse but for rounding": lambda width: near_collapse(12, width, 1e-7),
    "all the same": lambda width: [torch.ones(12, width, requires_grad=True) for _ in range(2)],
    "all zero": lambda width: [torch.zeros(12, width, requires_grad=True) for _ in range(2)],
    "huge": lambda width: [(1e6 * v).float().requires_grad_() for v in embeddings(12, width)],
}


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("kind", INPUTS)
def test_hard_inputs_give_a_finite_loss_and_gradient_or_one_clear_error(name: str, kind: str) -> None:
    views = INPUTS[kind](8 if name == "all4one" else 6)
    try:
        loss = LOSSES[name](views)
    except UserError:
        return
    gradients = torch.autograd.grad(loss, views, allow_unused=True)
    assert loss.isfinite()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", NEW)
def test_float32_and_bfloat16_inputs_give_the_loss_of_float64_up_to_rounding(name: str) -> None:
    views = embeddings(24, 16)
    exact = float(LOSSES[name](views))
    single = LOSSES[name]([view.float() for view in views])
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(exact, rel=2e-5, abs=2e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LOSSES[name]([view.float() for view in views])
        half = LOSSES[name]([view.bfloat16() for view in views])
    if name != "all4one":  # its transformer is a network, and runs as the caller says
        assert float(inside) == float(single)
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(exact, rel=0.05, abs=0.05)


# --- other implementations --------------------------------------------------------------------------------------------


def test_losses_equal_lightly_s() -> None:
    lightly = pytest.importorskip("lightly.loss")
    views = embeddings(12, 10)
    assert float(lightly.DCLLoss(0.2)(*views)) == pytest.approx(float(dcl_loss(views, 0.2)) / 2, rel=1e-9)
    assert float(lightly.DCLWLoss(0.2, 0.5)(*views)) == pytest.approx(float(dcl_loss(views, 0.2, 0.5)) / 2, rel=1e-9)
    assert float(lightly.FroSSLLoss(1.4)(views)) == pytest.approx(float(frossl_loss(views, 1.4)), rel=1e-9)
    units, targets = [unit_rows(view) for view in views], [unit_rows(view) for view in others(views)]
    centroids = lightly.MMCRLoss(0.0)(torch.stack(units, 1), torch.stack(targets, 1))
    assert float(centroids) == pytest.approx(float(mmcr_loss(units, targets)), rel=1e-9)


def test_tico_equals_lightly_s_over_two_steps() -> None:
    lightly = pytest.importorskip("lightly.loss")
    peer, covariance = lightly.TiCoLoss(0.9, 8.0), torch.zeros(10, 10, dtype=torch.float64)
    for seed in range(2):
        views = [view.requires_grad_() for view in embeddings(12, 10, seed=seed)]
        outcome = tico_loss(*views, covariance)
        expected = peer(*views)
        covariance = outcome.covariance
        assert float(outcome.loss) == pytest.approx(float(expected), rel=1e-9)
        gradients = [torch.autograd.grad(loss, views[0])[0] for loss in (outcome.loss, expected)]
        torch.testing.assert_close(*gradients)


def test_supcon_with_a_class_for_every_image_is_simclr() -> None:
    views, classes = embeddings(10, 6), torch.arange(10)
    for inside in (False, True):
        loss = supcon_loss(views, classes, 0.3, inside)
        assert float(loss) == pytest.approx(float(simclr_loss(views, 0.3)), rel=1e-12)
    assert float(supcon_loss(views, classes, 0.1, base=0.07)) == pytest.approx(
        float(supcon_loss(views, classes, 0.1)) / 0.7
    )


def test_dcl_is_the_contrast_without_the_positive_in_the_denominator() -> None:
    a, b = (unit_rows(view) for view in embeddings(7, 5))
    expected = 0.0
    for x, y in ((a, b), (b, a)):
        for i in range(7):
            negatives = sum((x[i] @ z[j] / 0.3).exp() for z in (x, y) for j in range(7) if j != i)
            expected += float((negatives.log() - x[i] @ y[i] / 0.3) / 7)  # type: ignore[union-attr]
    assert float(dcl_loss([a, b], 0.3)) == pytest.approx(expected, rel=1e-12)


def test_mec_s_series_is_the_log_determinant_where_it_converges() -> None:
    views, targets = embeddings(8, 12), others(embeddings(8, 12))
    p, t = ([unit_rows(x) for x in pair] for pair in (views, targets))
    eye = torch.eye(8, dtype=torch.float64)
    exact = [torch.linalg.slogdet(eye + t[a] @ p[1 - a].T / 40).logabsdet for a in range(2)]
    ours = mec_loss(views, targets, 40.0, order=12)
    assert float(ours) == pytest.approx(-40 / 8 * float(torch.stack(exact).mean()), rel=1e-9)


@pytest.mark.parametrize("shape", [(6, 10), (20, 6)], ids=["N < D", "N > D"])
def test_matrix_ssl_equals_the_form_with_matrices_over_channels(shape: tuple[int, int]) -> None:
    views, targets = embeddings(*shape), others(embeddings(*shape))
    n, d = shape
    eye = torch.eye(d, dtype=torch.float64)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n

    def covariance(a: Tensor, b: Tensor) -> Tensor:
        return unit_rows(a).T @ centring @ unit_rows(b) / n + 0.5 * eye

    def log4(m: Tensor) -> Tensor:
        return sum((-1) ** (k + 1) / k * torch.linalg.matrix_power(m - eye, k) for k in range(1, 5))  # type: ignore[return-value]

    terms = [
        -0.7 * log4(covariance(targets[a], views[1 - a])).trace()
        - 1.3 * (covariance(targets[a], targets[a]) @ log4(covariance(views[1 - a], views[1 - a]))).trace()
        for a in range(2)
    ]
    assert float(matrix_ssl_loss(views, targets, 0.7, 0.5, 1.3)) == pytest.approx(float(sum(terms)) / 2, rel=1e-9)


# --- properties -------------------------------------------------------------------------------------------------------


def test_equal_views_of_spread_embeddings_are_best_for_the_spectral_losses() -> None:
    """Orthonormal rows, the same in both views: bounds are reached."""
    rows = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q[:8]
    views = [rows, rows]
    assert float(mmcr_loss(views)) == pytest.approx(-8, rel=1e-9)
    assert float(ivne_loss(views, 1.0)) == pytest.approx(-1 - torch.log(torch.tensor(8.0)).item(), rel=1e-6)
    square = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    assert float(frossl_loss([square, square])) == pytest.approx(-2 * torch.log(torch.tensor(8.0)).item(), rel=1e-6)


def test_flattened_sigreg_is_about_v_times_that_per_view() -> None:
    views = embeddings(64, 6, views=4)
    ratio = sigreg(views, directions(views), flatten=True) / sigreg(views, directions(views))
    assert 3 < float(ratio) < 4.5


def test_no_gradient_flows_to_targets_scale_and_assignments() -> None:
    views = [view.requires_grad_() for view in embeddings(10, 6)]
    targets = [view.clone().requires_grad_() for view in others(views)]
    for loss in (moco_v3_loss(views, targets), resa_loss(views, targets, *targets), mmcr_loss(views, targets)):
        gradients = torch.autograd.grad(loss, [*views, *targets], allow_unused=True)
        assert all(gradient is not None for gradient in gradients[:2])
        assert gradients[2:] == (None, None)


def test_resa_s_assignment_is_balanced_over_images_and_of_all_of_them() -> None:
    h, target_h = embeddings(12, 30)
    q = assignment(h, target_h, iterations=50)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(q.sum(dim=0), torch.ones(12, dtype=torch.float64), rtol=5e-3, atol=0)


def test_corinfomax_keeps_float64_whatever_the_precision_of_the_embeddings() -> None:
    views = [view.bfloat16() for view in embeddings(12, 6)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = corinfomax_loss(views, initial_state(6))
    assert outcome.state.mean.dtype == outcome.state.covariance.dtype == torch.float64
    assert outcome.log_determinants.dtype == torch.float64
    method = build("corinfomax", {})
    before = method.covariance.clone()  # type: ignore[operator]
    method(batch_of(16))
    assert not method.covariance.equal(before)


def test_corinfomax_refuses_a_collapsed_batch_without_memory() -> None:
    views = [torch.ones(8, 4), torch.ones(8, 4)]
    with pytest.raises(UserError, match="collapsed"):
        corinfomax_loss(views, initial_state(4), memory=0.0, eps=0.0)


def test_tico_s_forms_have_the_same_value_and_other_gradients() -> None:
    views = [view.requires_grad_() for view in embeddings(12, 6)]
    state = torch.eye(6, dtype=torch.float64)
    losses = [tico_loss(*views, state, attached=attached).loss for attached in (False, True)]
    assert float(losses[0]) == float(losses[1])
    gradients = [torch.autograd.grad(loss, views[0])[0] for loss in losses]
    assert not torch.allclose(*gradients)


# --- methods ----------------------------------------------------------------------------------------------------------


def test_directions_are_those_of_the_step_and_not_of_the_process() -> None:
    def loss(shared: int, own: int, per_process: bool) -> float:
        method = build("visreg", {"slices": 8, "slices_per_process": per_process})
        method.shared_seed = shared
        torch.manual_seed(own)
        return float(method(batch_of(16)).loss)

    assert loss(1, 0, per_process=False) == loss(1, 5, per_process=False) != loss(2, 0, per_process=False)
    assert loss(1, 0, per_process=True) != loss(1, 5, per_process=True)


def test_mec_s_divisor_falls_linearly_over_its_first_epochs() -> None:
    method = build("mec", {"warmup_epochs": 2, "predictor": 8})
    method.steps_per_epoch = 5
    factors = []
    for method.step in (0, 3, 9, 30):
        factors.append(method.factor)
    assert factors == pytest.approx([8.0, 8 - 7 / 3, 1.0, 1.0])


def test_deepcluster_classifies_by_the_memory_of_the_epoch_before() -> None:
    (case,) = [case for case in CASES if case.name == "deepcluster"]
    method: Method[object] = case.build()
    first = method.banks.clone()  # type: ignore[operator]
    clusters = method.assignments.clone()  # type: ignore[operator]
    method(case.batch())
    assert not method.banks.equal(first)
    assert method.assignments.equal(clusters)
    with pytest.raises(UserError, match="cannot be made of 16 images"):
        build("deepcluster", {"clusters": 17}).check_dataset(16, 10)


def test_simdino_s_official_default_depends_on_the_number_of_processes() -> None:
    views, targets = embeddings(8, 6), others(embeddings(8, 6))
    assert float(simdino_loss(views, targets)) != pytest.approx(float(simdino_loss(views, targets, world=4)), rel=1e-2)
