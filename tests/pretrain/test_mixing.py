"""Mixup and cutmix: torchvision's own results, parts of a joint batch, and what smoothing and averages do."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from pretrain.evaluate import mixing
from pretrain.evaluate.finetune import rate_share
from pretrain.evaluate.mixing import Mixing
from pretrain.evaluate.protocol_kinds import Finetune
from pretrain.evaluate.protocols import find_protocol
from pretrain.repeatable import derive_seed


def protocol(mixup: float = 0.0, cutmix: float = 0.0) -> Finetune:
    return Finetune("t", "", "sgd", 0.1, None, 8, 4, "cosine-by-step", mixup=mixup, cutmix=cutmix)


def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 16, 16, generator=generator), torch.arange(n) % 3


@pytest.mark.parametrize(("settings", "kind"), [({"mixup": 0.8}, v2.MixUp), ({"cutmix": 1.0}, v2.CutMix)])
def test_images_and_labels_are_mixed_as_torchvision_does(settings: dict[str, float], kind: type[v2.MixUp]) -> None:
    images, labels = batch(8)
    mixed, shares = Mixing(protocol(**settings), 3, 5)(images, labels, step=2)
    torch.default_generator.manual_seed(derive_seed(5, "mixing", 2))
    torch.randint(1, ())
    expected = kind(alpha=next(iter(settings.values())), num_classes=3)(images, labels)
    torch.testing.assert_close(mixed, expected[0])
    torch.testing.assert_close(shares, expected[1])
    assert not torch.equal(mixed, images)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(8))


def test_parts_of_a_joint_batch_are_mixed_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = batch(7)
    mix = Mixing(protocol(0.8, 1.0), 3, 0)
    for step in range(4):
        whole = mix(images, labels, step)
        parts = []
        for part in (slice(0, 4), slice(4, 4), slice(4, 7)):
            before = (part.start - 1) % 7
            with monkeypatch.context() as patch:
                patch.setattr(
                    mixing, "_row_before", lambda x, row=before: (images if x.ndim > 1 else labels)[row, None]
                )
                parts.append(mix(images[part], labels[part], step))
        for number in (0, 1):
            torch.testing.assert_close(torch.cat([part[number] for part in parts]), whole[number])


def test_draws_leave_the_global_generator_alone() -> None:
    images, labels = batch(4)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Mixing(protocol(0.8), 3, 0)(images, labels, 0)
    assert torch.equal(torch.rand(2), expected)


def test_without_mixing_labels_stay_classes() -> None:
    images, labels = batch(4)
    mixed, same = Mixing(protocol(), 3, 0)(images, labels, 0)
    assert mixed is images
    assert same is labels


def test_smoothing_of_mixed_labels_is_that_of_their_shares() -> None:
    """torch spreads the share over all classes, as timm's Mixup and label smoothing do."""
    logits, shares = torch.randn(5, 4), torch.softmax(torch.randn(5, 4), dim=1)
    smoothed = shares * 0.9 + 0.1 / 4
    torch.testing.assert_close(
        F.cross_entropy(logits, shares, label_smoothing=0.1), -(smoothed * logits.log_softmax(1)).sum(1).mean()
    )


def test_rates_follow_the_sources() -> None:
    mae, vissl = find_protocol("finetune", "mae-base"), find_protocol("finetune", "vissl")
    assert isinstance(mae, Finetune)
    assert isinstance(vissl, Finetune)
    assert mae.base_lr == pytest.approx(5e-4 * 1024 / 256)
    assert rate_share(mae, 0) == 0
    assert rate_share(mae, 2.5) == pytest.approx(0.5)
    assert rate_share(mae, 5) == pytest.approx(1)
    assert mae.base_lr * rate_share(mae, 100) == pytest.approx(1e-6)
    assert [rate_share(vissl, epoch) for epoch in (29, 30, 60.5, 99, 100)] == pytest.approx([1, 0.1, 0.01, 1e-3, 1e-4])
