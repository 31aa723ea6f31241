"""Seeing collapse: what the spectrum of an encoder's outputs says, each number defined here.

Throughout, x [N, D] holds the outputs for N images; its covariance is taken over images, so that an encoder that gives
the same output for every image has no variance at all. Computed in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NEGLIGIBLE = 1e-12
"""Variance below this share of the mean squared length of the rows is rounding of float32 outputs, and counts as 0."""


def spectrum(x: Tensor) -> Tensor:
    """Eigenvalues of the covariance of x [N, D], N >= 2, descending: float64 [min(N - 1, D)] on the CPU."""
    x = x.detach().double().cpu()
    centred = x - x.mean(dim=0)
    n, d = x.shape
    gram = centred @ centred.mT if n <= d else centred.mT @ centred
    values = torch.linalg.eigvalsh(gram).flip(0)[: min(n - 1, d)].clamp_min(0) / (n - 1)
    floor = NEGLIGIBLE * x.square().sum(dim=1).mean()
    return torch.where(values > floor, values, torch.zeros_like(values))


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the normalised eigenvalues: k where k of them are equal and the others 0; 0 where all are.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007, of eigenvalues instead of singular values.
    """
    total = eigenvalues.sum()
    if total == 0:
        return 0.0
    shares = eigenvalues / total
    return float(torch.special.entr(shares).sum().exp())


def rankme(x: Tensor) -> float:
    """RankMe of outputs x [N, D]: exp of the entropy of the normalised singular values of x itself, not centred.

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their
    Rank", ICML 2023 (arXiv 2210.02885), equation 1, with its eps of 1e-7. (`effective_rank` is of eigenvalues of the
    covariance.)
    """
    x = x.detach().double().cpu()
    gram = x @ x.mT if len(x) <= x.shape[1] else x.mT @ x
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + 1e-7
    return float(torch.special.entr(shares).sum().exp()) if values.any() else 0.0


def alpha_req(eigenvalues: Tensor, first: int = 1) -> float | None:
    """alpha-ReQ: the exponent alpha of the power law i^-alpha that the covariance's eigenvalues follow.

    Agrawal et al., "alpha-ReQ: Assessing Representation Quality in Self-Supervised Learning by Measuring Eigenspectrum
    Decay", NeurIPS 2022. Least squares of log eigenvalue on log rank, over those that are not 0; representations that
    transfer well have an alpha near 1. None where fewer than two are not 0.

    Args:
        eigenvalues: descending. first: rank of the first eigenvalue that counts, from 1.
    """
    values = eigenvalues[first - 1 :]
    values = values[values > 0]
    if len(values) < 2:
        return None
    x = torch.arange(first, first + len(values), dtype=torch.float64).log()
    y = values.double().log()
    x, y = x - x.mean(), y - y.mean()
    return float(-(x @ y) / (x @ x))


def lidar(views: Sequence[Tensor], delta: float = 1e-4) -> float | None:
    """LiDAR: exp of the entropy of the eigenvalues of S_w^(-1/2) S_b S_w^(-1/2), each image's views being a class.

    Thilak et al., "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL Architectures", ICLR 2024 (arXiv
    2312.04000), with its delta of 1e-4 on the diagonal of S_w and its eps of 1e-7. S_b is the covariance of the images'
    means, S_w the mean squared deviation of views from them. Of embeddings (projector outputs), as in the paper, which
    has 1,000 images of 50 views: with two views S_w is of low rank, and delta counts for more.

    The eigenvalues are those of B S_w^(-1) B^T [N, N], B the centred means, by Woodbury's identity: no [D, D] matrix.

    Args:
        views: V outputs [N, D] for the same N images. None where there is one view or one image.
    """
    stacked = torch.stack([view.detach().double().cpu() for view in views])
    count, images, width = stacked.shape
    if count < 2 or images < 2:
        return None
    means = stacked.mean(dim=0)
    between = means - means.mean(dim=0)
    within = (stacked - means).reshape(-1, width) / (count * images) ** 0.5
    cross = within @ between.mT
    inner = within @ within.mT + delta * torch.eye(len(within), dtype=torch.float64)
    ratios = torch.linalg.eigvalsh((between @ between.mT - cross.mT @ torch.linalg.solve(inner, cross)) / delta)
    ratios = ratios.clamp_min(0)
    total = ratios.sum()
    return float(torch.special.entr(ratios / total + 1e-7).sum().exp()) if total else 0.0


def stable_rank(eigenvalues: Tensor) -> float:
    """Sum over largest eigenvalue, divided by their number: 1 where all are equal, 0 where there is no variance."""
    largest = eigenvalues.max()
    return float(eigenvalues.sum() / largest / len(eigenvalues)) if largest > 0 else 0.0


def condition_number(eigenvalues: Tensor) -> float | None:
    """Largest over smallest eigenvalue; None where the smallest is 0."""
    smallest = float(eigenvalues.min())
    return float(eigenvalues.max()) / smallest if smallest > 0 else None


def alignment(a: Tensor, b: Tensor) -> float:
    """Mean squared distance of two views [N, D] of the same images, brought to length 1 (Wang and Isola, ICML 2020)."""
    return float((_unit(a) - _unit(b)).square().sum(dim=1).mean())


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """log of the mean over pairs of images of exp(-t d^2), rows brought to length 1 (Wang and Isola, ICML 2020).

    0 where all outputs are the same; the lower, the more evenly they cover the sphere.
    """
    return float(torch.pdist(_unit(x)).square().mul(-t).exp().mean().log())


def change(a: Tensor, b: Tensor) -> float:
    """2 - 2 cos between outputs [N, D] for the same images, averaged: 0 where they point the same way."""
    return alignment(a, b)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.detach().double().cpu())
