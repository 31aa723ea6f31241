"""MoCo v2: contrast each image with a queue of past keys, which a slowly moving encoder has made.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020 (arXiv 1911.05722); Chen et
al., "Improved Baselines with Momentum Contrastive Learning" (arXiv 2003.04297). As in its official code, the first view
makes queries and the second keys; the other way round as well (`symmetric`, each with a queue of its own) is what
solo-learn calls MoCo v2+, after Chen and He (arXiv 2011.10566).
"""

from pretrain.data.batch import Batch
from pretrain.losses.momentum_contrast import Contrast, MomentumContrast, Queue, check_contrast
from pretrain.losses.similarity import cosine_distance, spread
from pretrain.method import Encoder, Method, Step
from whitebench.config import strict
from whitebench.hashing import added


@strict
class Config(Contrast):
    symmetric: bool = added(False)
    """Whether the loss is the mean over both directions: the views change places, with another queue."""


class MoCo(Method[Config]):
    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.contrast = MomentumContrast(encoder, config)
        self.other_queue = Queue(config.queue, encoder.embedding_dim) if config.symmetric else None

    def forward(self, batch: Batch) -> Step:
        pair = self.contrast(self.encoder, *batch.views, progress=self.progress)
        other = self.contrast.encoded(self.encoder, *reversed(batch.views)) if self.other_queue is not None else None
        loss = self.contrast.loss(pair)
        if other is not None:
            loss = (loss + self.contrast.loss(other, self.other_queue)) / 2
        distance = cosine_distance(pair.query.detach(), pair.key)
        return Step(loss, {"distance": distance, "spread": spread(pair.query)})

    def encoders(self) -> dict[str, Encoder]:
        return self.contrast.encoders(self.encoder)

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return config.bn_splits == 1  # parts of a process's batch

    def check(self, batch: int, views: int) -> None:
        check_contrast("moco", self.config, batch, views)
