"""The loss of masked autoencoders: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022."""

from torch import Tensor

from pretrain.losses.whitening import at_least_float32, float32_region
from whitebench.errors import UserError


def patches(images: Tensor, patch: int) -> Tensor:
    """[B, 3, S, S] -> [B, (S / patch)^2, 3 patch^2]: rows of patches; in a patch row, column, channel.

    Raises:
        UserError: patches do not fill the images.
    """
    b, channels, height, width = images.shape
    if height % patch or width % patch:
        raise UserError(f"images of {height} x {width} pixels cannot be cut into patches of {patch}")
    grid = images.reshape(b, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, channels * patch**2)


def mae_loss(images: Tensor, prediction: Tensor, mask: Tensor, patch: int = 16, normalise: bool = True) -> Tensor:
    """Mean over masked patches of all images of the mean squared error of their pixels.

    Args:
        images: [B, 3, S, S]. prediction: [B, L, 3 patch^2], L = (S / patch)^2. mask: [B, L], 1 where a patch is hidden.
        normalise: whether each patch's pixels are brought to mean 0 and (unbiased) variance 1 first.
    Returns:
        Scalar, in float32 or wider.
    """
    with float32_region(prediction):
        target = _target(images, patch, normalise)
        errors = (at_least_float32(prediction) - target).square().mean(dim=-1)
        return (errors * mask).sum() / mask.sum()


def _target(images: Tensor, patch: int, normalise: bool = True) -> Tensor:
    """What is to be predicted: [B, L, 3 patch^2]."""
    target = patches(at_least_float32(images), patch)
    if not normalise:
        return target
    mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    return (target - mean) / (variance + 1e-6).sqrt()
