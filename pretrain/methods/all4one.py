"""All4One: contrast of nearest neighbours, alone and merged by self-attention, and decorrelated channels.

Estepa et al., "All4One: Symbiotic Neighbour Contrastive Learning via Self-Attention and Redundancy Reduction", ICCV
2023 (arXiv 2303.09417), as solo-learn has it. The loss is over the images of all processes; the queue takes up view 0
of the momentum network. (There the transformer has a fixed learning rate of its own, 0.1; here its rate is the base
rate.)
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.distributed import gather_with_gradient
from pretrain.losses.cross_view import find_partner, nearest_rows
from pretrain.losses.momentum_contrast import Queue
from pretrain.losses.similarity import spread, unit_rows
from pretrain.losses.whitening import at_least_float32, float32_region
from pretrain.method import Encoder, Method, Step, with_first
from pretrain.networks import MomentumCopy, build_predictor
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import PositiveInt, Share, Temperature

VIEWS, NEIGHBOURS = 2, 5
HEADS, LAYERS = 8, 3
ATTENTION_TEMPERATURE = 0.1
"""Of merged neighbours, for any setting (as in the official code)."""


@strict
class Config:
    temperature: Temperature = 0.2
    """tau of the contrast with nearest neighbours."""
    queue: PositiveInt = 98304
    """Past embeddings of all processes, among which neighbours are sought."""
    predictor: PositiveInt = 4096
    """Width of the hidden layer of both predictors."""
    momentum: Share = 0.99
    """Of the momentum network at the start, rising to 1 by a cosine."""
    export: Literal["online", "momentum"] = "online"
    """The encoder that is evaluated and transferred."""
    dropout: Share = 0.1
    """Of the transformer."""


class All4One(Method[Config]):
    """Every process computes the loss of the whole batch."""

    maximum_views = 2

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        width = encoder.embedding_dim
        if width % HEADS:
            raise UserError(f"all4one: {HEADS} heads of attention need a multiple of {HEADS} channels, not {width}")
        self.target = MomentumCopy(encoder, config.momentum)
        self.predictor = build_predictor(width, config.predictor)
        self.neighbour_predictor = build_predictor(width, config.predictor)
        self.transformer = build_transformer(width, config.dropout)
        self.queue = Queue(config.queue, width)

    def encoders(self) -> dict[str, Encoder]:
        return with_first(self.config.export, {"online": self.encoder, "momentum": self.target.network})

    def forward(self, batch: Batch) -> Step:
        z = [at_least_float32(self.encoder(view).z) for view in batch.views]
        p, p2 = ([at_least_float32(net(view)) for view in z] for net in (self.predictor, self.neighbour_predictor))
        with torch.no_grad():
            target = [unit_rows(self.target(view).z) for view in batch.views]
        terms = _terms(
            z, target, p, p2, self.queue.rows, self.transformer, self.config.temperature, gather_with_gradient
        )
        self.queue.push(gather_with_gradient(target[0]))
        scalars = {name: term.detach() for name, term in terms._asdict().items()}
        return Step(terms.loss, {**scalars, "spread": spread(z[0])})

    def constant_rate(self) -> Iterable[nn.Module]:
        return (self.transformer,)

    def after_update(self) -> None:
        self.target.update(self.target.momentum_at(self.progress))

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def check(self, batch: int, views: int) -> None:
        super().check(batch, views)
        if self.config.queue < NEIGHBOURS:
            raise UserError(
                f"all4one: {NEIGHBOURS} neighbours need a queue of as many, not {self.config.queue} (method.queue)"
            )


def build_transformer(width: int, dropout: float = 0.1) -> nn.Module:
    """[B, T, width] -> [B, T, width]: three post-norm layers of eight heads, feed-forward 2 width, ReLU."""
    layer = nn.TransformerEncoderLayer(width, HEADS, 2 * width, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


class Terms(NamedTuple):
    attention: Tensor
    contrast: Tensor
    feature: Tensor

    @property
    def loss(self) -> Tensor:
        return (self.attention + self.contrast + self.feature) / 2


def all4one_loss(
    z: Sequence[Tensor],
    target: Sequence[Tensor],
    p: Sequence[Tensor],
    p2: Sequence[Tensor],
    queue: Tensor,
    transformer: nn.Module,
    tau: float = 0.2,
) -> Tensor:
    """Half the sum of three terms, each over two views [N, D].

    attention: merged neighbours of one view find, among those of the other whose first one is replaced by the
    prediction p2, their partner. contrast: NNCLR with p. feature: correlations of the channels of one view's target and
    the other view's z are drawn to the identity.

    Args:
        z: embeddings. target: the momentum network's, of length 1, without gradient. p, p2: predictions.
        queue: [K, D], rows of length 1, K >= 5. transformer: [N, 5, D] -> [N, 5, D]; its first output counts.
    Returns:
        Scalar, in float32 or wider.
    """
    return terms_of(z, target, p, p2, queue, transformer, tau).loss


def terms_of(
    z: Sequence[Tensor],
    target: Sequence[Tensor],
    p: Sequence[Tensor],
    p2: Sequence[Tensor],
    queue: Tensor,
    transformer: nn.Module,
    tau: float = 0.2,
) -> Terms:
    return _terms(z, target, p, p2, queue, transformer, tau, lambda x: x)


def _terms(
    z: Sequence[Tensor],
    target: Sequence[Tensor],
    p: Sequence[Tensor],
    p2: Sequence[Tensor],
    queue: Tensor,
    transformer: nn.Module,
    tau: float,
    gather: Callable[[Tensor], Tensor],
) -> Terms:
    """`gather` joins the rows of all processes."""
    with float32_region(z[0]):
        z, target, p, p2 = ([at_least_float32(x) for x in views] for views in (z, target, p, p2))
        neighbours = [nearest_rows(view, queue, NEIGHBOURS) for view in target]
        position = position_code(queue.shape[1]).to(neighbours[0])
        predicted = [torch.cat([p2[v][:, None], neighbours[v][:, :-1]], dim=1) for v in range(VIEWS)]
        merged, merged_predicted = (
            [unit_rows(gather(transformer(tokens + position)[:, 0])) for tokens in views]
            for views in (neighbours, predicted)
        )
        nearest = [gather(near[:, 0].contiguous()) for near in neighbours]
        predictions = [unit_rows(gather(view)) for view in p]
        swapped = [(v, 1 - v) for v in range(VIEWS)]
        attention = [find_partner(merged[a], merged_predicted[b], ATTENTION_TEMPERATURE) for a, b in swapped]
        contrast = [find_partner(nearest[a], predictions[b], tau) for a, b in swapped]
        everywhere = [[gather(view) for view in views] for views in (target, z)]
        return Terms(torch.stack(attention).mean(), torch.stack(contrast).mean(), _feature(*everywhere))


def _feature(target: Sequence[Tensor], z: Sequence[Tensor]) -> Tensor:
    on, off = [], []
    for a in range(VIEWS):
        correlation = _unit_columns(target[a]).mT @ _unit_columns(z[1 - a])
        diagonal, width = correlation.diagonal(), len(correlation)
        on.append((diagonal - 1).square().mean())
        others = correlation.square().sum() - diagonal.square().sum()
        off.append(others / max(1, width * (width - 1)))
    return 5 * (_root(torch.stack(on).mean()) + _root(torch.stack(off).mean()))


def _root(x: Tensor) -> Tensor:
    """sqrt(x), without gradient at 0."""
    return torch.where(x > 0, x.where(x > 0, 1.0).sqrt(), 0.0)


def _unit_columns(x: Tensor) -> Tensor:
    return x / x.norm(dim=0).clamp_min(1e-12)


def position_code(width: int) -> Tensor:
    """[5, width]: sines and cosines along the channels, each neighbour with its frequency (as the official code)."""
    channel = torch.arange(width, dtype=torch.float32)
    angles = [channel * 10000 ** (-2 * k / 6) for k in range(3)]
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.stack(waves[:NEIGHBOURS])
