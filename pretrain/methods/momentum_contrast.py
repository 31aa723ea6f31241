"""Keys by a slowly moving encoder, and the queue of past keys: what MoCo is made of and PCL builds on."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.distributed import gather_with_gradient, rank, world_size
from pretrain.methods import Encoder
from pretrain.methods.similarity import unit_rows
from pretrain.networks import MomentumCopy
from pretrain.whitening import float32_region
from results.command import UserError


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

    @property
    def full(self) -> bool:
        return int(self.pushed) >= len(self.rows)

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Replaces the oldest embeddings by `rows` [n, D]; of more than `size` rows the last ones stay."""
        size = len(self.rows)
        kept = rows[-size:]
        places = self.pushed + torch.arange(len(rows) - len(kept), len(rows), device=rows.device)
        self.rows[places % size] = kept.to(self.rows.dtype)
        self.pushed += len(rows)


class MomentumContrast(nn.Module):
    """An EMA copy of the encoder that encodes keys, and their queue."""

    def __init__(self, encoder: Encoder, momentum: float, queue: int, shuffle_bn: bool) -> None:
        super().__init__()
        self.target = MomentumCopy(encoder, momentum)
        self.queue = Queue(queue, encoder.embedding_dim)
        self.shuffle_bn = shuffle_bn

    def forward(self, encoder: Encoder, query_view: Tensor, key_view: Tensor) -> Pair:
        """Both views [B, 3, S, S] encoded; the copy takes a step towards the encoder first."""
        self.target.update(self.target.momentum)
        with torch.no_grad():
            key = unit_rows(self._keys(key_view))
        return Pair(unit_rows(encoder(query_view).z), key)

    def loss(self, pair: Pair, temperature: float) -> Tensor:
        """InfoNCE of this process's pairs against the queue, which then takes up the keys of all processes."""
        # The queue is copied: pushing changes it before the backward pass needs what the loss has seen.
        loss = info_nce(pair.query, pair.key, self.queue.rows.clone(), temperature)
        self.queue.push(gather_with_gradient(pair.key))
        return loss

    def _keys(self, view: Tensor) -> Tensor:
        """[B, D]. Shuffled, a process's batch norms see other images than those of its queries."""
        processes = world_size()
        if not self.shuffle_bn or processes == 1:
            keys: Tensor = self.target(view).z
            return keys
        views = gather_with_gradient(view)
        generator = torch.Generator().manual_seed(int(self.queue.pushed))  # the same on every process
        order = torch.randperm(len(views), generator=generator).to(view.device)
        own = views[order.chunk(processes)[rank()]]
        shuffled = gather_with_gradient(self.target(own).z)
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
        own = (query * key).sum(dim=1, keepdim=True)
        logits = torch.cat([own, query @ negatives.to(query.dtype).mT], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))


def check_contrast(name: str, views: int, queue: int, momentum: float, temperature: float) -> None:
    """Raises `UserError` where the settings of a method `name` with a momentum contrast cannot work."""
    if views != 2:
        raise UserError(f"{name}: takes 2 views, one for the query and one for the key, not {views} (data.views)")
    if queue < 1:
        raise UserError(f"{name}: a queue of {queue} keys holds no negatives (method.queue)")
    if not 0 <= momentum <= 1:
        raise UserError(f"{name}: momentum lies between 0 and 1, not {momentum} (method.momentum)")
    if temperature <= 0:
        raise UserError(f"{name}: temperature is above 0, not {temperature} (method.temperature)")
