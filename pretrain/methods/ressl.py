"""ReSSL: a strongly augmented view is related to past images as a weakly augmented one is.

Zheng et al., "ReSSL: Relational Self-Supervised Learning with Weak Augmentation", NeurIPS 2021 (arXiv 2107.09282);
constants as in its official code. View 0 is the strong one, of the online encoder; view 1 the weak one (crop and flip
alone), of the momentum encoder. One direction only; the batch's own keys are not among the past ones.
"""

from torch import Tensor
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.momentum_contrast import Contrast, MomentumContrast, check_contrast
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.whitening import float32_region
from pretrain.method import Encoder, Method, Step
from whitebench.config import strict
from whitebench.ranges import PositiveInt, Temperature


@strict
class Config(Contrast):
    """`temperature` is that of the strong view."""

    temperature: Temperature = 0.1
    key_temperature: Temperature = 0.04
    """Of the weak view: smaller, so that its relations are sharper."""
    queue: PositiveInt = 131072


class ReSSL(Method[Config]):
    """The loss is of this process's images; the queue takes up the keys of all processes."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.contrast = MomentumContrast(encoder, config)

    def forward(self, batch: Batch) -> Step:
        pair = self.contrast(self.encoder, *batch.views, progress=self.progress)
        queue = self.contrast.queue
        # The queue is copied: pushing changes it before the backward pass needs what the loss has seen.
        rows = queue.rows.clone()
        loss = ressl_loss(pair.query, pair.key, rows, self.config.temperature, self.config.key_temperature)
        queue.push(gather_with_gradient(pair.key))
        return Step(loss, {"spread": spread(pair.query)})

    def encoders(self) -> dict[str, Encoder]:
        return self.contrast.encoders(self.encoder)

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return config.bn_splits == 1  # parts of a process's batch

    def check(self, batch: int, views: int) -> None:
        check_contrast("ressl", self.config, batch, views)


def ressl_loss(q: Tensor, k: Tensor, queue: Tensor, tau_q: float = 0.1, tau_k: float = 0.04) -> Tensor:
    """Mean over images of the cross-entropy of softmax(k . queue / tau_k) and softmax(q . queue / tau_q).

    Args:
        q: [N, D], of the strong view. k: [N, D], of the weak one; no gradient flows to it. Brought to length 1 here.
        queue: [K, D], rows of length 1.
    Returns:
        Scalar, in float32 or wider.
    """
    with float32_region(q):
        query, key = unit_rows(q), unit_rows(k.detach())
        queue = queue.to(query.dtype)
        relations = F.softmax(key @ queue.mT / tau_k, dim=1)
        return -(relations * F.log_softmax(query @ queue.mT / tau_q, dim=1)).sum(dim=1).mean()
