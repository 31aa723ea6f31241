"""What holds of the methods and their losses; their exact values are in `test_golden`."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain import methods
from pretrain.methods import Method, find_method, method_names
from pretrain.methods.cwrgp import covariance_penalty, cwrgp_loss
from pretrain.methods.intl import intl_ema_loss, intl_loss, trace_floor, trace_loss
from pretrain.methods.simclr import simclr_loss
from pretrain.methods.similarity import cosine_distance, spread
from pretrain.whitening import whiten
from results.command import UserError
from tests.tiny_encoder import batch_of, tiny_encoder

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("cwrgp", {"groups": 2, "window": 8}),
    ("intl", {}),
    ("intl", {"momentum": 0.99}),
    ("simclr", {}),
    ("supervised", {"classes": 4}),
]
named = pytest.mark.parametrize(("name", "options"), METHODS, ids=["cwrgp", "intl", "intl-ema", "simclr", "supervised"])


def build(name: str, options: dict[str, Any], **encoder: Any) -> Method[Any]:
    kind = find_method(name)
    built = tiny_encoder(**encoder)
    if name == "supervised":
        built.projector, built.embedding_dim = torch.nn.Identity(), built.feature_dim
    return kind(built, kind.Config(**options)).to(next(built.parameters()).dtype)


def embeddings(n: int, d: int, views: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = [torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(views)]
    return [clean + 0.5 * one for one in noise]


def losses(views: list[Tensor]) -> dict[str, Tensor]:
    d = views[0].shape[1]
    orders = [torch.randperm(d, generator=torch.Generator().manual_seed(v)) for v in range(len(views))]
    return {
        "cwrgp": cwrgp_loss(views, 2, permutations=orders),
        "intl": intl_loss(views),
        "intl-batch": intl_loss(views, axis="batch"),
        "intl-ema": intl_ema_loss(views[1:], views[0]),
        "simclr": simclr_loss(views, 0.2),
    }


# --- all methods ------------------------------------------------------------------------------------------------------


def test_the_methods_are_the_files_of_the_folder() -> None:
    assert {"cwrgp", "intl", "random", "simclr", "supervised"} <= set(method_names())
    assert "similarity" not in method_names()


def test_adding_a_method_is_dropping_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attract.py").write_text(
        "from pretrain.methods import Method, Step\n"
        "from pretrain.methods.similarity import cosine_distance\n"
        "from pretrain.recipe import strict\n\n"
        "@strict\nclass Config:\n    weight: float = 1.0\n\n"
        "class Attract(Method[Config]):\n"
        "    def forward(self, batch):\n"
        "        a, b = (self.encoder(view).z for view in batch.views)\n"
        "        return Step(self.config.weight * cosine_distance(a, b))\n"
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "attract" in method_names()
    step = build("attract", {"weight": 2.0})(batch_of(8))
    assert step.loss.requires_grad
    with pytest.raises(UserError, match="did you mean 'attract'"):
        find_method("atract")


@named
def test_a_step_gives_every_trainable_parameter_a_finite_gradient(name: str, options: dict[str, Any]) -> None:
    method = build(name, options)
    method.check(16, 2)
    step = method(batch_of(16))
    step.loss.backward()
    assert step.loss.ndim == 0
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
    assert all(not value.requires_grad and value.ndim == 0 and value.isfinite() for value in step.scalars.values())


@named
def test_only_supervised_looks_at_labels(name: str, options: dict[str, Any]) -> None:
    def loss(shift: int) -> float:
        method, batch = build(name, options), batch_of(16)
        torch.manual_seed(7)
        return method(replace(batch, label=(batch.label + shift) % 4)).loss.item()

    assert (loss(0) == loss(1)) is not find_method(name).uses_labels


@named
def test_draws_repeat_with_torchs_seed(name: str, options: dict[str, Any]) -> None:
    seen = []
    for _ in range(2):
        method = build(name, options)
        torch.manual_seed(1)
        seen.append(method(batch_of(16)).loss.item())
    assert seen[0] == seen[1]


@named
def test_bf16_autocast_changes_the_loss_by_rounding_only(name: str, options: dict[str, Any]) -> None:
    batch = batch_of(16, dtype=torch.float32)
    seen = []
    for enabled in (False, True):
        method = build(name, options, dtype=torch.float32)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            step = method(batch)
        assert step.loss.dtype == torch.float32
        step.loss.backward()
        seen.append(step.loss.item())
    assert seen[1] == pytest.approx(seen[0], rel=0.03)


def test_losses_are_computed_outside_autocast() -> None:
    views = [view.float() for view in embeddings(16, 96)]
    plain = losses(views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses(views)
        from_bf16 = losses([view.bfloat16() for view in views])
    for key, value in plain.items():
        assert inside[key].dtype == from_bf16[key].dtype == torch.float32
        assert float(inside[key]) == float(value), key
        assert float(from_bf16[key]) == pytest.approx(float(value), rel=0.02, abs=0.02), key


def test_losses_do_not_depend_on_the_order_of_the_images() -> None:
    views = embeddings(16, 96, views=3)
    order = torch.randperm(16)
    shuffled = losses([view[order] for view in views])
    for key, value in losses(views).items():
        assert float(shuffled[key]) == pytest.approx(float(value), rel=1e-10), key


def test_losses_do_not_depend_on_the_scale_of_the_embeddings() -> None:
    views = embeddings(16, 96)
    scaled = losses([view * scale for view, scale in zip(views, (1e-3, 1e4))])
    for key, value in losses(views).items():
        assert float(scaled[key]) == pytest.approx(float(value), rel=1e-9), key


@pytest.mark.parametrize(
    ("name", "options", "batch", "views", "message"),
    [
        ("cwrgp", {"groups": 2, "window": 8}, 16, 1, "at least 2 views"),
        ("cwrgp", {"groups": 2, "window": 6}, 16, 2, "16 images of a process cannot be dealt to windows of 6"),
        ("cwrgp", {"groups": 5, "window": 8}, 16, 2, "48 channels cannot be cut into 5 groups"),
        ("cwrgp", {"groups": 0, "window": 8}, 16, 2, "0 groups"),
        ("cwrgp", {"groups": 2, "window": 24}, 24, 2, r"N = 24.*48 / 2 = 24"),
        ("cwrgp", {"groups": 2, "window": None}, 32, 2, r"N = 32.*48 / 2 = 24"),
        ("cwrgp", {"groups": 2, "window": 8, "repeats": 0}, 16, 2, "repeats"),
        ("intl", {}, 16, 1, "at least 2 views"),
        ("intl", {}, 8, 2, r"not positive for n = 8"),
        ("intl", {"iterations": 0}, 16, 2, "iterations"),
        ("intl", {"momentum": 1.5}, 16, 2, "momentum"),
        ("simclr", {}, 16, 1, "at least 2 views"),
        ("simclr", {"temperature": 0.0}, 16, 2, "temperature"),
        ("supervised", {"classes": 1}, 16, 1, "at least 2 classes"),
        ("supervised", {"classes": 4, "label_smoothing": 1.0}, 16, 1, "label_smoothing"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(
    name: str, options: dict[str, Any], batch: int, views: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(name, options).check(batch, views)


def test_shrinkage_admits_windows_beyond_the_constraint() -> None:
    method = build("cwrgp", {"groups": 4, "window": 16, "eps": 0.01})
    method.check(16, 2)
    assert method(batch_of(16)).loss.isfinite()


# --- similarity -------------------------------------------------------------------------------------------------------


def test_cosine_distance_equals_the_squared_distance_of_unit_rows() -> None:
    a, b = embeddings(7, 5)
    expected = (F.normalize(a) - F.normalize(b)).square().sum(dim=1).mean()
    assert float(cosine_distance(a, b)) == pytest.approx(float(expected), rel=1e-12)


def test_a_row_of_zeros_counts_as_orthogonal_and_has_a_finite_gradient() -> None:
    a = torch.zeros(2, 3, requires_grad=True)
    distance = cosine_distance(a, torch.zeros(2, 3))
    distance.backward()
    assert distance.item() == 2
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_spread_is_one_for_isotropic_and_zero_for_collapsed_embeddings() -> None:
    isotropic = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert float(spread(isotropic)) == pytest.approx(1, abs=0.01)
    assert float(spread(torch.ones(10, 64) * torch.arange(1, 11)[:, None])) == pytest.approx(0, abs=1e-3)
    unit = F.normalize(embeddings(9, 5)[0])
    assert float(spread(unit * 3)) == pytest.approx(float(unit.var(dim=0, unbiased=False).sum().sqrt()))


# --- CW-RGP -----------------------------------------------------------------------------------------------------------


def test_windows_are_dealt_at_random_and_alike_for_all_views() -> None:
    """Every draw equals the mean over the two halves of SOME split of the images that all views share."""
    views = embeddings(6, 20)
    splits = {}
    for half in itertools.combinations(range(1, 6), 2):
        first = [0, *half]
        rest = [i for i in range(6) if i not in first]
        parts = [cwrgp_loss([view[part] for view in views], 2, random_groups=False) for part in (first, rest)]
        splits[tuple(first)] = float(torch.stack(parts).mean())
    generator = torch.Generator().manual_seed(0)
    hit = set()
    for _ in range(60):
        loss = float(cwrgp_loss(views, 2, random_groups=False, window=3, generator=generator))
        hit.add(min(splits, key=lambda split: abs(splits[split] - loss)))
        assert min(abs(value - loss) for value in splits.values()) < 1e-10
    assert len(hit) >= 8


def test_each_view_window_and_repeat_draws_its_own_groups() -> None:
    z = embeddings(6, 40)[0]
    assert float(cwrgp_loss([z, z], 4, random_groups=False)) == pytest.approx(0, abs=1e-12)
    assert float(cwrgp_loss([z, z], 4)) > 0.01
    assert len({round(float(cwrgp_loss([z, z], 4, window=3)), 9) for _ in range(8)}) == 8


def test_fixed_groups_equal_whitening_view_by_view() -> None:
    views = embeddings(6, 40, views=3)
    orders = [torch.randperm(40) for _ in views]
    whitened = [whiten(view, groups=4, permutation=order) for view, order in zip(views, orders)]
    pairs = [cosine_distance(a, b) for a, b in itertools.combinations(whitened, 2)]
    torch.testing.assert_close(cwrgp_loss(views, 4, permutations=orders), torch.stack(pairs).mean())
    identity = [torch.arange(40)] * 3
    torch.testing.assert_close(cwrgp_loss(views, 4, permutations=identity), cwrgp_loss(views, 4, random_groups=False))


@pytest.mark.parametrize("orders", [[torch.arange(40)], [torch.arange(39)] * 2])
def test_permutations_that_do_not_fit_are_refused(orders: list[Tensor]) -> None:
    with pytest.raises(UserError, match="2 orders of 40 channels"):
        cwrgp_loss(embeddings(6, 40), 4, permutations=orders)


def test_repeats_average_independent_draws() -> None:
    views = embeddings(8, 40)
    once = cwrgp_loss(views, 2, random_groups=False)
    torch.testing.assert_close(cwrgp_loss(views, 2, random_groups=False, repeats=3), once)
    repeated = cwrgp_loss(views, 2, window=4, repeats=2000, generator=torch.Generator().manual_seed(0))
    single = [cwrgp_loss(views, 2, window=4, generator=torch.Generator().manual_seed(i)) for i in range(1000)]
    assert float(repeated) == pytest.approx(float(torch.stack(single).mean()), rel=0.01)


def test_without_normalization_the_distance_is_the_mean_squared_difference() -> None:
    a, b = embeddings(6, 40)
    expected = F.mse_loss(whiten(a, groups=2), whiten(b, groups=2))
    torch.testing.assert_close(cwrgp_loss([a, b], 2, random_groups=False, normalize=False), expected)


def test_gradients_reach_both_views_and_equal_finite_differences() -> None:
    views = [view.requires_grad_() for view in embeddings(6, 20)]

    def function(*views: Tensor) -> Tensor:
        return cwrgp_loss(views, 2, window=3, repeats=2, generator=torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(function, tuple(views), atol=1e-6)


def test_covariance_penalty_is_the_squared_off_diagonal_of_the_images_covariance() -> None:
    views = embeddings(6, 20)
    expected = 0.0
    for view in views:
        covariance = view.cov()
        expected += float((covariance - covariance.diag().diag()).square().sum() / 6)
    assert float(covariance_penalty(views)) == pytest.approx(expected, rel=1e-10)


def test_covariance_penalty_is_switched_off_after_its_share_of_the_training() -> None:
    options = {"groups": 2, "window": 8, "random_groups": False, "covariance_weight": 0.5, "covariance_until": 0.5}
    method, batch = build("cwrgp", options), batch_of(8)
    seen = {}
    for progress in (0.0, 0.499, 0.5, 1.0):
        method.progress = progress
        step = method(batch)
        seen[progress] = step.loss.item()
        assert ("covariance_penalty" in step.scalars) is (progress < 0.5)
    assert seen[0.0] == seen[0.499] > seen[0.5] == seen[1.0]


# --- INTL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "iterations", "remaining"), [(64, 4, 0.3287), (64, 7, 0.9832), (128, 5, 0.3597), (256, 4, 0.0952)]
)
def test_trace_floor_is_that_of_an_equal_spectrum(n: int, iterations: int, remaining: float) -> None:
    assert (trace_floor(n, 10**9, iterations) / n) ** 0.5 == pytest.approx(1 - remaining, abs=1e-4)
    assert trace_floor(256, 8192, 4) == pytest.approx(209.6, abs=0.05)


@pytest.mark.parametrize(("n", "d"), [(16, 200), (40, 12)])
def test_no_embedding_has_a_trace_loss_below_the_floor(n: int, d: int) -> None:
    for seed in range(5):
        output = whiten(embeddings(n, d, seed=seed)[0], "iternorm")
        assert float(trace_loss(output, "channel")) >= trace_floor(n, d, 4) - 1e-9


def test_trace_loss_equals_its_definition() -> None:
    z = embeddings(9, 30)[0]
    for axis, dim in (("channel", 1), ("batch", 0)):
        output = whiten(z, "iternorm", axis=axis)  # type: ignore[arg-type]
        expected = (output.var(dim=dim) - 1).square().sum()
        assert float(trace_loss(output, axis)) == pytest.approx(float(expected), rel=1e-12)  # type: ignore[arg-type]


def test_logged_trace_excess_is_zero_at_an_equal_spectrum() -> None:
    basis = torch.linalg.qr(torch.cat([torch.ones(60, 1, dtype=torch.float64), *embeddings(60, 9)], dim=1)).Q
    output = whiten(basis[:, 1:17].T, "iternorm")
    assert float(trace_loss(output, "channel")) == pytest.approx(trace_floor(16, 60, 4), rel=1e-9)


def test_every_view_is_compared_with_the_first() -> None:
    views = embeddings(16, 64, views=4)
    pairs = torch.stack([intl_loss([views[0], other]) for other in views[1:]])
    torch.testing.assert_close(intl_loss(views), pairs.mean())
    single = torch.stack([intl_ema_loss([other], views[0]) for other in views[1:]])
    torch.testing.assert_close(intl_ema_loss(views[1:], views[0]), single.mean())


def test_method_and_loss_agree() -> None:
    method, batch = build("intl", {"iterations": 5, "trade_off": 0.1}), batch_of(16, views=3)
    expected = intl_loss([method.encoder(view).z for view in batch.views], iterations=5, trade_off=0.1)
    torch.testing.assert_close(method(batch).loss, expected)


def test_the_target_moves_towards_the_encoder_before_each_step_and_gets_no_gradient() -> None:
    method, batch = build("intl", {"momentum": 0.9}), batch_of(16)
    target = method.get_submodule("target")
    before = [parameter.clone() for parameter in target.parameters()]
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    method.progress = 0.0
    step = method(batch)
    step.loss.backward()
    for old, new in zip(before, target.parameters()):
        torch.testing.assert_close(new, old + 0.1)
        assert new.grad is None
    online = method.encoder(batch.views[1]).z
    torch.testing.assert_close(step.loss, intl_ema_loss([online], target(batch.views[0]).z))


# --- the others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_equals_an_independent_implementation(temperature: float) -> None:
    reference = pytest.importorskip("lightly.loss").NTXentLoss(temperature=temperature)
    a, b = (view.requires_grad_() for view in embeddings(12, 32))
    loss, expected = simclr_loss([a, b], temperature), reference(a, b)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    (gradient,) = torch.autograd.grad(loss, a)
    (reference_gradient,) = torch.autograd.grad(expected, a)
    torch.testing.assert_close(gradient, reference_gradient)


def test_simclr_averages_over_pairs_of_views() -> None:
    views = embeddings(12, 32, views=4)
    pairs = torch.stack([simclr_loss([a, b], 0.2) for a, b in itertools.combinations(views, 2)])
    torch.testing.assert_close(simclr_loss(views, 0.2), pairs.mean())


def test_supervised_is_cross_entropy_over_all_views_and_reports_accuracy() -> None:
    method, batch = build("supervised", {"classes": 4, "label_smoothing": 0.1}), batch_of(16)
    step = method(batch)
    classifier = method.get_submodule("classifier")
    logits = [classifier(method.encoder(view).h) for view in batch.views]
    expected = torch.stack([F.cross_entropy(one, batch.label, label_smoothing=0.1) for one in logits]).mean()
    torch.testing.assert_close(step.loss, expected)
    correct = torch.stack([(one.argmax(dim=1) == batch.label).float().mean() for one in logits]).mean()
    torch.testing.assert_close(step.scalars["accuracy"], correct)


def test_supervised_refuses_a_projector() -> None:
    kind = find_method("supervised")
    with pytest.raises(UserError, match="projector"):
        kind(tiny_encoder(), kind.Config(classes=4)).check(16, 1)


def test_random_is_not_trained() -> None:
    assert not find_method("random").trains
    build("random", {}).check(16, 1)
