"""Pooled outputs of a network's last blocks, as inputs of linear probes."""

from typing import Any

import torch
from torch import Tensor, nn

from whitebench.errors import UserError


class LastBlocks(nn.Module):
    """[B, 3, S, S] -> pooled outputs of the last `count` blocks side by side, the network's own output last: [B, F].

    Blocks are a ResNet's or ConvNeXt's stages, averaged over positions, or a transformer's blocks: their class token
    after the network's last norm, or the mean of their tokens where there is none (as `get_intermediate_layers` has it
    in DINOv2).
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        """Raises `UserError` where the network has fewer blocks."""
        super().__init__()
        self.network, self.count = network, count
        self.owner, blocks = _blocks_of(network)
        if count > max(1, len(blocks)):
            raise UserError(f"last_blocks: {count}, but the network has {len(blocks) or 'no known'} blocks")
        self._outputs: list[Tensor] = []
        for block in blocks[len(blocks) - count : -1] if count > 1 else []:
            block.register_forward_hook(self._keep)
        self.widths: dict[int, int] = {}
        """Number of last blocks -> width of its input, the last columns of the output; known after a first batch."""

    def forward(self, images: Tensor) -> Tensor:
        self._outputs.clear()
        output: Tensor = self.network(images)
        parts = [*map(self._pooled, self._outputs), output]
        self._outputs.clear()
        for number in range(1, self.count + 1):
            self.widths[number] = sum(part.shape[1] for part in parts[-number:])
        return torch.cat(parts, dim=1)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._outputs.append(output)

    def _pooled(self, output: Tensor) -> Tensor:
        if output.ndim == 4:  # [B, C, H, W]
            return output.mean(dim=(2, 3))
        norm = getattr(self.owner, "norm", nn.Identity())
        tokens = norm(output)  # [B, T, C]
        pooled: Tensor = tokens[:, 0] if getattr(self.owner, "num_prefix_tokens", 1) else tokens.mean(dim=1)
        return pooled


def _blocks_of(network: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """The part of the network that has blocks, and these, first to last; none where they are not known."""
    for module in network.modules():
        stages = [getattr(module, f"layer{number}", None) for number in (1, 2, 3, 4)]
        if all(isinstance(stage, nn.Module) for stage in stages):
            return module, [stage for stage in stages if isinstance(stage, nn.Module)]
        for name in ("blocks", "stages"):
            blocks = getattr(module, name, None)
            if isinstance(blocks, nn.Sequential | nn.ModuleList):
                return module, list(blocks)
    return network, []
