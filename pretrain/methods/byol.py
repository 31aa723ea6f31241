"""BYOL: predict, from one view, a slowly moving encoder's output for another.

Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020 (arXiv 2006.07733). With more than two views the loss is
the mean over pairs of views, as CW-RGP's official code has it; so is the target's update, after each step.
"""

from typing import Literal

from pretrain.data.batch import Batch
from pretrain.losses.prediction import prediction_loss
from pretrain.losses.similarity import spread
from pretrain.method import Encoder, Method, Step, with_first
from pretrain.networks import MomentumCopy, build_predictor
from whitebench.config import strict
from whitebench.hashing import added
from whitebench.ranges import PositiveInt, Share


@strict
class Config:
    predictor: PositiveInt = 4096
    """Width of the predictor's hidden layer."""
    momentum: Share = 0.99
    """Of the target network at the start, rising to 1 by a cosine."""
    momentum_by: Literal["epoch", "step"] = "epoch"
    """What that cosine follows: the epoch, within which momentum is constant, as in the codes of W-MSE and CW-RGP, or
    the step."""
    export: Literal["online", "momentum"] = added("online")
    """The encoder that is evaluated and transferred; the online one in the paper."""


class BYOL(Method[Config]):
    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.target = MomentumCopy(encoder, config.momentum)
        self.predictor = build_predictor(encoder.embedding_dim, config.predictor)

    def forward(self, batch: Batch) -> Step:
        online = [self.encoder(view).z for view in batch.views]
        targets = [self.target(view).z for view in batch.views]
        loss = prediction_loss([self.predictor(z) for z in online], targets)
        return Step(loss, {"distance": loss.detach() / 2, "spread": spread(online[0])})

    def after_update(self) -> None:
        progress = self.epoch / self.epochs if self.config.momentum_by == "epoch" else self.progress
        self.target.update(self.target.momentum_at(progress))

    def encoders(self) -> dict[str, Encoder]:
        return with_first(self.config.export, {"online": self.encoder, "momentum": self.target.network})

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True
