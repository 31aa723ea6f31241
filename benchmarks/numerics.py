"""How far CW-RGP's loss and gradient are off in float32 and float64: ours and the straightforward form.

python benchmarks/numerics.py [--seeds 5]

Prints the table of docs/numerics.md. The straightforward form is the formula of the official code (an SVD of the
covariance, its singular values' inverse roots), in `losses_plain.py`. The truth is `reference`, which squares
nothing. Inputs are float32 numbers, so that both precisions see the same.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import losses_plain as plain
from pretrain.methods.cwrgp import cwrgp_loss
from whitebench.errors import UserError

IMAGES, CHANNELS, GROUPS = 64, 512, 2
Loss = Callable[[list[Tensor]], Tensor]


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(clean: Callable[[int], Tensor]) -> Callable[[int], list[Tensor]]:
    """Two views: the same clean embeddings with noise of half their size."""
    return lambda seed: [clean(3 * seed) + 0.5 * clean(3 * seed + v) for v in (1, 2)]


def random(seed: int) -> Tensor:
    return gaussian(seed, IMAGES, CHANNELS)


def conditioned(condition: float) -> Callable[[int], Tensor]:
    """Singular values from 1 to 1 / condition, geometrically."""

    def draw(seed: int) -> Tensor:
        u = torch.linalg.qr(gaussian(seed, IMAGES, IMAGES)).Q
        v = torch.linalg.qr(gaussian(seed + 1000, CHANNELS, IMAGES)).Q
        values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), IMAGES, dtype=torch.float64)
        return (u * values) @ v.T

    return draw


def collapsed(noise: float) -> Callable[[int], list[Tensor]]:
    """All images the same but for noise, relative to the common embedding."""

    def draw(seed: int) -> list[Tensor]:
        common = gaussian(10_000 + seed, 1, CHANNELS)
        return [common + noise * view for view in pair(random)(seed)]

    return draw


def same_conditioned(condition: float) -> Callable[[int], list[Tensor]]:
    """Ill-conditioned embeddings, and views that differ by 1 % of each direction's own size."""

    def draw(seed: int) -> list[Tensor]:
        clean = conditioned(condition)(seed)
        u, s, vt = torch.linalg.svd(clean, full_matrices=False)
        return [(u + 0.1 * gaussian(7 * seed + v, *u.shape) / IMAGES**0.5) * s @ vt for v in (1, 2)]

    return draw


INPUTS: dict[str, Callable[[int], list[Tensor]]] = {
    "random": pair(random),
    "ill-conditioned, 1e2": same_conditioned(1e2),
    "ill-conditioned, 1e3": same_conditioned(1e3),
    "ill-conditioned, 1e4": same_conditioned(1e4),
    "near collapse, noise 1e-2": collapsed(1e-2),
    "near collapse, noise 1e-3": collapsed(1e-3),
    "near collapse, noise 1e-4": collapsed(1e-4),
    "near collapse, noise 1e-5": collapsed(1e-5),
}


def ours(views: list[Tensor]) -> Tensor:
    return cwrgp_loss(views, GROUPS, permutations=plain.orders(views))


def straightforward(views: list[Tensor]) -> Tensor:
    return plain.plain_cwrgp(views, GROUPS, IMAGES)


def evaluate(loss: Loss, views: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Value and gradients, float64; NaN where the loss refuses."""
    inputs = [view.to(dtype).requires_grad_() for view in views]
    try:
        value = loss(inputs)
        gradients = torch.autograd.grad(value, inputs)
    except (UserError, torch.linalg.LinAlgError):
        return torch.tensor(torch.nan), torch.full((len(views), *views[0].shape), torch.nan)
    return value.detach().double(), torch.stack(gradients).double()


def reference(views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """By singular values of the embeddings themselves, in float64: nothing is squared.

    With centred X = U S V^T of N images, whitened images are sqrt(D - 1) U V^T; the gradient flows through that polar
    factor. What counts is the condition number of X, where the covariance has its square.
    """
    inputs = [view.double().requires_grad_() for view in views]
    outputs = []
    for view, order in zip(inputs, plain.orders(inputs), strict=True):
        x = (view - view.mean(dim=1, keepdim=True))[:, order]
        parts = []
        for part in x.chunk(GROUPS, 1):
            u, _, vt = torch.linalg.svd(part, full_matrices=False)
            parts.append((part.shape[1] - 1) ** 0.5 * u @ vt)
        outputs.append(torch.cat(parts, 1)[:, order.argsort()])
    value = plain.distance(outputs)
    return value.detach(), torch.stack(torch.autograd.grad(value, inputs))


def errors(loss: Loss, draw: Callable[[int], list[Tensor]], dtype: torch.dtype, seeds: int) -> str:
    """`value / gradient`: the largest relative errors over the seeds; how many are NaN."""
    worst, broken = [0.0, 0.0], 0
    for seed in range(seeds):
        views = [view.float() for view in draw(seed)]
        value, gradient = evaluate(loss, views, dtype)
        true_value, true_gradient = reference(views)
        if not (value.isfinite() and gradient.isfinite().all()):
            broken += 1
            continue
        off = (value - true_value).abs() / true_value, (gradient - true_gradient).norm() / true_gradient.norm()
        worst = [max(a, float(b)) for a, b in zip(worst, off, strict=True)]
    text = f"{worst[0]:.0e} / {worst[1]:.0e}" if broken < seeds else ""
    return text + (f"{' ' if text else ''}(NaN: {broken} of {seeds})" if broken else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of each input; the worst counts (default: %(default)s)")
    seeds = parser.parse_args().seeds
    print(f"torch {torch.__version__}, {platform.machine()}; N = {IMAGES}, D = {CHANNELS}, {GROUPS} groups, 2 views")
    print(f"largest relative error of value / gradient over {seeds} inputs\n")
    sides = [(loss, dtype) for dtype in (torch.float32, torch.float64) for loss in (ours, straightforward)]
    print("| input | " + " | ".join(f"{loss.__name__}, {str(dtype)[6:]}" for loss, dtype in sides) + " |")
    print("|---" * (len(sides) + 1) + "|")
    for name, draw in INPUTS.items():
        print(
            f"| {name} | "
            + " | ".join(errors(*side, seeds) for side in ((loss, draw, dtype) for loss, dtype in sides))
            + " |"
        )


if __name__ == "__main__":
    main()
