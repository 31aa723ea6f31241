"""Features of whole images in their own shape, at one scale or several, as retrieval has them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pretrain.architectures import patch_of
from pretrain.evaluate.image_files import Box, open_image, within
from whitebench.errors import UserError

if TYPE_CHECKING:
    from pretrain.evaluate.features import FrozenEncoder
    from pretrain.evaluate.protocol_kinds import Retrieval

SMALLEST = 32
"""Sides that every network without patches takes, pixels."""


def in_proportion(path: Path, longest: int, box: Box | None = None) -> Tensor:
    """The image, reduced until its longer side has `longest` pixels: uint8 [3, H, W]; a smaller one stays as it is.

    Args:
        box: a part of it (left, top, right, bottom; pixels), which gets the scale that the whole image would get.
    Source: filipradenovic/cnnimageretrieval-pytorch@1e66a41, cirtorch/datasets/genericdataset.py and datahelpers.py.
    """
    with open_image(path) as picture:
        rgb = picture.convert("RGB")
        limit: float = longest
        if box is not None:
            part = rgb.crop(within(box, rgb.size))
            limit, rgb = longest * max(part.size) / max(rgb.size), part
        rgb.thumbnail((max(1, limit), max(1, limit)), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def at_scales(frozen: "FrozenEncoder", protocol: "Retrieval") -> Callable[[Tensor], Tensor]:
    """A function from uint8 [1, 3, H, W] to the mean of the features at the protocol's scales, float32 [1, F].

    Source: facebookresearch/dino@7c446df, utils.multi_scale; extract_ms of cnnimageretrieval-pytorch, which averages
    features of length 1.
    """
    patch = frozen.backbone.options.get("patch_size") or patch_of(frozen.backbone.arch)

    def embed(images: Tensor) -> Tensor:
        pixels, parts = images.to(frozen.device).float(), []
        for scale in protocol.scales:
            view = whole_patches(scaled(pixels, scale), patch)
            try:
                features = frozen(view)
            except (AssertionError, RuntimeError, ValueError) as error:
                height, width = view.shape[-2:]
                reason = " ".join(str(error).split())[:120]
                raise UserError(
                    f"{frozen.backbone.arch} does not take an image of {height} x {width} pixels ({reason}); the "
                    "protocol square has images of one size"
                ) from error
            parts.append(F.normalize(features, dim=1) if protocol.unit_scales else features)
        return torch.stack(parts).mean(0)

    return embed


def scaled(pixels: Tensor, scale: float) -> Tensor:
    """[1, 3, H, W] at another scale, bilinear without anti-aliasing, as the sources have it."""
    if scale == 1 or scale * min(pixels.shape[-2:]) < 1:
        return pixels
    return F.interpolate(pixels, scale_factor=scale, mode="bilinear", align_corners=False)


def whole_patches(pixels: Tensor, patch: int | None) -> Tensor:
    """[1, 3, H, W] without the right and lower pixels that fill no patch; sides that are too small are enlarged.

    Args:
        patch: side of a transformer's patches; None: a network without.
    """
    least, step = patch or SMALLEST, patch or 1
    sides = [max(side, least) for side in pixels.shape[-2:]]
    if sides != list(pixels.shape[-2:]):
        pixels = F.interpolate(pixels, size=sides, mode="bilinear", align_corners=False)
    height, width = (side // step * step for side in sides)
    return pixels[..., :height, :width]
