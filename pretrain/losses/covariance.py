"""Sums of squared covariances, from whichever Gram matrix is the smaller."""

from torch import Tensor

from pretrain.losses.gram import gram_of


def squared_covariances(x: Tensor) -> Tensor:
    """The sum of C_ij^2 over all pairs i != j of variables, C = x x^T / (Q - 1).

    With fewer observations than variables it is the sum of all C_ij^2, which is that of (x^T x)^2 / (Q - 1)^2, less the
    squared variances: a [Q, Q] matrix in place of a [P, P].

    Args:
        x: P variables in Q observations, [P, Q], centred along Q; float32 or wider, outside autocast. Of one
            observation the result is 0.
    """
    variables, observations = x.shape
    scale = 1 / max(1, observations - 1)
    if variables <= observations:
        return 2 * gram_of(x, scale).triu(1).square().sum()
    variances = x.square().sum(dim=1) * scale
    return gram_of(x.mT, scale).square().sum() - variances.square().sum()
