"""Seeing collapse: what the spectrum of an encoder's outputs says, each number defined here.

Throughout, x [N, D] holds the outputs for N images; its covariance is taken over images, so that an encoder that gives
the same output for every image has no variance at all. Computed in float64.
"""

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
