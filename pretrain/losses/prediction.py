"""Predicting one view's embedding from another's: the loss of BYOL and SimSiam."""

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from pretrain.losses.similarity import cosine_distance
from pretrain.losses.whitening import float32_region


def prediction_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Mean over pairs of views a, b of  d(p_a, t_b) + d(p_b, t_a),  d = 2 - 2 cos, averaged over images.

    Args:
        predictions: V >= 2 tensors [B, D], of one view each, any floating dtype; computed in float32 or wider.
        targets: of the same shapes; no gradient flows to them.
    Returns:
        Scalar.
    """
    with float32_region(predictions[0]):
        pairs = permutations(range(len(predictions)), 2)
        return 2 * torch.stack([cosine_distance(predictions[a], targets[b].detach()) for a, b in pairs]).mean()
