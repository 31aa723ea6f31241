"""Zero-CL: the whitened views of an image (ICL), of a channel (FCL), or of both, are to correlate fully.

Zhang et al., "Zero-CL: Instance and Feature Decorrelation for Negative-Free Symmetric Contrastive Learning", ICLR 2022.
The paper was not available. The instance part is as CW-RGP's code has it (`base/methods/zero_icl.py`), but over the
images of all processes. The feature part is the same on the transpose. Zero-CL's own code for CIFAR differs from it in
a batch norm in place of the standardisation (a factor of sqrt(N / (N - 1))), its code for ImageNet, of either part, in
shrinkage 0, ridge 0.01, Q in place of Q - 1 in the covariance, and each process whitening its own images. In all of
them a run takes one part and two views: the weighted sum of both parts and the mean over pairs of more views are a
reconstruction.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient, world_size
from pretrain.losses.similarity import spread
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Method, Step
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import NonNegativeFloat, Share


@strict
class Config:
    instance_weight: NonNegativeFloat = 1.0
    """Of the part in which images are decorrelated from each other over channels [N, N]; 0 leaves it out (Zero-FCL)."""
    feature_weight: NonNegativeFloat = 1.0
    """Of the part in which channels are decorrelated over images [D, D]; 0 leaves it out (Zero-ICL)."""
    shrinkage: Share = 0.1
    """Of the covariance S, towards the identity: (1 - shrinkage) S + shrinkage I."""
    ridge: NonNegativeFloat = 1e-5
    """Added to the eigenvalues after that."""


class ZeroCL(Method[Config]):
    """Every process computes the loss of the whole batch. No gradient passes through the whitening matrices."""

    def forward(self, batch: Batch) -> Step:
        views = [gather_with_gradient(at_least_float32(self.encoder(view).z)) for view in batch.views]
        config = self.config
        parts = _parts(views, config.instance_weight, config.feature_weight, config.shrinkage, config.ridge)
        scalars = {name: part.detach() for name, part in parts.items()}
        return Step(torch.stack(list(parts.values())).sum(), {**scalars, "spread": spread(views[0])})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        config = self.config
        super().check(batch, views)
        if batch * world_size() < 2 or self.encoder.embedding_dim < 2:
            raise UserError("zero_cl: needs at least 2 images and 2 channels (batch, network.projector)")
        if not config.instance_weight + config.feature_weight:
            raise UserError("zero_cl: both weights are 0 (method.instance_weight, method.feature_weight)")
        if not config.shrinkage + config.ridge:
            raise UserError("zero_cl: shrinkage and ridge are both 0 (method.shrinkage, method.ridge)")

    def transformed(self, z: Tensor) -> Tensor:
        """As the instance part whitens it, or the feature part where that is alone."""
        shrinkage, ridge = self.config.shrinkage, self.config.ridge
        with float32_region(z):
            if self.config.instance_weight:
                return _whiten_detached(at_least_float32(z), shrinkage, ridge)
            return _whiten_detached(at_least_float32(z).mT, shrinkage, ridge).mT


def zero_cl_loss(
    views: Sequence[Tensor],
    instance_weight: float = 1.0,
    feature_weight: float = 1.0,
    shrinkage: float = 0.1,
    ridge: float = 1e-5,
) -> Tensor:
    """Weighted sum of two parts, each the mean over pairs of views of  sum_p (1 - <a_p, b_p> / Q)^2.

    a and b are the whitened views of P variables in Q observations: of N images in D channels for the instance part, of
    D channels in N images for the feature part. Every variable is standardised over its observations, then all are
    decorrelated by the matrix (((1 - shrinkage) S + shrinkage I) + ridge I)^(-1/2), S their covariance, which is taken
    as a constant.

    Args:
        views: V >= 2 embeddings of the same N images, each [N, D], any floating dtype; computed in float32 or wider.
            A variable that is constant counts as uncorrelated.
    Returns:
        Scalar.
    Raises:
        UserError: embeddings that are not finite.
    """
    return torch.stack(list(_parts(views, instance_weight, feature_weight, shrinkage, ridge).values())).sum()


def _parts(
    views: Sequence[Tensor], instance_weight: float, feature_weight: float, shrinkage: float, ridge: float
) -> dict[str, Tensor]:
    """The weighted parts, by name; without those of weight 0."""
    parts = {}
    with float32_region(views[0]):
        rows = [at_least_float32(view) for view in views]
        if instance_weight:
            parts["instance"] = instance_weight * _decorrelation(rows, shrinkage, ridge)
        if feature_weight:
            parts["feature"] = feature_weight * _decorrelation([view.mT for view in rows], shrinkage, ridge)
    return parts


def _decorrelation(views: Sequence[Tensor], shrinkage: float, ridge: float) -> Tensor:
    """One part, of views [P, Q]: only the correlations of a variable with itself are needed."""
    observations = views[0].shape[1]
    whitened = [_whiten_detached(view, shrinkage, ridge) for view in views]
    products = [torch.linalg.vecdot(a, b) / observations for a, b in combinations(whitened, 2)]
    return torch.stack([(1 - product).square().sum() for product in products]).mean()


def _whiten_detached(x: Tensor, shrinkage: float, ridge: float) -> Tensor:
    """Standardised and decorrelated x [P, Q]; the gradient takes the whitening matrix for a constant.

    With fewer observations than variables, and f(t) = ((1 - shrinkage) t + shrinkage + ridge)^(-1/2), the matrix is
    f(S) = f(0) I + A K A^T / (Q - 1), A the standardised x and K [Q, Q] the function (f(t) - f(0)) / t of
    A^T A / (Q - 1).
    """
    x = x - x.mean(dim=1, keepdim=True)
    x = x / x.std(dim=1, keepdim=True).clamp_min(1e-6)
    fixed, scale, floor = x.detach(), 1 - shrinkage, shrinkage + ridge
    if x.shape[0] <= x.shape[1]:
        eigenvalues, vectors = _eigh(fixed @ fixed.mT / (x.shape[1] - 1))
        return (vectors * (scale * eigenvalues + floor).rsqrt()) @ vectors.mT @ x
    eigenvalues, vectors = _eigh(fixed.mT @ fixed / (x.shape[1] - 1))
    root, least = (scale * eigenvalues + floor).sqrt(), floor**0.5
    difference = -scale / (root * least * (root + least))
    return x / least + fixed @ (((vectors * difference) @ vectors.mT) @ (fixed.mT @ x)) / (x.shape[1] - 1)


def _eigh(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below 0, and vectors."""
    try:
        eigenvalues, vectors = torch.linalg.eigh(covariance)
    except torch.linalg.LinAlgError as error:
        raise UserError("zero_cl: the embeddings are not finite") from error
    return eigenvalues.clamp_min(0), vectors
