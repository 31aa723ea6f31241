"""The losses in their straightforward forms, as `losses.py` and `numerics.py` compare ours with them.

An SVD for each group of each window of each view, D x D matrices where the formula says so, everything at once: what
one writes down from a paper. Written here, not taken from the official codes.
"""

import torch
from torch import Tensor

from pretrain.methods.intl import trade_off_of


def by_svd(x: Tensor) -> Tensor:
    """[P, Q], centred: whitened by ZCA."""
    u, s, _ = torch.linalg.svd(x @ x.T / (x.shape[1] - 1))
    return u @ torch.diag(s.rsqrt()) @ u.T @ x


def distance(views: list[Tensor]) -> Tensor:
    pairs = [(a, b) for i, a in enumerate(views) for b in views[:i]]
    return torch.stack([2 - 2 * torch.cosine_similarity(a, b, dim=1).mean() for a, b in pairs]).mean()


def plain_cwrgp(views: list[Tensor], groups: int, window: int) -> Tensor:
    """Images are split into windows and channels into groups; each part is whitened by itself and put back in order."""
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
    images = torch.randperm(len(views[0]))
    outputs = []
    for view in views:
        parts = []
        for rows in view[images].split(window):
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


# --- the spectral family ----------------------------------------------------------------------------------------------


def unit(x: Tensor, dim: int = 1) -> Tensor:
    return torch.nn.functional.normalize(x, dim=dim)


def plain_lejepa(views: list[Tensor], directions: Tensor) -> Tensor:
    """[N, K, points] at once."""
    stacked = torch.stack(views)
    t = torch.linspace(0, 3, 17, dtype=stacked.dtype, device=stacked.device)
    phi = (-t.square() / 2).exp()
    weights = torch.full_like(t, 2 * 3 / 16) * phi
    weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2
    statistics = []
    for view in views:
        angle = (view @ directions).unsqueeze(-1) * t
        error = (angle.cos().mean(0) - phi).square() + angle.sin().mean(0).square()
        statistics.append(len(view) * (error @ weights).mean())
    return 0.98 * (stacked - stacked.mean(0)).square().mean() + 0.02 * torch.stack(statistics).mean()


def plain_visreg(views: list[Tensor], directions: Tensor) -> Tensor:
    stacked = torch.stack(views)
    n = len(views[0])
    share = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=stacked.device) / (n + 1) - 1
    quantiles = (2**0.5 * torch.erfinv(share)).to(stacked.dtype)[:, None]
    terms = []
    for view in views:
        mean, std = view.mean(0), view.var(0, correction=0).sqrt() + 1e-6
        shape = (((view - mean) / std.detach() @ directions).sort(dim=0).values - quantiles).square().mean()
        terms.append(mean.square().mean() + (std - 1).square().mean() + shape)
    return 0.9 * torch.stack(terms).mean() + 0.1 * (stacked - stacked.mean(0)).square().mean()


def plain_mmcr(views: list[Tensor]) -> Tensor:
    return -torch.linalg.svdvals(torch.stack([unit(view) for view in views]).mean(0)).sum()


def plain_ivne(views: list[Tensor]) -> Tensor:
    entropies = []
    for view in views:
        values = torch.linalg.svdvals(unit(view) / len(view) ** 0.5).square()
        entropies.append(-(values * values.clamp_min(1e-12).log()).sum())
    alpha = torch.log(torch.tensor(float(len(views[0]))))
    return -alpha * (unit(views[0]) * unit(views[1])).sum(1).mean() - torch.stack(entropies).mean()


def plain_simdino(views: list[Tensor]) -> Tensor:
    """Of D x D matrices."""
    a, b = (unit(view) for view in views)
    n, d = a.shape
    eye = torch.eye(d, dtype=a.dtype, device=a.device)
    rates = [torch.linalg.cholesky(eye + d / (n * 0.05) * e.T @ e).diagonal().log().sum() for e in (a, b)]
    agreement = ((a * b.detach()).sum(1).mean() + (b * a.detach()).sum(1).mean()) / 2
    return -agreement - (d + n) / (d * n) * (rates[0] + rates[1]) / 2


def plain_emp_ssl(views: list[Tensor]) -> Tensor:
    rows = torch.stack([unit(view) for view in views])
    n, d = rows.shape[1:]
    eye = torch.eye(d, dtype=rows.dtype, device=rows.device)
    rates = torch.stack([torch.logdet(eye + d / (n * 0.2) * z.T @ z) for z in rows]).mean() / 2
    return -200 * torch.cosine_similarity(rows, rows.mean(0, keepdim=True), dim=-1).mean() - rates


def plain_mec(views: list[Tensor], scale: float) -> Tensor:
    """Powers of the N x N matrix."""
    p = [unit(view) for view in views]
    total = torch.zeros((), dtype=p[0].dtype, device=p[0].device)
    for a in range(2):
        m = p[a].detach() @ p[1 - a].T / scale
        power = m
        for k in range(1, 5):
            total = total + (-1) ** (k + 1) * power.trace() / k
            power = power @ m
    return -scale / len(p[0]) * total / 2


def plain_matrix_ssl(views: list[Tensor]) -> Tensor:
    """Logarithms of D x D matrices, by powers."""
    x = [unit(view) for view in views]
    x = [(view - view.mean(0)) / len(view) ** 0.5 for view in x]
    eye = torch.eye(x[0].shape[1], dtype=x[0].dtype, device=x[0].device)

    def log4(c: Tensor) -> Tensor:
        series, power = torch.zeros_like(c), c
        for k in range(1, 5):
            series = series + (-1) ** (k + 1) * power / k
            power = power @ c
        return series

    total = torch.zeros((), dtype=eye.dtype, device=eye.device)
    for a in range(2):
        t, p = x[a].detach(), x[1 - a]
        total = total - log4(t.T @ p).trace() - ((t.T @ t + eye) @ log4(p.T @ p)).trace()
    return total / 2


def plain_frossl(views: list[Tensor]) -> Tensor:
    """Of D x D matrices (the official code takes the smaller side, too)."""
    y = torch.stack([unit(view, dim=0) for view in views])
    count, _, width = y.shape
    grams = [view.T @ view for view in y]
    norms = [2 * torch.linalg.matrix_norm(gram / gram.trace().detach()).log() for gram in grams]
    return torch.stack(norms).sum() + count * width * (y - y.mean(0)).square().mean(dim=(1, 2)).sum()


def plain_vibcreg(views: list[Tensor]) -> Tensor:
    total = 25 * torch.nn.functional.mse_loss(views[0], views[1])
    for view in views:
        total = total + 25 * torch.relu(1 - (view.var(dim=0) + 1e-4).sqrt()).mean()
        x = unit(view - view.mean(dim=0), dim=0)
        c = x.T @ x
        total = total + 200 * (c - torch.diag(c.diagonal())).square().mean()
    return total


def plain_corinfomax(views: list[Tensor]) -> Tensor:
    """From a fresh state (identity, mean 0), in float64 as the official code."""
    rows = [unit(view) for view in views]
    total = 250 * torch.nn.functional.mse_loss(rows[0], rows[1])
    for z in rows:
        wide = z.double()
        x = wide - 0.99 * wide.mean(0)
        eye = torch.eye(z.shape[1], dtype=torch.float64, device=z.device)
        covariance = 0.01 * eye + 0.99 * x.T @ x / len(x)
        total = total - (torch.logdet(covariance + 1e-8 * eye) / z.shape[1]).to(total.dtype)
    return total


def plain_tico(views: list[Tensor], covariance: Tensor) -> Tensor:
    a, b = unit(views[0]), unit(views[1]).detach()
    updated = (0.9 * covariance + 0.1 * a.T @ a / len(a)).detach()
    return 1 - (a * b).sum(1).mean() + 8 * ((a @ updated) * a).sum(1).mean()


def plain_tregs(views: list[Tensor]) -> Tensor:
    """The tree by scipy, of a dense matrix of distances."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    total = 10 * (views[0] - views[1]).square().sum(1).mean()
    for view in views:
        tree = minimum_spanning_tree(torch.cdist(view, view).detach().cpu().numpy())
        rows, columns = (torch.from_numpy(ends).long().to(view.device) for ends in tree.nonzero())
        total = total - 0.2 * (view[rows] - view[columns]).norm(dim=1).sum() / len(view)
        total = total + 8e-4 * (view.norm(dim=1) - 1).square().mean()
    return total


def plain_dcl(views: list[Tensor]) -> Tensor:
    a, b = (unit(view) for view in views)
    total = torch.zeros((), dtype=a.dtype, device=a.device)
    for x, y in ((a, b), (b, a)):
        negatives = ((x @ x.T / 0.1).exp() + (x @ y.T / 0.1).exp()).fill_diagonal_(0)
        total = total + (negatives.sum(1).log() - (x * y).sum(1) / 0.1).mean()
    return total
