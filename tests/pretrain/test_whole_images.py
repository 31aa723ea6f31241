"""Retrieval on whole images in their own shape, at one scale and at three, as its sources have it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pretrain.checkpoint import read_backbone, write_backbone
from pretrain.evaluate import __main__ as command
from pretrain.evaluate.features import FrozenEncoder, load_backbone
from pretrain.evaluate.protocol_kinds import Retrieval
from pretrain.evaluate.protocols import find_protocol
from pretrain.evaluate.target import Options, Target
from pretrain.evaluate.whole_images import at_scales, in_proportion, whole_patches
from tests.support.evaluation_sets import encoder, retrieval_folder
from tests.support.vit_backbone import vit_backbone
from whitebench.errors import UserError
from whitebench.hashing import canonical
from whitebench.records import read_record


def photo(path: Path, width: int, height: int, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("longest", "box", "shape"),
    [
        (64, None, (32, 64)),
        (200, None, (64, 128)),  # never enlarged
        (64, (0.0, 0.0, 32.0, 64.0), (32, 16)),  # at the scale of its whole image
        (64, (5.0, 7.0, 5.0, 7.0), (1, 1)),
    ],
)
def test_images_keep_their_shape(tmp_path: Path, longest: int, box: Any, shape: tuple[int, int]) -> None:
    view = in_proportion(photo(tmp_path / "photo.png", 128, 64), longest, box)
    assert (view.dtype, tuple(view.shape)) == (torch.uint8, (3, *shape))


def test_an_image_that_does_not_decode_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(photo(tmp_path / "whole.png", 64, 64).read_bytes()[:300])
    with pytest.raises(UserError, match=r"photo\.png: does not decode"):
        in_proportion(tmp_path / "photo.png", 32)


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [((33, 47), 16, (32, 32)), ((9, 47), 16, (16, 32)), ((33, 47), None, (33, 47)), ((9, 47), None, (32, 47))],
)
def test_pixels_that_fill_no_patch_are_left_out(size: Any, patch: int | None, expected: Any) -> None:
    """As by a convolution with the stride of the patches."""
    assert tuple(whole_patches(torch.zeros(1, 3, *size), patch).shape[-2:]) == expected


@pytest.fixture
def resnet(tmp_path: Path) -> FrozenEncoder:
    backbone = read_backbone(encoder(tmp_path / "encoder.safetensors"))
    return FrozenEncoder(backbone, Target.of_backbone(backbone, "pictures", 16, 16), Options("longest-1024"))


@pytest.mark.parametrize("protocol", ["dino-224", "dino-224-multiscale", "longest-1024-multiscale"])
def test_features_are_the_mean_over_scales(resnet: FrozenEncoder, protocol: str) -> None:
    """Of normalised images, which are what the sources scale."""
    settings = find_protocol("retrieval", protocol)
    assert isinstance(settings, Retrieval)
    images = torch.randint(0, 256, (1, 3, 120, 90), dtype=torch.uint8)
    network = load_backbone(resnet.backbone).eval()
    normalised = (images.float() / 255 - 0.5) / 0.25
    parts = []
    for scale in (1, 1 / 2**0.5, 1 / 2) if "multiscale" in protocol else (1,):
        view = F.interpolate(normalised, scale_factor=scale, mode="bilinear", align_corners=False)
        with torch.no_grad():
            features = network(view)
        parts.append(F.normalize(features) if "1024" in protocol else features)
    expected = sum(parts) / len(parts)
    assert torch.allclose(at_scales(resnet, settings)(images), expected, rtol=1e-4, atol=1e-5)


def test_a_transformer_ranks_images_of_several_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command; a query is cut to its box, or not, as the protocol says."""
    monkeypatch.setenv("WHITEBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("WHITEBENCH_RUNS", str(tmp_path / "runs"))
    retrieval_folder(tmp_path / "buildings")
    for number in range(6):
        photo(tmp_path / "buildings" / "jpg" / f"image{number}.jpg", 40 + 8 * number, 40, number)
    backbone = vit_backbone(dynamic_img_size=True)
    write_backbone(tmp_path / "vit.safetensors", backbone.tensors, backbone.metadata)
    size = ["--dataset", "buildings", "--crop", "64", "--resize", "64"]
    ids = set()
    for protocol in ("square", "dino-224", "longest-1024-multiscale"):
        arguments = ["--ckpt", str(tmp_path / "vit.safetensors"), *size, "--protocol", protocol]
        monkeypatch.setattr(sys, "argv", ["evaluate", "retrieval", *arguments])
        command.main()
        (new,) = {path.name for path in (tmp_path / "runs" / "retrieval").iterdir()} - ids
        ids.add(new)
        record = read_record(tmp_path / "runs" / "retrieval" / new)
        assert record is not None
        assert 0 < record.metrics["mAP_medium"] <= 100
        assert record.config["protocol"]["name"] == protocol


def test_a_network_of_one_size_is_refused_with_the_protocol_that_takes_it(tmp_path: Path) -> None:
    vit = vit_backbone()  # positions of 64 pixels, and images of no other size
    write_backbone(tmp_path / "vit.safetensors", vit.tensors, vit.metadata)
    frozen = FrozenEncoder(
        read_backbone(tmp_path / "vit.safetensors"), Target("x", "x", "x", 64, 64, {}), Options("dino-224")
    )
    protocol = find_protocol("retrieval", "dino-224")
    assert isinstance(protocol, Retrieval)
    with pytest.raises(UserError, match=r"does not take an image of 80 x 48 pixels .*protocol square") as error:
        at_scales(frozen, protocol)(torch.zeros(1, 3, 80, 48, dtype=torch.uint8))
    assert "\n" not in str(error.value)


def test_settings_that_came_later_change_no_id() -> None:
    assert set(canonical(find_protocol("retrieval", "square"))) == {"name", "source"}
