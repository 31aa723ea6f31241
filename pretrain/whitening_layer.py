"""Whitening as a layer of a network: at the end of a projector or an encoder, like batch norm without its affine axes.

Kalapos and Gyires-Toth, "Whitening Consistently Improves Self-Supervised Learning" (arXiv 2408.07519), for ZCA at the
end of the encoder; Huang et al., "Iterative Normalization", CVPR 2019 (arXiv 1904.03441), for IterNorm, which VIbCReg's
projector ends in (there: running averages of the mean and of the whitening matrix, an affine part, eps 1e-5, T = 5).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.distributed import sum_with_gradient, world_size
from pretrain.losses.matrix_functions import inverse_power, newton_inverse_root
from pretrain.losses.whitening import at_least_float32, float32_region
from whitebench.errors import UserError


class Whitening(nn.Module):
    """[B, D] -> [B, D], whitened in groups of D / groups neighbouring channels over the batch.

    In training by the batch's mean and biased covariance + eps I (of all processes where `across_ranks`), in evaluation
    by running averages. Computed in float32 or wider, the matrices in float64, and returned in the input's dtype.
    """

    def __init__(
        self,
        width: int,
        transform: Literal["zca", "iternorm"] = "iternorm",
        groups: int = 1,
        iterations: int = 5,
        eps: float = 1e-5,
        momentum: float = 0.1,
        across_ranks: bool = False,
    ) -> None:
        super().__init__()
        if groups < 1 or width % groups:
            raise UserError(
                f"whitening: {width} channels cannot be cut into {groups} groups (network.whitening_groups)"
            )
        if eps <= 0 or iterations < 1:
            raise UserError(f"whitening: eps is above 0 and iterations at least 1, not {eps} and {iterations}")
        self.transform, self.groups, self.iterations = transform, groups, iterations
        self.eps, self.momentum, self.across_ranks = eps, momentum, across_ranks
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.running_mean: Tensor
        self.running_matrix: Tensor
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_matrix", torch.eye(width // groups).repeat(groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        with float32_region(x):
            wide = at_least_float32(x)
            mean, matrix = self._of_batch(wide) if self.training else (self.running_mean, self.running_matrix)
            grouped = (wide - mean.to(wide)).unflatten(1, (self.groups, -1)).transpose(0, 1)
            y = torch.bmm(grouped, matrix.to(wide)).transpose(0, 1).flatten(1)  # the matrix is symmetric
            return (y * self.weight + self.bias).to(x.dtype)

    def _of_batch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [D] and whitening matrices [groups, D / groups, D / groups]; the running averages follow them."""
        joined = self.across_ranks and world_size() > 1
        count = len(x) * (world_size() if joined else 1)
        total = x.sum(dim=0)
        mean = (sum_with_gradient(total) if joined else total) / count
        grouped = (x - mean).double().unflatten(1, (self.groups, -1)).permute(1, 2, 0)
        products = torch.bmm(grouped, grouped.mT)
        covariance = (sum_with_gradient(products) if joined else products) / count
        covariance = covariance + self.eps * torch.eye(covariance.shape[-1], dtype=torch.float64, device=x.device)
        matrix = (
            inverse_power(covariance) if self.transform == "zca" else newton_inverse_root(covariance, self.iterations)
        )
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_matrix.lerp_(matrix.to(self.running_matrix), self.momentum)
        return mean, matrix
