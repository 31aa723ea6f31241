"""torchvision's ResNets by name, and ResNets of fewer channels, `resnet18-32` say, for a CPU.

That one has stages of 32, 64, 128 and 256 channels after a stem of 32, in place of 64 to 512 after 64; all else is
torchvision's.
"""

from typing import Any

from torch import nn
from torchvision.models import resnet

from pretrain.architectures import resnet_depth, resnet_width

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Of each stage, for the depths that can be narrow."""
FULL_WIDTH = 64


def build_resnet(arch: str, zero_init_residual: bool = False) -> resnet.ResNet:
    """The network by its name in `architectures.RESNETS`, with torchvision's initial weights."""
    depth, width = resnet_depth(arch), resnet_width(arch)
    if width == FULL_WIDTH:
        full: resnet.ResNet = getattr(resnet, arch)(weights=None, zero_init_residual=zero_init_residual)
        return full
    return _NarrowResNet(depth, width, zero_init_residual)


class _NarrowResNet(resnet.ResNet):
    """Basic blocks, `width` channels in the stem and the first stage."""

    def __init__(self, depth: int, width: int, zero_init_residual: bool) -> None:
        self.width = width
        super().__init__(resnet.BasicBlock, list(BLOCKS[depth]), zero_init_residual=zero_init_residual)
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(width)

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        """Called by torchvision's constructor for each stage, with the channels of the full network."""
        if planes == FULL_WIDTH:
            self.inplanes = self.width  # the stem's: the constructor has set 64
        return super()._make_layer(block, planes * self.width // FULL_WIDTH, blocks, stride, dilate)
