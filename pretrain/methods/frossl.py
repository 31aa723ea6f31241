"""FroSSL: the Frobenius norm of each view's Gram matrix is made small, and views are drawn to their mean.

Skean et al., "FroSSL: Frobenius Norm Minimization for Efficient Multiview Self-Supervised Learning", ECCV 2024 (arXiv
2310.02903); constants as in its official code. There the loss is of each process's images; here it is of all
processes', so that several processes train as one.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.checks import check_images
from pretrain.losses.similarity import mean_squared_difference, spread
from pretrain.losses.spectra import small_gram
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Method, Step
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import NonNegativeFloat

Form = Literal["multi-view", "two-view"]


@strict
class Config:
    weight: NonNegativeFloat = 1.0
    """w, of the invariance."""
    form: Form = "multi-view"
    """two-view: of the paper's two-view runs, with standardised channels; its authors now always take the other."""


class FroSSL(Method[Config]):
    """Every process computes the loss of the whole batch."""

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(self.encoder(view).z)) for view in batch.views]
        loss = frossl_loss(views, self.config.weight, self.config.form)
        return Step(loss, {"spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        check_images("frossl", batch, "a Gram matrix")
        if self.config.form == "two-view" and views != 2:
            raise UserError(f"frossl: the form two-view takes 2 views, not {views} (data.views; method.form)")


def frossl_loss(views: Sequence[Tensor], weight: float = 1.0, form: Form = "multi-view") -> Tensor:
    """Sum over views of  2 log |K_v|_F + w V D MSE(y_v, mean of all y),  K_v the Gram matrix of y_v over its trace.

    y is z with every channel divided by its norm over the images (not centred); a channel of zeros stays zero. In
    the form "two-view" channels are centred first and have norm sqrt(D), and the invariance is w MSE(y_0, y_1).

    Args:
        views: V >= 2 embeddings [N, D], any floating dtype; computed in float32 or wider.
    Returns:
        Scalar; the first term is no less than -log min(N, D) a view.
    """
    with float32_region(views[0]):
        views = [at_least_float32(view) for view in views]
        if form == "two-view":
            return _two_view(views, weight)
        y = torch.stack([_unit_columns(view) for view in views])
        count, _, width = y.shape
        norms = torch.stack([_log_norm(view) for view in y])
        return norms.sum() + weight * count * width * (y - y.mean(dim=0)).square().mean(dim=(1, 2)).sum()


def _two_view(views: Sequence[Tensor], weight: float) -> Tensor:
    y = [_unit_columns(view - view.mean(dim=0)) * view.shape[1] ** 0.5 for view in views]
    return weight * mean_squared_difference(y) + _log_norm(y[0]) + _log_norm(y[1])


def _log_norm(y: Tensor) -> Tensor:
    """2 log |K|_F, K = y y^T over its trace, on the smaller side; the trace is a constant of the normalisation."""
    gram = small_gram(y)
    trace = gram.detach().trace().clamp_min(torch.finfo(gram.dtype).tiny ** 0.5)
    return (gram / trace).square().sum().clamp_min(torch.finfo(gram.dtype).tiny).log()


def _unit_columns(x: Tensor) -> Tensor:
    return x / x.norm(dim=0).clamp_min(1e-12)
