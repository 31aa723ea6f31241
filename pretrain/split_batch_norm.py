"""Batch norm that treats parts of a batch as if each were on a GPU of its own."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from whitebench.errors import UserError


class SplitBatchNorm(_BatchNorm):
    """Batch norm of [B, C, ...] with statistics of `splits` parts, as the layer of MoCo's authors for one GPU has it.

    Part k is the images k, k + splits, k + 2 splits, ... The running statistics take one step per batch, with the mean
    of the parts' statistics. In evaluation it is plain batch norm.
    """

    splits: int

    @classmethod
    def of(cls, norm: _BatchNorm, splits: int) -> Self:
        """Takes over the parameters, buffers and settings of `norm`; the tensors themselves, no copies.

        Raises:
            UserError: a norm of timm that holds an activation.
        """
        if hasattr(norm, "act"):
            raise UserError("method.bn_splits: the batch norms of this backbone hold their activations (timm)")
        split = cls(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        split.splits = splits
        split.affine, split.track_running_stats, split.training = norm.affine, norm.track_running_stats, norm.training
        split._parameters, split._buffers = norm._parameters, norm._buffers
        return split

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        means, variances = ([] if old is None else [old.clone() for _ in range(self.splits)] for old in self._running())
        output = torch.empty_like(input)  # keeps the memory format, which stacking the parts would not
        for k in range(self.splits):
            mean, variance = (means[k], variances[k]) if means else (None, None)
            part = input[k :: self.splits]
            output[k :: self.splits] = F.batch_norm(
                part, mean, variance, self.weight, self.bias, True, self._weight(), self.eps
            )
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            self.running_mean.copy_(torch.stack(means).mean(dim=0))
            self.running_var.copy_(torch.stack(variances).mean(dim=0))
        return output

    def _running(self) -> tuple[Tensor | None, Tensor | None]:
        return self.running_mean, self.running_var

    def _weight(self) -> float:
        """Of the batch in the running statistics; without a momentum they are plain means over all batches."""
        if self.momentum is not None:
            return self.momentum
        return 0.0 if self.num_batches_tracked is None else 1 / (float(self.num_batches_tracked) + 1)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm takes [B, C, ...], not {list(input.shape)}")


def split_batch_norms(module: nn.Module, splits: int) -> None:
    """Replaces all batch norms inside `module` by `SplitBatchNorm`; names and tensors stay. Nothing at one part."""
    if splits == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, SplitBatchNorm.of(child, splits))
        else:
            split_batch_norms(child, splits)
