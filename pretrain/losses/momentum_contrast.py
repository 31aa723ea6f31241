"""Keys by a slowly moving encoder, and the queue of past keys: what MoCo is made of and PCL builds on."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.distributed import gather_with_gradient, rank, world_size
from pretrain.losses.similarity import unit_rows
from pretrain.losses.whitening import float32_region
from pretrain.method import Encoder, with_first
from pretrain.networks import MomentumCopy
from pretrain.split_batch_norm import split_batch_norms
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.hashing import added
from whitebench.ranges import PositiveInt, Share, Temperature


@strict
class Contrast:
    """The settings of a momentum contrast."""

    temperature: Temperature = 0.2
    """tau: similarities are divided by it before the softmax."""
    queue: PositiveInt = 65536
    """Past keys of all processes that serve as negatives."""
    momentum: Share = 0.999
    """Of the keys' encoder, constant where `final_momentum` is not given."""
    final_momentum: Share | None = added(None)
    """Where the momentum ends, by a cosine (solo-learn)."""
    shuffle_bn: bool = True
    """Let batch norms see keys among other images than those of their queries, whose statistics would otherwise let
    them find each other; makes no difference where one norm sees all (one process and one part)."""
    bn_splits: PositiveInt = added(1)
    """Parts of a process's batch that have batch norms of their own, as on this many GPUs (see `split_batch_norm`). On
    one GPU MoCo's authors take 8 for CIFAR-10: without, queries and keys of a batch share its statistics, and past keys
    do not."""
    export: Literal["online", "momentum"] = added("online")
    """The encoder that is evaluated and transferred: the queries', as in the official code, or the keys'."""


class Pair(NamedTuple):
    """What the two encoders make of two views of the same B images of this process."""

    query: Tensor
    """[B, D], rows of length 1, with gradient."""
    key: Tensor
    """[B, D], rows of length 1, without."""


class Queue(nn.Module):
    """The last `size` embeddings that were pushed, of all processes; random directions until it is full."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.pushed: Tensor
        self.register_buffer("rows", F.normalize(torch.randn(size, width)))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self._count: int | None = None
        self.register_load_state_dict_post_hook(lambda queue, _: queue._forget_count())

    @property
    def count(self) -> int:
        """The value of `pushed`, which is read from an accelerator only once after the start or a resumption."""
        if self._count is None:
            self._count = int(self.pushed)
        return self._count

    @property
    def full(self) -> bool:
        return self.count >= len(self.rows)

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Replaces the oldest embeddings by `rows` [n, D]; of more than `size` rows only the last ones are stored."""
        size = len(self.rows)
        newest = rows[-size:]
        positions = self.pushed + torch.arange(len(rows) - len(newest), len(rows), device=rows.device)
        self.rows[positions % size] = newest.to(self.rows.dtype)
        self.pushed += len(rows)
        if self._count is not None:
            self._count += len(rows)

    def _forget_count(self) -> None:
        self._count = None


class MomentumContrast(nn.Module):
    """An EMA copy of the encoder that encodes keys, and their queue."""

    def __init__(self, encoder: Encoder, config: Contrast) -> None:
        super().__init__()
        self.config = config
        split_batch_norms(encoder, config.bn_splits)
        self.target = MomentumCopy(encoder, config.momentum)
        self.queue = Queue(config.queue, encoder.embedding_dim)

    def forward(self, encoder: Encoder, query_view: Tensor, key_view: Tensor, progress: float = 0.0) -> Pair:
        """Both views [B, 3, S, S] encoded; the copy takes a step towards the encoder first."""
        final = self.config.final_momentum
        self.target.update(self.target.momentum if final is None else self.target.momentum_at(progress, final))
        return self.encoded(encoder, query_view, key_view)

    def encoded(self, encoder: Encoder, query_view: Tensor, key_view: Tensor) -> Pair:
        with torch.no_grad():
            key = unit_rows(self._keys(key_view))
        return Pair(unit_rows(encoder(query_view).z), key)

    def encoders(self, encoder: Encoder) -> dict[str, Encoder]:
        """For `Method.encoders` of a method whose queries `encoder` makes."""
        return with_first(self.config.export, {"online": encoder, "momentum": self.target.network})

    def loss(self, pair: Pair, queue: Queue | None = None) -> Tensor:
        """InfoNCE of this process's pairs against the queue, which then takes up the keys of all processes."""
        queue = self.queue if queue is None else queue
        # The queue is copied: pushing changes it before the backward pass needs what the loss has seen.
        loss = info_nce(pair.query, pair.key, queue.rows.clone(), self.config.temperature)
        queue.push(gather_with_gradient(pair.key))
        return loss

    def _keys(self, view: Tensor) -> Tensor:
        """[B, D]. Shuffled, the batch norms see each key among other images than those of its query."""
        processes = world_size()
        if not self.config.shuffle_bn or processes * self.config.bn_splits == 1:
            z: Tensor = self.target(view).z
            return z
        views = gather_with_gradient(view)
        generator = torch.Generator().manual_seed(self.queue.count)  # the same on every process
        order = torch.randperm(len(views), generator=generator).to(view.device, non_blocking=True)
        share = views[order.chunk(processes)[rank()]]
        shuffled = gather_with_gradient(self.target(share).z)
        return shuffled[order.argsort()].chunk(processes)[rank()]


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each query's own key among it and the negatives, by inner product over temperature.

    Args:
        query, key: [B, D]; gradients flow to both.
        negatives: [K, D], shared by all queries.
    Returns:
        Scalar, the mean over queries, in float32 or wider.
    """
    with float32_region(query):
        positive = (query * key).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, query @ negatives.to(query.dtype).mT], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))


def check_contrast(name: str, config: Contrast, batch: int, views: int) -> None:
    """Raises `UserError` where the settings of a method `name` with a momentum contrast cannot work."""
    if views != 2:
        raise UserError(f"{name}: takes 2 views, one for the query and one for the key, not {views} (data.views)")
    if batch % config.bn_splits or batch // config.bn_splits < 2:
        raise UserError(
            f"{name}: a process's batch of {batch} images does not fall into {config.bn_splits} equal parts of 2 or "
            "more (method.bn_splits)"
        )
