"""Sums of squared covariances, from whichever Gram matrix is the smaller."""

from torch import Tensor


def squared_covariances(x: Tensor) -> Tensor:
    """The sum of C_ij^2 over all pairs i != j of variables, C = x x^T / (Q - 1).

    With fewer observations than variables it is the sum of all C_ij^2, which is that of (x^T x)^2 / (Q - 1)^2, less the
    squared variances: a [Q, Q] matrix in place of a [P, P].

    Args:
        x: P variables in Q observations, [P, Q], centred along Q; float32 or wider, outside autocast.
    """
    variables, observations = x.shape
    if variables <= observations:
        return 2 * (x @ x.mT / (observations - 1)).triu(1).square().sum()
    variances = x.square().sum(dim=1) / (observations - 1)
    return (x.mT @ x / (observations - 1)).square().sum() - variances.square().sum()
