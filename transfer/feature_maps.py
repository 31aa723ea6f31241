"""Compares the feature maps of photos: Detectron2's network with the one that the tensors come from.

That one is torchvision's ResNet with these tensors or, where the checkpoint names a network of timm and timm is
installed, timm's. What this cannot show: that the network which was trained is the one that is compared.
Anti-aliased or dilated ResNets, strides in the 1x1 convolutions, another activation or another epsilon leave no trace
in the tensors; where the file names such a network, `pretrain.stated_architecture` refuses it.
"""

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from whitebench.errors import UserError

if TYPE_CHECKING:
    from pretrain.checkpoint import Backbone
    from transfer.convert import Converted

TOLERANCE = 1e-5
"""Of a map's largest absolute value: float32's rounding, summed over the layers."""
STAGES = ("res2", "res3", "res4", "res5")
HEIGHT, WIDTH = 224, 320
PHOTOS = ("china.jpg", "flower.jpg")


def compare_maps(backbone: "Backbone", network: nn.Module, content: "Converted") -> dict[str, float | None]:
    """{"res2": difference, ...}: the largest between the maps of both networks, in parts of the map's largest value.

    None where both maps are zero all over (of a backbone that is dead), which proves nothing.

    Args:
        backbone: as the checkpoint has it; run as `reference_name` says.
        network: Detectron2's ResNet that holds `content`, the conversion of `backbone`; it has outputs res2 to res5.
    Raises:
        UserError: a difference above `TOLERANCE`; maps that are not finite.
    """
    images = photos(content.pixel_mean, content.pixel_std)
    original = source_maps(backbone, images)
    with torch.no_grad():
        converted = network.eval()(images)
    differences: dict[str, float | None] = {}
    for stage in STAGES:
        largest = float(original[stage].abs().max())
        if not math.isfinite(largest):
            raise UserError(f"the backbone's maps of photos are not finite ({stage}): its weights are unusable")
        difference = float((converted[stage] - original[stage]).abs().max())
        if not difference <= TOLERANCE * largest:
            raise UserError(
                f"{stage} of Detectron2's network differs from the original by {difference:.1g} on photos, where the "
                f"largest value is {largest:.3g}; at most {TOLERANCE:g} of that is rounding"
            )
        differences[stage] = difference / largest if largest else None
    return differences


def reference_name(backbone: "Backbone") -> str:
    """The network with which Detectron2's is compared, e.g. "torchvision's resnet50"."""
    return f"timm's {backbone.stated_arch}" if _timm_network(backbone) is not None else f"torchvision's {backbone.arch}"


def _timm_network(backbone: "Backbone") -> Any:
    """timm's network of the name that the checkpoint states; None without a name, without timm, of another kind."""
    if backbone.stated_arch is None or importlib.util.find_spec("timm") is None:
        return None
    import timm
    from timm.models.resnet import ResNet

    if not timm.is_model(backbone.stated_arch):
        return None
    network = timm.create_model(backbone.stated_arch, pretrained=False)
    return network if isinstance(network, ResNet) else None


@torch.no_grad()
def source_maps(backbone: "Backbone", images: Tensor) -> dict[str, Tensor]:
    """{"res2": [N, C, H, W], ...} of the network in `reference_name` with these tensors.

    Args:
        images: [N, 3, H, W], normalised.
    """
    from pretrain.resnets import build_resnet

    network = _timm_network(backbone)
    if network is None:
        network = build_resnet(backbone.arch)
    network.load_state_dict(backbone.tensors, strict=False)  # complete, as `read_backbone` gives it, but for its head
    network.eval()
    activation = network.act1 if hasattr(network, "act1") else network.relu
    x = network.maxpool(activation(network.bn1(network.conv1(images))))
    maps = {}
    for number, stage in enumerate(STAGES, 1):
        x = maps[stage] = getattr(network, f"layer{number}")(x)
    return maps


def photos(mean: list[float], std: list[float]) -> Tensor:
    """scikit-learn's two photos, the middle of each, normalised: float32 [2, 3, HEIGHT, WIDTH].

    Args:
        mean, std: by channel, RGB, in 0..255.
    """
    import numpy as np
    from PIL import Image

    package = importlib.util.find_spec("sklearn")
    assert package is not None, "scikit-learn is a requirement"
    assert package.origin is not None
    cut = []
    for name in PHOTOS:  # read here: importing sklearn.datasets takes longer than all of the comparison
        image = np.asarray(Image.open(Path(package.origin).parent / "datasets" / "images" / name))  # [427, 640, 3], RGB
        top, left = (image.shape[0] - HEIGHT) // 2, (image.shape[1] - WIDTH) // 2
        cut.append(torch.from_numpy(image[top : top + HEIGHT, left : left + WIDTH].copy()))
    pixels = torch.stack(cut).permute(0, 3, 1, 2).float()
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
