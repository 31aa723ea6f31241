"""MoCo v2: contrast each image with a queue of past keys, which a slowly moving encoder has made.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020 (arXiv 1911.05722); Chen et
al., "Improved Baselines with Momentum Contrastive Learning" (arXiv 2003.04297). As in its official code, the first view
makes queries and the second keys, not the other way round as well.
"""

from pretrain.data.batch import Batch
from pretrain.losses.momentum_contrast import Contrast, MomentumContrast, check_contrast
from pretrain.losses.similarity import cosine_distance, spread
from pretrain.method import Encoder, Method, Step
from whitebench.config import strict


@strict
class Config(Contrast):
    pass


class MoCo(Method[Config]):
    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.contrast = MomentumContrast(encoder, config)

    def forward(self, batch: Batch) -> Step:
        pair = self.contrast(self.encoder, *batch.views)
        loss = self.contrast.loss(pair)
        distance = cosine_distance(pair.query.detach(), pair.key)
        return Step(loss, {"distance": distance, "spread": spread(pair.query)})

    def encoders(self) -> dict[str, Encoder]:
        return self.contrast.encoders(self.encoder)

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return config.bn_splits == 1  # parts of a process's batch

    def check(self, batch: int, views: int) -> None:
        check_contrast("moco", self.config, batch, views)
