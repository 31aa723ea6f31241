"""SimSiam: predict one view's embedding from another's, without negatives and without a target network.

Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021 (arXiv 2011.10566). With more than two views
the loss is the mean over pairs of views.
"""

from collections.abc import Iterable

from torch import nn

from pretrain.data.batch import Batch
from pretrain.losses.prediction import prediction_loss
from pretrain.losses.similarity import spread
from pretrain.method import Encoder, Method, Step
from pretrain.networks import build_predictor
from whitebench.config import strict
from whitebench.ranges import PositiveInt


@strict
class Config:
    predictor: PositiveInt = 512
    """Width of the predictor's hidden layer."""
    predictor_bias: bool = False
    """Of that layer; the official code has none."""
    constant_predictor_rate: bool = True
    """Whether the predictor learns at the base rate throughout, as in the official code."""


class SimSiam(Method[Config]):
    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.predictor = build_predictor(encoder.embedding_dim, config.predictor, config.predictor_bias)

    def forward(self, batch: Batch) -> Step:
        views = [self.encoder(view).z for view in batch.views]
        # 2 - 2 cos summed over both directions, brought to the paper's -(cos + cos) / 2
        loss = prediction_loss([self.predictor(z) for z in views], views) / 4 - 1
        return Step(loss, {"distance": 2 * (loss.detach() + 1), "spread": spread(views[0])})

    def constant_rate(self) -> Iterable[nn.Module]:
        return (self.predictor,) if self.config.constant_predictor_rate else ()

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True
