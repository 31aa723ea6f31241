"""Cross-entropy of finding an image's other view among those of all images: shared by contrastive methods."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.losses.similarity import unit_rows


def find_partner(rows: Tensor, candidates: Tensor, temperature: float, first: int = 0) -> Tensor:
    """Mean cross-entropy of softmax(rows . candidates / temperature), row i's partner being candidate first + i.

    Args:
        rows: [n, D]. candidates: [N, D], N >= first + n; both of length 1 (see `unit_rows`), float32 or wider.
    """
    partner = torch.arange(first, first + len(rows), device=rows.device)
    return F.cross_entropy(rows @ candidates.mT / temperature, partner)


@torch.no_grad()
def nearest_rows(rows: Tensor, queue: Tensor, count: int = 1) -> Tensor:
    """[n, count, D]: of each row [n, D] the rows of the queue [K, D] with the largest inner products, descending."""
    unit = unit_rows(rows)
    queue = queue.to(unit.dtype)
    return queue[(unit @ queue.mT).topk(count, dim=1).indices]
