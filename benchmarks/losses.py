"""Forward and backward of the whitening losses, against their straightforward forms in the same run.

python benchmarks/losses.py [--device cpu|cuda] [--rounds 5] [--only TEXT] [--full]

Straightforward: an SVD for each group of each window of each view, and D x D matrices where the formula says so. Where
that form has neither, the peer is the floor: the matrix products that forward and backward cannot do without. Rounds
alternate between the two; what counts is the ratio of the medians. Where both are the same function, their values and
gradients are compared, too, in float64.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretrain.methods.barlow_twins import barlow_twins_loss
from pretrain.methods.cwrgp import cwrgp_loss
from pretrain.methods.intl import intl_loss, trade_off_of
from pretrain.methods.vicreg import vicreg_loss
from pretrain.methods.wmse import wmse_loss

Loss = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Case:
    name: str
    images: int
    channels: int
    views: int
    ours: Loss
    peer: Loss | None
    """None: the peer is the floor of `products`."""
    products: int = 0
    """Unavoidable products [N, N] x [N, D] a view, forward and backward."""
    heavy: bool = False
    """Whether the peer takes minutes on a CPU: measured with --full only."""
    equal: bool = True
    """Whether both are the same function (not of other random draws)."""


# --- straightforward forms --------------------------------------------------------------------------------------------


def by_svd(x: Tensor) -> Tensor:
    """[P, Q], centred: whitened by ZCA."""
    u, s, _ = torch.linalg.svd(x @ x.T / (x.shape[1] - 1))
    return u @ torch.diag(s.rsqrt()) @ u.T @ x


def distance(views: list[Tensor]) -> Tensor:
    pairs = [(a, b) for i, a in enumerate(views) for b in views[:i]]
    return torch.stack([2 - 2 * torch.cosine_similarity(a, b, dim=1).mean() for a, b in pairs]).mean()


def plain_cwrgp(views: list[Tensor], groups: int, window: int) -> Tensor:
    """Images dealt to windows, channels to groups, each whitened by itself and put back."""
    images = torch.arange(len(views[0])) if window == len(views[0]) else torch.randperm(len(views[0]))
    outputs = []
    for view, order in zip(views, orders(views), strict=True):
        x = (view - view.mean(dim=1, keepdim=True))[images]
        windows = []
        for rows in x.split(window):
            whitened = torch.cat([by_svd(part) for part in rows[:, order].chunk(groups, 1)], 1)
            windows.append(whitened[:, order.argsort()])
        outputs.append(torch.cat(windows)[images.argsort()])
    return distance(outputs)


def plain_intl(views: list[Tensor], axis: str) -> Tensor:
    """Matrix powers of the covariance: [N, N] on the channel axis, [D, D] on the batch axis."""
    outputs, traces = [], []
    for view in views:
        x = (view if axis == "channel" else view.T) - view.mean(dim=1 if axis == "channel" else 0).unsqueeze(1)
        gram = x @ x.T / (x.shape[1] - 1)
        trace = gram.trace()
        root = torch.eye(len(gram), dtype=x.dtype, device=x.device)
        for _ in range(4):
            root = 1.5 * root - 0.5 * torch.linalg.matrix_power(root, 3) @ (gram / trace)
        output = root / trace.sqrt() @ x
        traces.append((output.var(dim=1) - 1).square().sum())
        outputs.append(output if axis == "channel" else output.T)
    beta = trade_off_of(None, views[0], "channel" if axis == "channel" else "batch")
    pairs = [distance([out, outputs[0]]) + beta * (tl + traces[0]) for out, tl in zip(outputs[1:], traces[1:])]
    return torch.stack(pairs).mean()


def plain_wmse(views: list[Tensor], window: int) -> Tensor:
    outputs = []
    for view in views:
        parts = []
        for rows in view.split(window):
            x = rows - rows.mean(dim=0)
            factor = torch.linalg.cholesky(x.T @ x / (len(x) - 1))
            parts.append(torch.linalg.solve_triangular(factor, x.T, upper=False).T)
        outputs.append(torch.cat(parts))
    return distance(outputs)


def plain_barlow(views: list[Tensor]) -> Tensor:
    a, b = ((view - view.mean(dim=0)) / (view.var(dim=0, unbiased=False) + 1e-5).sqrt() for view in views)
    c = a.T @ b / len(a)
    off = c - torch.diag(c.diagonal())
    return (1 - c.diagonal()).square().sum() + 0.0051 * off.square().sum()


def plain_vicreg(views: list[Tensor]) -> Tensor:
    total = 25 * torch.nn.functional.mse_loss(views[0], views[1])
    for view in views:
        x = view - view.mean(dim=0)
        c = x.T @ x / (len(x) - 1)
        total = total + 12.5 * torch.relu(1 - (view.var(dim=0) + 1e-4).sqrt()).mean()
        total = total + (c - torch.diag(c.diagonal())).square().sum() / view.shape[1]
    return total


def orders(views: list[Tensor]) -> list[Tensor]:
    """A permutation of the channels for each view, always the same."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(view.shape[1], generator=generator).to(view.device) for view in views]


CASES = [
    Case(
        "CW-RGP N=128 D=1024 g=2 V=4", 128, 1024, 4,
        lambda v: cwrgp_loss(v, 2, permutations=orders(v)),
        lambda v: plain_cwrgp(v, 2, 128),
    ),
    Case(
        "CW-RGP batch 256 N=64 D=512 g=4 V=4", 256, 512, 4,
        lambda v: cwrgp_loss(v, 4, permutations=orders(v), window=64),
        lambda v: plain_cwrgp(v, 4, 64),
        equal=False,
    ),
    Case("INTL channel N=256 D=8192 V=2", 256, 8192, 2, intl_loss, None, products=5),
    Case("INTL channel N=256 D=8192 V=6", 256, 8192, 6, intl_loss, None, products=5),
    Case(
        "INTL batch axis N=256 D=2048 V=2", 256, 2048, 2,
        lambda v: intl_loss(v, axis="batch"), lambda v: plain_intl(v, "batch"),
    ),
    Case(
        "INTL batch axis N=256 D=8192 V=2", 256, 8192, 2,
        lambda v: intl_loss(v, axis="batch"), lambda v: plain_intl(v, "batch"), heavy=True,
    ),
    Case(
        "W-MSE batch 256 N=128 D=64 V=2 (Cholesky)", 256, 64, 2,
        lambda v: wmse_loss(v, window=128), lambda v: plain_wmse(v, 128), equal=False,
    ),
    Case("Barlow Twins N=256 D=8192", 256, 8192, 2, barlow_twins_loss, plain_barlow),
    Case("VICReg N=256 D=8192", 256, 8192, 2, vicreg_loss, plain_vicreg),
]  # fmt: skip


# --- measuring --------------------------------------------------------------------------------------------------------


def inputs(case: Case, device: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(case.images, case.channels, generator=generator, dtype=torch.float64)
    noise = [
        torch.randn(case.images, case.channels, generator=generator, dtype=torch.float64) for _ in range(case.views)
    ]
    return [(clean + 0.5 * one).to(device, dtype).requires_grad_() for one in noise]


def timed(work: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def step(loss: Loss, views: list[Tensor]) -> Callable[[], None]:
    return lambda: (torch.autograd.grad(loss(views), views), None)[1]


def floor(case: Case, device: str) -> Callable[[], None]:
    square = torch.randn(case.images, case.images, device=device)
    wide = torch.randn(case.images, case.channels, device=device)
    tall = wide.T.contiguous()

    def work() -> None:
        for _ in range(case.views):
            for place in range(case.products):
                _ = square @ wide if place % 2 else wide @ tall

    return work


def largest_difference(case: Case, device: str) -> float:
    """Of values and gradients in float64, relative to the largest gradient."""
    assert case.peer is not None
    views = inputs(case, device, torch.float64)
    ours, peer = case.ours(views), case.peer(views)
    gradients = zip(torch.autograd.grad(ours, views), torch.autograd.grad(peer, views), strict=True)
    off = [float((a - b).abs().max() / b.abs().max()) for a, b in gradients]
    return max(abs(float(ours.detach() / peer.detach()) - 1), *off)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="of each side, alternating (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--full", action="store_true", help="also peers that take minutes on a CPU")
    options = parser.parse_args()
    device = options.device
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, float32")
    print(f"{'':44}{'ours':>10}{'peer':>10}{'peer/ours':>11}  peer; largest difference in float64")
    for case in CASES:
        if options.only in case.name and (options.full or device == "cuda" or not case.heavy):
            report(case, device, options.rounds)


def report(case: Case, device: str, rounds: int) -> None:
    views = inputs(case, device, torch.float32)
    ours = step(case.ours, views)
    peer = step(case.peer, views) if case.peer else floor(case, device)
    same = f"{largest_difference(case, device):.1e}" if case.peer and case.equal and not case.heavy else "-"
    for work in (ours, peer):
        work()
    pairs = [(timed(ours, device), timed(peer, device)) for _ in range(rounds)]
    a, b = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
    what = "straightforward" if case.peer else f"floor of {case.products} products a view"
    print(f"{case.name:44}{a:8.1f} ms{b:8.1f} ms{b / a:10.2f}   {what}; {same}", flush=True)


if __name__ == "__main__":
    main()
