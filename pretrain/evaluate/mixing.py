"""Mixup and cutmix of a joint batch, by torchvision's transforms, the same on one process and on several.

torchvision mixes each image of a batch with the one before it, the first with the last. So a process needs, beside its
own part of the joint batch, only the last image of the part before. Factor and box are drawn alike everywhere.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from pretrain.distributed import rank, sum_over_ranks, world_size
from pretrain.evaluate.protocol_kinds import Finetune
from pretrain.repeatable import derive_seed


class Mixing:
    """Draws mixup or cutmix for each batch, as the protocol says; half each where it has both."""

    def __init__(self, protocol: Finetune, classes: int, seed: int) -> None:
        self.classes, self.seed = classes, seed
        alphas = ((v2.MixUp, protocol.mixup), (v2.CutMix, protocol.cutmix))
        self.transforms = [kind(alpha=alpha, num_classes=classes) for kind, alpha in alphas if alpha]

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Images float [n, 3, S, S] and classes int64 [n] -> mixed images, and shares of classes [n, C].

        Without any mixing, both as they are.
        """
        if not self.transforms:
            return images, labels
        images, labels = (torch.cat([_row_before(x), x]) for x in (images, labels))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, "mixing", step))  # the only one it draws from
            transform = self.transforms[int(torch.randint(len(self.transforms), ()))]
            if len(images) > 1:
                images, labels = transform(images, labels)
            else:  # this process has no image of the batch
                labels = F.one_hot(labels, self.classes).to(images.dtype)
        return images[1:], labels[1:]


def _row_before(x: Tensor) -> Tensor:
    """The last row of the nearest process before that has rows, after the first rank the last one: [1, ...]."""
    if world_size() == 1:
        return x[-1:]
    counts = torch.zeros(world_size(), dtype=torch.int64, device=x.device)
    counts[rank()] = len(x)
    with_rows = [number for number, count in enumerate(sum_over_ranks(counts).tolist()) if count]
    last = x[-1:].contiguous() if len(x) else x.new_zeros((1, *x.shape[1:]))
    rows = [torch.empty_like(last) for _ in range(world_size())]
    dist.all_gather(rows, last)
    return rows[max((number for number in with_rows if number < rank()), default=with_rows[-1])]
