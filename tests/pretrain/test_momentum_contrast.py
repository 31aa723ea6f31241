"""MoCo: its loss, its queue and its slowly moving encoder."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pretrain.losses.momentum_contrast import Queue, info_nce
from pretrain.losses.similarity import unit_rows
from pretrain.methods.moco import Config, MoCo
from pretrain.split_batch_norm import split_batch_norms
from tests.support.method_cases import build, embeddings
from tests.support.tiny_encoder import batch_of, images
from whitebench.errors import UserError


def test_info_nce_equals_lightly_with_a_memory_bank() -> None:
    loss = pytest.importorskip("lightly.loss").NTXentLoss(0.2, memory_bank_size=(30, 12))
    query, key = (view.requires_grad_() for view in embeddings(16, 12))
    negatives = unit_rows(torch.randn(30, 12, dtype=torch.float64))
    loss.memory_bank.bank = negatives.clone()
    expected = loss(query, key.detach())
    ours = info_nce(unit_rows(query), unit_rows(key.detach()), negatives, 0.2)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, query)[0] for value in (ours, expected)))


@given(st.integers(1, 20), st.lists(st.integers(1, 30), max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_queue_holds_the_last_rows(size: int, pushes: list[int]) -> None:
    queue, everything = Queue(size, 2), torch.zeros(0, 2)
    for n in pushes:
        rows = torch.arange(len(everything), len(everything) + n).float().unsqueeze(1).expand(n, 2)
        queue.push(rows)
        everything = torch.cat([everything, rows])
    held = {float(value) for value in queue.rows[:, 0] if float(value).is_integer() or queue.full}
    assert {float(value) for value in everything[-size:, 0]} <= held
    assert queue.full is (sum(pushes) >= size)


def test_a_fresh_queue_holds_random_directions() -> None:
    torch.manual_seed(0)
    rows = Queue(1000, 16).rows
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(1000))
    assert rows.mean(dim=0).abs().max() < 0.05


def test_a_step_pushes_its_keys_and_uses_those_before_it() -> None:
    method = build("moco", {"queue": 20})
    assert isinstance(method, MoCo)
    batch, before = batch_of(16), method.contrast.queue.rows.clone()
    step = method(batch)
    with torch.no_grad():
        query, key = unit_rows(method.encoder(batch.views[0]).z), unit_rows(method.contrast.target(batch.views[1]).z)
    torch.testing.assert_close(step.loss.detach(), info_nce(query, key, before, 0.2))
    torch.testing.assert_close(method.contrast.queue.rows[:16], key)
    assert method.contrast.queue.rows[16:].equal(before[16:])
    step.loss.backward()


def test_a_symmetric_step_is_the_mean_of_both_directions_with_a_queue_each() -> None:
    method = build("moco", {"queue": 20, "symmetric": True})
    assert isinstance(method, MoCo)
    assert method.other_queue is not None
    batch, queues = batch_of(16), [method.contrast.queue, method.other_queue]
    before = [queue.rows.clone() for queue in queues]
    loss = method(batch).loss
    with torch.no_grad():
        queries = [unit_rows(method.encoder(view).z) for view in batch.views]
        keys = [unit_rows(method.contrast.target(view).z) for view in batch.views]
    directions = [info_nce(queries[0], keys[1], before[0], 0.2), info_nce(queries[1], keys[0], before[1], 0.2)]
    torch.testing.assert_close(loss.detach(), sum(directions) / 2)
    for queue, key in zip(queues, reversed(keys), strict=True):
        torch.testing.assert_close(queue.rows[:16], key)
    loss.backward()


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.9), (0.5, 0.945), (1.0, 0.99)])
@pytest.mark.parametrize("name", ["moco", "ressl", "pcl", "pauc"])
def test_the_momentum_goes_to_its_end_by_a_cosine(name: str, progress: float, momentum: float) -> None:
    method = build(name, {"queue": 20, "momentum": 0.9, "final_momentum": 0.99})
    method.progress = progress
    holder: Any = method.contrast
    target = getattr(holder, "momentum", holder).target.network
    start = next(target.parameters()).clone()
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter += 1
    method(batch_of(16))
    torch.testing.assert_close(next(target.parameters()), start + 1 - momentum)


def test_the_key_encoder_follows_slowly_and_gets_no_gradient() -> None:
    method = build("moco", {"queue": 20, "momentum": 0.9})
    assert isinstance(method, MoCo)
    target = method.contrast.target.network
    start = [parameter.clone() for parameter in target.parameters()]
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter += 1
    method(batch_of(16)).loss.backward()
    for before, parameter in zip(start, target.parameters(), strict=True):
        torch.testing.assert_close(parameter, before + 0.1)
        assert parameter.grad is None


def test_parts_of_a_batch_have_norms_of_their_own_and_keys_other_company_than_their_queries() -> None:
    whole, split = (build("moco", {"queue": 20, "bn_splits": splits}) for splits in (1, 4))
    assert isinstance(whole, MoCo)
    assert isinstance(split, MoCo)
    views = batch_of(16).views
    parts = torch.stack([whole.encoder(views[0][k::4]).z for k in range(4)], dim=1).flatten(0, 1)
    pair = split.contrast(split.encoder, *views)
    torch.testing.assert_close(pair.query, unit_rows(parts))
    with torch.no_grad():
        unshuffled = unit_rows(torch.stack([whole.encoder(views[1][k::4]).z for k in range(4)], dim=1).flatten(0, 1))
    assert (pair.key - unshuffled).abs().max() > 1e-3
    whole.load_state_dict(split.state_dict())
    for method in (whole, split):  # with norms that look at no batch, parts and shuffling leave no trace
        method.eval()
    torch.testing.assert_close(split.contrast(split.encoder, *views), whole.contrast(whole.encoder, *views))


def test_norms_of_parts_take_one_step_per_batch_with_the_mean_of_the_parts_statistics() -> None:
    """As the layer of MoCo's authors, with its way to cut a batch: reshaped so that parts become channels."""
    network = nn.Sequential(nn.BatchNorm2d(5, momentum=0.3).double())
    norm, x = network[0], images(12, 0)[:, :1].repeat(1, 5, 1, 1) * torch.arange(1.0, 6).view(5, 1, 1)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    mean, variance = torch.zeros(20, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    weight, bias = norm.weight.detach().repeat(4), norm.bias.detach().repeat(4)
    joint = F.batch_norm(x.view(3, 20, 8, 8), mean, variance, weight, bias, True, 0.3, norm.eps).view(12, 5, 8, 8)

    split_batch_norms(network, 4)
    torch.testing.assert_close(network(x), joint)
    state = network.state_dict()
    torch.testing.assert_close(state["0.running_mean"], mean.view(4, 5).mean(dim=0))
    torch.testing.assert_close(state["0.running_var"], variance.view(4, 5).mean(dim=0))
    assert int(state["0.num_batches_tracked"]) == 1


@pytest.mark.parametrize("splits", [3, 16])
def test_parts_that_cannot_be_are_refused(splits: int) -> None:
    method = build("moco", {"queue": 20, "bn_splits": splits})
    with pytest.raises(UserError, match=r"batch of 16 images does not fall into .* \(method\.bn_splits\)"):
        method.check(16, 2)


def test_defaults_are_the_papers() -> None:
    config = Config()
    assert (config.temperature, config.queue, config.momentum) == (0.2, 65536, 0.999)
