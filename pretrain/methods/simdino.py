"""SimDINO: DINO without prototypes; a coding rate keeps the embeddings apart.

Wu et al., "Simplifying DINO via Coding Rate Regularization", ICML 2025 (arXiv 2502.10385). The first two views are
global, all are the student's. Covariances are those of the images of all processes, gathered with gradient (reduce_cov
1 of the official code; its default takes each process's alone and yet divides by the number of all images, so that the
loss depends on the number of processes). eps is 0.05, of the official README's commands; the code's default is 0.5.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.spectra import coding_rate
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Counting, Encoder, Method, Step, with_first
from pretrain.networks import MomentumCopy, embed_by_size
from whitebench.config import strict
from whitebench.ranges import NonNegativeFloat, PositiveFloat, Share

GLOBAL = 2
"""Views that the teacher sees."""


@strict
class Config:
    eps: PositiveFloat = 0.05
    """Of the coding rate: squared distortion, smaller ones count directions of less variance."""
    weight: NonNegativeFloat = 1.0
    """Of the attraction between student and teacher."""
    smooth: bool = True
    """Whether the coding rate is that of the mean of student and teacher (expa_type 1), or of the student."""
    momentum: Share | None = 0.996
    """Of the teacher at the start, rising to 1 by a cosine; None: plain pairs, the student's own global views, with
    gradient, in the teacher's place (of this suite, in no paper)."""
    export: Literal["student", "teacher"] = "teacher"
    """The encoder that is evaluated and transferred, the teacher as in DINO's official code."""


class SimDINO(Method[Config]):
    """Every process computes the loss of the whole batch."""

    counting: ClassVar[Counting] = "inclusive"

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        self.teacher = MomentumCopy(encoder, config.momentum) if config.momentum is not None else None

    def encoders(self) -> dict[str, Encoder]:
        if self.teacher is None:
            return super().encoders()
        return with_first(self.config.export, {"student": self.encoder, "teacher": self.teacher.network})

    def forward(self, batch: Batch) -> Step:
        student = [gather_with_gradient(at_least_float32(z)) for z in embed_by_size(self.encoder, batch.views)]
        targets = student[:GLOBAL]
        if self.teacher is not None:
            with torch.no_grad():
                copies = embed_by_size(self.teacher.network, batch.views[:GLOBAL])
                targets = [gather_with_gradient(at_least_float32(z)) for z in copies]
        config = self.config
        terms = _terms(student, targets, config.eps, config.smooth)
        loss = -config.weight * terms.agreement - terms.expansion
        scalars = {name: term.detach() for name, term in terms._asdict().items()}
        return Step(loss, {**scalars, "spread": spread(student[0])})

    def after_update(self) -> None:
        if self.teacher is not None:
            self.teacher.update(self.teacher.momentum_at(self.progress))

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True


def simdino_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    eps: float = 0.05,
    smooth: bool = True,
    world: int = 1,
    weight: float = 1.0,
) -> Tensor:
    """-weight * mean over (global view i, view j other than i) of the images' <t_i, s_j>  -  the expansion.

    The expansion is (D + N) / (D N) times the mean over global views of 1/2 log det(I + D / (N eps) e_i^T e_i), with
    e_i = (s_i + t_i) / 2 where `smooth`, else s_i.

    Args:
        student: V tensors [n, D], the global views first; teacher: of the two global views. Rows are brought to length
            1; gradients flow to the teacher as they come.
        world: N = n world; other than 1 it is one of the official code's processes with reduce_cov 0.
    Returns:
        Scalar, in float32 or wider.
    """
    terms = _terms(student, teacher, eps, smooth, world)
    return -weight * terms.agreement - terms.expansion


class _Terms(NamedTuple):
    agreement: Tensor
    expansion: Tensor


def _terms(student: Sequence[Tensor], teacher: Sequence[Tensor], eps: float, smooth: bool, world: int = 1) -> _Terms:
    with float32_region(student[0]):
        s, t = ([unit_rows(z) for z in views] for views in (student, teacher))
        pairs = [(target, view) for i, target in enumerate(t) for j, view in enumerate(s) if i != j]
        agreement = torch.stack([(a * b).sum(dim=1).mean() for a, b in pairs]).mean()
        images, width = s[0].shape
        count = images * world
        spanned = [(a + b) / 2 if smooth else a for a, b in zip(s, t, strict=False)]
        rates = torch.stack([coding_rate(e, width / (count * eps)) for e in spanned])
        return _Terms(agreement, (width + count) / (width * count) * rates.mean())
