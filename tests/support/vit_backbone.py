"""Vision transformers of timm with random weights, small enough for a test, as `read_backbone` returns them."""

from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoint import Backbone
from transfer.convert import Converted, converted, write_d2

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}
VIT_TINY = "timm:vit_tiny_patch16_224"
METADATA = {"dataset": "sample", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "method": "intl"}
PARENT = "intl-s0-0123456789ab"


def vit_backbone(arch: str = VIT_TINY, seed: int = 0, **options: Any) -> Backbone:
    """timm's network `arch`, small unless `options` say otherwise; every parameter is far from its usual start."""
    import timm

    torch.manual_seed(seed)
    options = {**SMALL, **options}
    network = timm.create_model(arch.removeprefix("timm:"), pretrained=False, num_classes=0, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + parameter)
    metadata = {**METADATA, "recipe": "sample/intl", "id": PARENT, "seed": seed, "arch": arch}
    tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return Backbone(arch, "imagenet", tensors, {**metadata, "options": options}, "a test's", "0" * 64)


def vit_content(arch: str = VIT_TINY, **options: Any) -> Converted:
    return converted(vit_backbone(arch, **options))


def write_vit(folder: Path, arch: str = VIT_TINY, **options: Any) -> Path:
    """A conversion, as `detect_stage` takes it."""
    write_d2(folder / "d2.pkl", vit_content(arch, **options))
    return folder / "d2.pkl"
