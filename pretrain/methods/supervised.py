"""Supervised: cross-entropy on the labels, the upper bound that self-supervised methods are compared with."""

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Encoder, Method, Step
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import AtLeastTwo, ShareBelowOne


@strict
class Config:
    classes: AtLeastTwo
    """Of the dataset; labels are 0 to classes - 1."""
    label_smoothing: ShareBelowOne = 0.0
    """Share of the target that is spread evenly over all classes."""


class Supervised(Method[Config]):
    """A linear classifier on the pooled features of every view; there is no projector."""

    uses_labels = True
    minimum_views = 1

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.classifier = nn.Linear(encoder.feature_dim, config.classes)

    def forward(self, batch: Batch) -> Step:
        logits = at_least_float32(torch.cat([self.classifier(self.encoder(view).h) for view in batch.views]))
        labels = batch.label.repeat(len(batch.views))
        with float32_region(logits):
            loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return Step(loss, {"accuracy": accuracy})

    def check_dataset(self, images: int, classes: int) -> None:
        if self.config.classes != classes:
            raise UserError(f"method.classes={self.config.classes}, but the dataset has {classes} classes")

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        if any(True for _ in self.encoder.projector.parameters()):
            raise UserError("supervised: classifies the features themselves; set network.projector=[]")

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True
