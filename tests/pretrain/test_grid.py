"""A grid of probes in one pass gives each single probe's result, and chooses on training images alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.evaluate import linear
from pretrain.evaluate.blocks import LastBlocks
from pretrain.evaluate.grid import build_probes, fit, held_out_mask
from pretrain.evaluate.linear import Embedded
from pretrain.evaluate.protocol_kinds import LinearGrid
from pretrain.evaluate.protocols import find_protocol
from pretrain.evaluate.ranks import Progress
from pretrain.networks import build_backbone
from tests.pretrain.test_evaluate import clusters
from whitebench.errors import UserError
from whitebench.records import Run

CPU = torch.device("cpu")
GRID = LinearGrid(
    "t", "", False, "adam", (1e-3, 1e-2), None, 50, 6, "cosine", weight_decays=(0.0, 1e-2), last_blocks=(1, 2)
)
WIDTHS = {1: 10, 2: 16}
"""Of features of 16 columns: the last block's are the last 10."""


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_each_probe_ends_as_it_would_alone(tmp_path: Path, optimizer: Any) -> None:
    grid = LinearGrid("t", "", False, optimizer, GRID.lrs, None, 50, 6, "cosine", (0.0, 1e-2), (1, 2))
    train, held_out = clusters(130, 5, 1.5, 1), clusters(40, 5, 1.5, 2)
    probes = build_probes(grid, WIDTHS, 5, seed=3, device=CPU)
    assert len({(p.protocol.lr, p.protocol.weight_decay, p.last_blocks) for p in probes}) == 8
    with Run("linear", "grid", {"protocol": "grid"}, cell={}, folder=tmp_path / "grid") as run:
        found, _ = fit(probes, WIDTHS, Embedded(*train, 50, 3), held_out, grid, Progress(run))
    for number, probe in enumerate(probes):
        splits = {
            name: (x[:, -WIDTHS[probe.last_blocks] :], y) for name, (x, y) in (("train", train), ("val", held_out))
        }
        frozen: Any = SimpleNamespace(
            features=lambda split, interpolation, splits=splits: splits[split],
            manifest=SimpleNamespace(classes=list("abcde")),
            options=SimpleNamespace(seed=3),
            device="cpu",
        )
        with Run("linear", str(number), {"n": number}, cell={}, folder=tmp_path / str(number)) as run:
            alone = linear.evaluate(frozen, probe.protocol, run)
        weight, bias = linear.load_probe(tmp_path / str(number))
        torch.testing.assert_close(probe.head.weight.detach(), weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(probe.head.bias.detach(), bias, rtol=1e-4, atol=1e-5)
        assert found["probes"][number]["held_out_top1"] == alone["top1"]


def test_a_probe_that_diverges_leaves_the_others_alone(tmp_path: Path) -> None:
    grid = LinearGrid("t", "", False, "sgd", (1e-2, 1e30), None, 50, 6, "cosine")
    probes = build_probes(grid, {1: 16}, 5, seed=0, device=CPU)
    train = clusters(130, 5, 1.5, 1)
    train[0][:] *= 1e4
    with Run("linear", "g", {"g": 1}, cell={}, folder=tmp_path) as run:
        found, chosen = fit(probes, {1: 16}, Embedded(*train, 50, 0), clusters(40, 5, 1.5, 2), grid, Progress(run))
    assert chosen is probes[0]
    assert found["held_out_top1"] == found["probes"][0]["held_out_top1"]


def test_the_held_out_part_has_its_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [20, 3, 40])
    mask = held_out_mask(labels, 0.1, 0, ("a", "b", "c"))
    assert [int(mask[labels == label].sum()) for label in range(3)] == [2, 1, 4]
    assert (held_out_mask(labels, 0.1, 0, ("a", "b", "c")) == mask).all()
    assert (held_out_mask(labels, 0.1, 1, ("a", "b", "c")) != mask).any()


def test_a_class_with_one_image_is_named() -> None:
    with pytest.raises(UserError, match="class 'b' has a single training image"):
        held_out_mask(np.array([0, 0, 1]), 0.1, 0, ("a", "b"))


def test_the_last_columns_are_the_backbones_own_output() -> None:
    torch.manual_seed(0)
    network = build_backbone("resnet18", "cifar").eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = network(x)
        blocks = LastBlocks(network, 3)
        output = blocks(x)
        stage2 = network.layer2(network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x))))))  # type: ignore[operator]
    assert blocks.widths == {1: 512, 2: 512 + 256, 3: 512 + 256 + 128}
    torch.testing.assert_close(output[:, -512:], expected)
    torch.testing.assert_close(output[:, :128], stage2.mean(dim=(2, 3)))


def test_a_transformers_blocks_are_its_class_tokens_after_the_norm() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="token", img_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = LastBlocks(network, 4)(x)
        layers = network.get_intermediate_layers(x, n=4, return_prefix_tokens=True, norm=True)
    expected = torch.cat([prefix[:, 0] for _, prefix in layers], dim=1)
    torch.testing.assert_close(output, expected)


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="5, but the network has 4 blocks"):
        LastBlocks(build_backbone("resnet18"), 5)
    with pytest.raises(UserError, match="no known"):
        LastBlocks(nn.Linear(3, 3), 2)


def test_the_grid_of_dinov2_is_its_papers() -> None:
    grid = find_protocol("linear", "dinov2-grid")
    assert isinstance(grid, LinearGrid)
    assert len(grid.lrs) == 13
    assert grid.single(grid.lrs[-1], 0.0).base_lr == pytest.approx(0.1 * 1024 / 256)
