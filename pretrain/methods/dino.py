"""DINO: a student reads from each crop what a slowly moving teacher reads from the global ones.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021 (arXiv 2104.14294); constants as
in its official code. The first two views are global, all views are the student's. The head's layers before the last one
are the recipe's projector, without batch norm (network.projector_norm), its activation GELU.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.distributed import mean_over_ranks
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Counting, Encoder, Method, Step, with_first
from pretrain.networks import MomentumCopy, embed_by_size
from whitebench.config import strict
from whitebench.ranges import AtLeastTwo, NonNegativeInt, Share, Temperature

GLOBAL = 2
"""Views that the teacher sees."""


@strict
class Config:
    outputs: AtLeastTwo = 65536
    """K, width of the last layer."""
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = 0.04
    """At the end of its warm-up."""
    warmup_temperature: Temperature = 0.04
    """Of the teacher in the first epoch; rises linearly to `teacher_temperature`."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs of that rise."""
    centre_momentum: Share = 0.9
    """Of the mean of the teacher's outputs, which is taken off them."""
    momentum: Share = 0.996
    """Of the teacher at the start, rising to 1 by a cosine."""
    frozen_epochs: NonNegativeInt = 1
    """Epochs at the start in which the last layer stays as it is."""
    head_init: Literal["official", "default"] = "official"
    """Of the head's layers before the last one. official: N(0, 0.02) and zero biases; default: PyTorch's."""
    export: Literal["teacher", "student"] = "teacher"
    """The encoder that is evaluated and transferred, the teacher as in the official code."""


class DINO(Method[Config]):
    minimum_views = GLOBAL
    counting: ClassVar[Counting] = "inclusive"

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        if config.head_init == "official":
            encoder.projector.apply(_init_linear)
        self.last = LastLayer(encoder.embedding_dim, config.outputs)
        self.teacher = MomentumCopy(encoder, config.momentum)
        self.teacher_last = MomentumCopy(self.last, config.momentum)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(config.outputs))

    def forward(self, batch: Batch) -> Step:
        student = embed_by_size(self.encoder, batch.views)
        with torch.no_grad():
            teacher = embed_by_size(self.teacher.network, batch.views[:GLOBAL])
            targets = [self.teacher_last(z) for z in teacher]
        student_temperature = self.config.student_temperature
        outputs = [self.last(z) for z in student]
        loss = dino_loss(outputs, targets, self.centre.clone(), student_temperature, self.teacher_temperature)
        with torch.no_grad():
            likely = F.softmax((targets[0] - self.centre) / self.teacher_temperature, dim=1)
            entropy = -(likely * likely.clamp_min(1e-12).log()).sum(dim=1).mean()
        self._move_centre(torch.cat(targets))
        return Step(loss, {"teacher_entropy": entropy, "spread": spread(student[0])})

    @property
    def teacher_temperature(self) -> float:
        """Of this epoch."""
        start, end, epochs = self.config.warmup_temperature, self.config.teacher_temperature, self.config.warmup_epochs
        if self.epoch >= epochs:
            return end
        return start + (end - start) * self.epoch / max(1, epochs - 1)

    def before_update(self) -> None:
        if self.epoch < self.config.frozen_epochs:
            self.last.weight.grad = None

    def after_update(self) -> None:
        for network in (self.teacher, self.teacher_last):
            network.update(network.momentum_at(self.progress))

    def encoders(self) -> dict[str, Encoder]:
        return with_first(self.config.export, {"teacher": self.teacher.network, "student": self.encoder})

    @classmethod
    def begins_after(cls, config: Config) -> dict[str, float]:
        return {"frozen_epochs": config.frozen_epochs}

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    @torch.no_grad()
    def _move_centre(self, targets: Tensor) -> None:
        mean = mean_over_ranks(targets.mean(dim=0)).to(self.centre.dtype)
        self.centre.lerp_(mean, 1 - self.config.centre_momentum)


class LastLayer(nn.Module):
    """[B, D] -> [B, K]: inner products of rows of length 1, as a weight-normalised layer of gain 1 gives them."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        # PyTorch's default for a linear layer, as in the official code: rows of a length of about 0.577. The length
        # divides the gradient, so that it sets how fast the directions move.
        self.weight = nn.Linear(width, outputs, bias=False).weight

    def forward(self, z: Tensor) -> Tensor:
        with float32_region(z):
            unit = unit_rows(z)
            return unit @ unit_rows(self.weight).to(unit.dtype).mT


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def dino_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    centre: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Cross-entropy of softmax((t_g - centre) / tau_t) and softmax(s_v / tau_s).

    It is the mean over global views g, views v other than g, and images.

    Args:
        student: V outputs [B, K]; the global views come first.
        teacher: its outputs [B, K] of the global views; no gradient flows to them.
        centre: [K].
    Returns:
        Scalar, in float32 or wider.
    """
    with float32_region(student[0]):
        teacher, student = (list(map(at_least_float32, outputs)) for outputs in (teacher, student))
        centre = centre.to(teacher[0].dtype)
        targets = [F.softmax((t.detach() - centre) / teacher_temperature, dim=1) for t in teacher]
        logs = [F.log_softmax(s / student_temperature, dim=1) for s in student]
        pairs = [(q, log) for g, q in enumerate(targets) for v, log in enumerate(logs) if v != g]
        return torch.stack([-(q * log).sum(dim=1).mean() for q, log in pairs]).mean()
