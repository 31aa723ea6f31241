"""The methods as `test_distributed` trains them on two processes, and what they are expected to equal."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.evaluate.online import evaluating
from pretrain.method import Encoder, Method, find_method
from pretrain.methods.cwrgp import cwrgp_loss
from pretrain.methods.shuffled_dbn import shuffled_dbn_loss
from pretrain.methods.spectral import spectral_loss
from pretrain.methods.wmse import wmse_loss
from pretrain.networks import embed_jointly
from tests.support.tiny_encoder import batch_of, tiny_encoder, tiny_vit

BATCH = 24

COUPLED: dict[str, tuple[str, dict[str, Any]]] = {
    "intl": ("intl", {}),
    "intl-batch-axis": ("intl", {"axis": "batch"}),
    "intl-ema": ("intl", {"momentum": 0.9}),
    "simclr": ("simclr", {"temperature": 0.2}),
    "supervised": ("supervised", {"classes": 4}),
    "barlow-twins": ("barlow_twins", {}),
    "barlow-twins-affine": ("barlow_twins", {"affine": True}),
    "spectral": ("spectral", {"transform": "zca", "eps": 0.1, "groups": 2}),
    "spectral-trace-batch-axis": ("spectral", {"trace_loss": True, "axis": "batch"}),
    "attraction": ("spectral", {"transform": "none"}),
    "vicreg": ("vicreg", {}),
    "zero-cl": ("zero_cl", {}),
    "moco": ("moco", {"queue": 60}),
    "moco-symmetric": ("moco", {"queue": 60, "symmetric": True, "momentum": 0.9, "final_momentum": 0.99}),
    "byol": ("byol", {"predictor": 20}),
    "simsiam": ("simsiam", {"predictor": 20}),
    "swav": ("swav", {"prototypes": 10, "frozen_iterations": 0, "queue": 40, "queue_epoch": 0}),
    "dino": ("dino", {"outputs": 30}),
    "pcl": ("pcl", {"queue": 60, "clusters": (3, 5), "warmup_epochs": 0}),
    "pauc": ("pauc", {"queue": 60, "clusters": (3, 5), "warmup_epochs": 0}),
    "lejepa": ("lejepa", {"slices": 20}),
    "lejepa-flat": ("lejepa", {"slices": 20, "flatten": True, "convex": False, "centre": "global"}),
    "lejepa-bcs": ("lejepa", {"slices": 20, "whole_line": True, "scaled": False, "centre": "pairs"}),
    "visreg": ("visreg", {"slices": 20, "slices_per_process": False}),
    "resa": ("resa", {"predictor": 20}),
    "resa-plain": ("resa", {"predictor": 0}),
    "corinfomax": ("corinfomax", {"memory": 0.5}),
    "mmcr": ("mmcr", {"local_weight": 0.1}),
    "mmcr-plain": ("mmcr", {"momentum": None}),
    "mec": ("mec", {"predictor": 20}),
    "matrix-ssl": ("matrix_ssl", {"predictor": 20}),
    "frossl": ("frossl", {}),
    "frossl-two-view": ("frossl", {"form": "two-view"}),
    "tico": ("tico", {}),
    "tico-attached": ("tico", {"attached": True}),
    "vibcreg": ("vibcreg", {}),
    "tregs": ("tregs", {}),
    "simdino": ("simdino", {}),
    "simdino-pairs": ("simdino", {"momentum": None, "smooth": False}),
    "emp-ssl": ("emp_ssl", {}),
    "ivne": ("ivne", {}),
    "nnclr": ("nnclr", {"queue": 40, "predictor": 20}),
    "moco-v3": ("moco_v3", {"predictor": 20}),
    "moco-v3-norm": ("moco_v3", {"predictor": 20, "predictor_norm": True}),
    "deepcluster": ("deepcluster", {"clusters": 4}),
    "ressl": ("ressl", {"queue": 60}),
    "supcon": ("supcon", {}),
    "supcon-inside": ("supcon", {"inside": True}),
    "all4one": ("all4one", {"queue": 40, "predictor": 20, "dropout": 0.0}),
    "dcl": ("dcl", {}),
    "dclw": ("dcl", {"sigma": 0.5}),
}
"""Method and options that train on two processes as on one with the joint batch."""

TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit-mae": ("mae", {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 3, "mask_ratio": 0.5}),
    "vit-dino": ("dino", {"outputs": 30}),
    "vit-intl": ("intl", {}),
    "vit-moco-v3": ("moco_v3", {"predictor": 20}),
}
"""The same on a vision transformer, whose norms are of single tokens, with views of two sizes where they may differ."""

OWN_IMAGES = (
    {"vit-mae", "vit-dino", "vit-moco-v3"}
    | {"supervised", "moco", "moco-symmetric", "byol", "simsiam", "swav", "dino", "pcl", "pauc"}
    | {
        *("lejepa", "lejepa-flat", "lejepa-bcs", "visreg", "resa", "resa-plain"),
        *("moco-v3", "moco-v3-norm", "deepcluster", "ressl"),
    }
)
"""Of these the loss on a process is of its own images; the others return the joint batch's loss on every process."""


class PerProcess(NamedTuple):
    """A method whose loss is defined on a process's own images: two processes train on the mean of two losses."""

    name: str
    options: dict[str, Any]
    loss: Callable[[Sequence[Tensor]], Tensor]
    """Of a process's embeddings, with torch's generator as the process had it."""
    width: int = 48
    embed: Callable[[Encoder, Sequence[Tensor]], list[Tensor]] = embed_jointly


def view_by_view(encoder: Encoder, views: Sequence[Tensor]) -> list[Tensor]:
    return [encoder(view).z for view in views]


CWRGP: dict[str, Any] = {"groups": 2, "window": 6, "repeats": 2}
ARMS: dict[str, Any] = {"groups": 2, "window": 6, "transform": "pca", "aligned": True, "stop_first": True}
PER_PROCESS = {
    "cwrgp": PerProcess("cwrgp", CWRGP, lambda views: cwrgp_loss(views, **CWRGP)),
    "cwrgp-arms": PerProcess("cwrgp", ARMS, lambda views: cwrgp_loss(views, **ARMS)),
    "wmse": PerProcess("wmse", {"window": 6, "repeats": 2}, lambda views: wmse_loss(views, 6, 2), width=4),
    "shuffled-dbn": PerProcess(
        "shuffled_dbn", {"groups": 2}, lambda views: shuffled_dbn_loss(views, 2), width=12, embed=view_by_view
    ),
    "spectral-own-images": PerProcess(
        "spectral", {"gather": False}, lambda views: spectral_loss(views), embed=view_by_view
    ),
}
"""Why one process with the joint batch is something else: the whitening matrices are those of a process's images (as in
the official codes of CW-RGP and W-MSE), and every process draws windows and groups of its own."""

NOT_TRAINED = {"random"}


def build_case(name: str) -> Method[Any]:
    """Of `COUPLED` or `TRANSFORMERS`, in float64."""
    if name in COUPLED:
        return build(*COUPLED[name])
    method, options = TRANSFORMERS[name]
    kind = find_method(method)
    return kind(tiny_vit(projector=method != "mae"), kind.Config(**options)).double()


def batch_case(name: str) -> Batch:
    """The joint batch that a case is trained on: a transformer's views are multiples of its patch, 4 pixels."""
    batch = batch_of(BATCH)
    if name not in TRANSFORMERS:
        return batch
    whole = batch.views[0]
    views = [whole, whole.flip(3).contiguous(), *([whole[..., 2:6, 2:6].contiguous()] if name == "vit-dino" else [])]
    return Batch(views, batch.index, batch.label)


def build(name: str, options: dict[str, Any], width: int = 48) -> Method[Any]:
    """The method on the tiny encoder, in float64."""
    kind, encoder = find_method(name), tiny_encoder(width)
    if name == "supervised":
        encoder.projector = nn.Identity()
    return kind(encoder, kind.Config(**options)).double()


def train(model: Callable[[Batch], Any], method: Method[Any], batch: Batch, steps: int = 2) -> dict[str, Any]:
    """A few steps of SGD: losses, the first step's gradients, and the state they end in."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    method.prepare_epoch(0, embedded)
    for step in range(steps):
        method.step, method.progress, method.shared_seed = step, step / steps, step
        optimizer.zero_grad()
        outcome = model(batch)
        outcome.loss.backward()
        gradients = gradients or {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        method.after_update()
        losses.append(outcome.loss.item())
    return {"losses": losses, "gradients": gradients, "state": method.state_dict()}


def embedded(encoder: nn.Module) -> Tensor:
    """The embeddings of all images of the joint batch, as the training loop gives them to `prepare_epoch`."""
    with torch.no_grad(), evaluating(encoder):
        z: Tensor = encoder(batch_of(BATCH).views[0]).z
        return z.float()
