"""SwAV and DINO: assignments, queue, centre, multi-crop batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.losses.similarity import unit_rows
from pretrain.methods.dino import DINO, LastLayer, dino_loss
from pretrain.methods.swav import SwAV, sinkhorn, swav_loss
from pretrain.networks import embed_by_size
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of, images, tiny_encoder


def scores(views: int, prototypes: int = 12) -> list[Tensor]:
    rows = unit_rows(torch.randn(prototypes, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    return [(unit_rows(view) @ rows.mT).requires_grad_() for view in embeddings(16, 24, views)]


def assert_equal_with_gradients(ours: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, expected.squeeze())
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


# --- SwAV -------------------------------------------------------------------------------------------------------------


def test_swav_equals_lightly() -> None:
    peer = pytest.importorskip("lightly.loss").SwaVLoss()
    views = scores(5)
    ours = swav_loss(views, [sinkhorn(view.detach()) for view in views[:2]])
    assert_equal_with_gradients(ours, peer(views[:2], views[2:]), views)


def test_swav_with_a_queue_equals_lightly() -> None:
    peer = pytest.importorskip("lightly.loss").SwaVLoss()
    views, past = scores(3), [score.detach().roll(3, 0) for score in scores(2)]
    targets = [sinkhorn(torch.cat([view.detach(), old]))[:16] for view, old in zip(views, past)]
    assert_equal_with_gradients(swav_loss(views, targets), peer(views[:2], views[2:], past), views)


@given(st.integers(2, 40), st.integers(2, 20), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_many_sinkhorn_steps_use_all_prototypes_equally(n: int, k: int, seed: int) -> None:
    given_scores = torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assigned = sinkhorn(given_scores, epsilon=0.5, iterations=200)
    torch.testing.assert_close(assigned.sum(dim=1), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(assigned.sum(dim=0), torch.full((k,), n / k, dtype=torch.float64), rtol=1e-4, atol=0)


def test_sinkhorn_bears_a_prototype_far_from_everything() -> None:
    far = torch.tensor([[1.0, -300.0], [0.9, -300.0]])
    assert sinkhorn(far).isfinite().all()


def test_prototypes_are_frozen_at_first_and_of_length_one() -> None:
    method = build("swav", {"prototypes": 10, "frozen_iterations": 3})
    assert isinstance(method, SwAV)
    for step, frozen in ((2, True), (3, False)):
        method.step = step
        method.zero_grad()
        method(batch_of(16)).loss.backward()
        method.before_update()
        assert (method.prototypes.weight.grad is None) is frozen
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(10, dtype=torch.float64))


def test_the_queue_counts_once_it_is_full_and_its_epoch_has_come() -> None:
    options = {"prototypes": 10, "queue": 32, "queue_epoch": 2}
    with_queue, without = build("swav", options), build("swav", {**options, "queue": 0})
    assert isinstance(with_queue, SwAV)
    without.load_state_dict(with_queue.state_dict(), strict=False)
    batch = batch_of(16)

    def differ(epoch: int) -> bool:
        with_queue.epoch = without.epoch = epoch
        return with_queue(batch).loss.item() != pytest.approx(without(batch).loss.item(), rel=1e-12)

    assert [differ(epoch) for epoch in (1, 1, 1, 2, 2)] == [False] * 5  # the last two fill it
    for queue in with_queue.queues:
        queue.rows.copy_(unit_rows(torch.randn(queue.rows.shape)))  # of other images
    assert differ(2)


def test_views_of_one_size_go_through_the_backbone_together() -> None:
    encoder, views = tiny_encoder(), [images(6, 0), images(6, 1, size=6), images(6, 2)]
    embedded = embed_by_size(encoder, views)
    large, small = encoder.backbone(torch.cat([views[0], views[2]])), encoder.backbone(views[1])
    expected = encoder.projector(torch.cat([large[:6], small, large[6:]])).chunk(3)
    for one, other in zip(embedded, expected, strict=True):
        torch.testing.assert_close(one, other)


# --- DINO -------------------------------------------------------------------------------------------------------------


def test_dino_equals_lightly_and_moves_its_centre_alike() -> None:
    peer = pytest.importorskip("lightly.loss").DINOLoss(12, teacher_temp=0.04, center_momentum=0.9).double()
    student, teacher = scores(5), [score.detach() for score in scores(2)]
    peer.center.copy_(torch.linspace(-0.1, 0.1, 12, dtype=torch.float64))
    centre = peer.center.flatten().clone()
    assert_equal_with_gradients(dino_loss(student, teacher, centre), peer(teacher, student), student)


def test_the_centre_is_the_moving_mean_of_the_teachers_outputs() -> None:
    method, batch = build("dino", {"outputs": 30, "centre_momentum": 0.75}), batch_of(16, views=3)
    assert isinstance(method, DINO)
    method(batch)
    teacher = embed_by_size(method.teacher.network, batch.views[:2])
    outputs = torch.cat([method.teacher_last(z) for z in teacher])
    torch.testing.assert_close(method.centre, outputs.mean(dim=0) / 4)


def test_the_last_layer_is_a_weight_normalised_one_of_gain_one() -> None:
    own = LastLayer(8, 5).double()
    peer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 5, bias=False).double())
    with torch.no_grad():
        peer.parametrizations.weight.original0.fill_(1)
        peer.parametrizations.weight.original1.copy_(own.weight)
    z = embeddings(4, 8)[0]
    torch.testing.assert_close(own(z), peer(unit_rows(z)))


def test_the_head_starts_as_in_the_official_code_and_the_teacher_as_its_copy() -> None:
    torch.manual_seed(0)
    method = build("dino", {"outputs": 3000}, embedding_dim=64)
    assert isinstance(method, DINO)
    for layer in (method.encoder.projector[0], method.encoder.projector[3]):
        assert float(layer.weight.std()) == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    assert float(method.last.weight.norm(dim=1).mean()) == pytest.approx(3**-0.5, rel=0.02)
    student, teacher = method.encoder.state_dict(), method.teacher.network.state_dict()
    assert all(tensor.equal(teacher[name]) for name, tensor in student.items())
    plain = build("dino", {"outputs": 30, "head_init": "default"}, embedding_dim=64)
    assert float(plain.encoder.projector[3].weight.std()) == pytest.approx(24**-0.5 / 3**0.5, rel=0.05)


def test_the_teacher_moves_after_the_update() -> None:
    method = build("dino", {"outputs": 30, "momentum": 0.9})
    assert isinstance(method, DINO)
    with torch.no_grad():
        for parameter in (*method.encoder.parameters(), *method.last.parameters()):
            parameter += 1
    start = [parameter.clone() for parameter in (*method.teacher.parameters(), *method.teacher_last.parameters())]
    method.progress = 0.5
    method(batch_of(16)).loss.backward()
    moved = (*method.teacher.parameters(), *method.teacher_last.parameters())
    assert all(parameter.equal(before) for before, parameter in zip(start, moved, strict=True))
    method.after_update()
    for before, parameter in zip(start, moved, strict=True):
        torch.testing.assert_close(parameter, before + 0.05)


def test_the_last_layer_is_frozen_in_the_first_epoch() -> None:
    method = build("dino", {"outputs": 30})
    assert isinstance(method, DINO)
    for epoch, frozen in ((0, True), (1, False)):
        method.epoch = epoch
        method.zero_grad()
        method(batch_of(16)).loss.backward()
        method.before_update()
        assert (method.last.weight.grad is None) is frozen
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_the_teachers_temperature_warms_up() -> None:
    method = build("dino", {"outputs": 30, "teacher_temperature": 0.07, "warmup_epochs": 4})
    assert isinstance(method, DINO)
    seen = []
    for epoch in range(6):
        method.epoch = epoch
        seen.append(method.teacher_temperature)
    assert seen == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
