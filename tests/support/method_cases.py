"""Every method and every loss as the tests of what holds for all of them build it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.evaluate.online import evaluating
from pretrain.losses.momentum_contrast import info_nce
from pretrain.losses.prediction import prediction_loss
from pretrain.losses.similarity import unit_rows
from pretrain.losses.sliced import random_directions
from pretrain.method import Method, find_method
from pretrain.methods.barlow_twins import barlow_twins_loss
from pretrain.methods.corinfomax import corinfomax_loss, initial_state
from pretrain.methods.cwrgp import cwrgp_loss
from pretrain.methods.dcl import dcl_loss
from pretrain.methods.deepcluster import deepcluster_loss
from pretrain.methods.dino import dino_loss
from pretrain.methods.emp_ssl import emp_ssl_loss
from pretrain.methods.frossl import frossl_loss
from pretrain.methods.intl import intl_ema_loss, intl_loss
from pretrain.methods.ivne import ivne_loss
from pretrain.methods.lejepa import bcs_loss, lejepa_loss
from pretrain.methods.matrix_ssl import matrix_ssl_loss
from pretrain.methods.mec import mec_loss
from pretrain.methods.mmcr import mmcr_loss
from pretrain.methods.moco_v3 import moco_v3_loss
from pretrain.methods.nnclr import nnclr_loss
from pretrain.methods.pauc import prototype_terms
from pretrain.methods.resa import resa_loss
from pretrain.methods.ressl import ressl_loss
from pretrain.methods.shuffled_dbn import shuffled_dbn_loss
from pretrain.methods.simclr import simclr_loss
from pretrain.methods.simdino import simdino_loss
from pretrain.methods.spectral import spectral_loss
from pretrain.methods.supcon import supcon_loss
from pretrain.methods.swav import sinkhorn, swav_loss
from pretrain.methods.tico import tico_loss
from pretrain.methods.tregs import tregs_loss
from pretrain.methods.vibcreg import vibcreg_loss
from pretrain.methods.vicreg import vicreg_loss
from pretrain.methods.visreg import visreg_loss
from pretrain.methods.wmse import wmse_loss
from pretrain.methods.zero_cl import zero_cl_loss
from tests.support.tiny_encoder import batch_of, tiny_encoder
from whitebench.config import validated


@dataclass(frozen=True)
class Case:
    """A method on the tiny encoder (embeddings of `width` channels)."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    images: int = 16
    views: int = 2
    projector: bool = True
    width: int = 48

    @property
    def id(self) -> str:
        return self.label or self.name

    def build(self, dtype: torch.dtype = torch.float64) -> Method[Any]:
        method = build(self.name, self.options, projector=self.projector, embedding_dim=self.width, dtype=dtype)
        method.prepare_epoch(0, lambda encoder: embedded(encoder, self.batch(dtype).views[0]))
        return method

    def batch(self, dtype: torch.dtype = torch.float64) -> Batch:
        return batch_of(self.images, self.views, dtype)


CASES = [
    Case("cwrgp", {"groups": 2, "window": 8}),
    Case("intl"),
    Case("intl", {"momentum": 0.99}, "intl-ema"),
    Case("simclr"),
    Case("supervised", {"classes": 4}, projector=False),
    Case("barlow_twins"),
    Case("barlow_twins", {"affine": True}, "barlow-twins-affine"),
    Case("shuffled_dbn", {"groups": 2}, images=32, width=12),
    Case("spectral", {"trace_loss": True}),
    Case("spectral", {"transform": "none", "gather": False}, "attraction", views=3),
    Case("vicreg"),
    Case("wmse", {"window": 32}, images=64, width=12),
    Case("zero_cl"),
    Case("moco", {"queue": 40}),
    Case("moco", {"queue": 40, "bn_splits": 2}, "moco-split"),
    Case("moco", {"queue": 40, "symmetric": True, "final_momentum": 1.0}, "moco-symmetric"),
    Case("byol", {"predictor": 20}),
    Case("simsiam", {"predictor": 20}),
    Case("swav", {"prototypes": 10, "frozen_iterations": 0}, views=4),
    Case("dino", {"outputs": 30}, views=4),
    Case("pcl", {"queue": 40, "clusters": (3, 4)}),
    Case("pauc", {"queue": 40, "clusters": (3, 4)}),
    Case("cwrgp", {"window": 8, "transform": "batch_norm", "aligned": True, "stop_first": True}, "cwrgp-arms"),
    Case("cwrgp", {"groups": 2, "window": 8, "transform": "zca_iterated"}, "cwrgp-iterated"),
    Case("lejepa", {"slices": 20}, views=4),
    Case("lejepa", {"slices": 20, "flatten": True, "convex": False, "centre": "global"}, "lejepa-flat", views=3),
    Case(
        "lejepa",
        {"slices": 20, "points": 10, "whole_line": True, "scaled": False, "convex": False, "centre": "pairs"},
        "lejepa-bcs",
    ),
    Case("visreg", {"slices": 20}, views=3),
    Case("resa", {"predictor": 20}, views=3),
    Case("resa", {"predictor": 0}, "resa-plain"),
    Case("corinfomax", width=12),
    Case("mmcr", views=3),
    Case("mmcr", {"momentum": None, "local_weight": 0.1}, "mmcr-plain"),
    Case("mec", {"predictor": 20}),
    Case("matrix_ssl", {"predictor": 20}),
    Case("frossl", views=3),
    Case("frossl", {"form": "two-view"}, "frossl-two-view"),
    Case("tico"),
    Case("tico", {"attached": True}, "tico-attached"),
    Case("vibcreg"),
    Case("tregs"),
    Case("simdino", views=4),
    Case("simdino", {"momentum": None, "smooth": False}, "simdino-pairs"),
    Case("emp_ssl", views=4),
    Case("ivne", views=3),
    Case("nnclr", {"queue": 40, "predictor": 20}),
    Case("moco_v3", {"predictor": 20}),
    Case("moco_v3", {"predictor": 20, "predictor_norm": True, "temperature": 0.2}, "moco-v3-norm"),
    Case("deepcluster", {"clusters": 3}, views=3),
    Case("ressl", {"queue": 40}),
    Case("supcon", views=3),
    Case("supcon", {"inside": True, "base_temperature": None}, "supcon-inside"),
    Case("all4one", {"queue": 40, "predictor": 20}),
    Case("dcl"),
    Case("dcl", {"sigma": 0.5}, "dclw"),
]
"""All methods that train, in their variants."""

OTHERS = torch.randn(20, 96, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
"""Embeddings of other images."""
SAME = torch.zeros(16, dtype=torch.int64)
"""Labels: all images are of one class."""

LOSSES: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "cwrgp": lambda views: cwrgp_loss(views, 2, permutations=orders(views)),
    "intl": intl_loss,
    "intl-batch": lambda views: intl_loss(views, axis="batch"),
    "intl-ema": lambda views: intl_ema_loss(views[1:], views[0]),
    "simclr": lambda views: simclr_loss(views, 0.2),
    "barlow-twins": barlow_twins_loss,
    "shuffled-dbn": lambda views: shuffled_dbn_loss(narrow(views), 2, permutations=orders(narrow(views))),
    "spectral": lambda views: spectral_loss(views, "power", exponent=0.5, groups=2),
    "attraction": lambda views: spectral_loss(views, "none"),
    "attraction-mse": lambda views: spectral_loss(views, "none", normalize=False),
    "vicreg": vicreg_loss,
    "wmse": lambda views: wmse_loss(narrow(views)),
    "zero-cl": zero_cl_loss,
    "moco": lambda views: info_nce(unit_rows(views[0]), unit_rows(views[1]), unit_rows(OTHERS), 0.2),
    "prediction": lambda views: prediction_loss(views, [view.roll(1, dims=1) for view in views]),
    "swav": lambda views: swav_loss([unit_rows(view) for view in views], assignments(views)),
    "dino": lambda views: dino_loss(views, [view / 4 for view in views[:2]], OTHERS[0], 1.0, 1.0),
    "cwrgp-stop": lambda views: cwrgp_loss(views, 1, random_groups=False, stop_first=True),
    "lejepa": lambda views: lejepa_loss(views, directions(views), 0.1),
    "lejepa-bcs": lambda views: bcs_loss(views, directions(views)),
    "visreg": lambda views: visreg_loss(views, directions(views)),
    "resa": lambda views: resa_loss(views, [v.roll(1, dims=1) for v in views[:2]], views[0], views[1]),
    "corinfomax": lambda views: corinfomax_loss(narrow(views)[:2], initial_state(6), 1.0).loss,
    "mmcr": lambda views: mmcr_loss(views, local_weight=0.1),
    "mec": lambda views: mec_loss(views, [view.roll(1, dims=1) for view in views], 10.0),
    "matrix-ssl": lambda views: matrix_ssl_loss(views, [view.roll(1, dims=1) for view in views]),
    "frossl": frossl_loss,
    "frossl-two-view": lambda views: frossl_loss(views[:2], form="two-view"),
    "tico": lambda views: tico_loss(views[0], views[1], OTHERS.T @ OTHERS).loss,
    "vibcreg": vibcreg_loss,
    "tregs": tregs_loss,
    "simdino": lambda views: simdino_loss(views, [view.roll(1, dims=1) for view in views[:2]]),
    "emp-ssl": emp_ssl_loss,
    "ivne": ivne_loss,
    "nnclr": lambda views: nnclr_loss([view.roll(1, dims=1) for view in views], views, unit_rows(OTHERS)),
    "moco-v3": lambda views: moco_v3_loss(views, [view.roll(1, dims=1) for view in views]),
    "deepcluster": lambda views: deepcluster_loss(
        views, unit_rows(OTHERS)[None], torch.zeros(1, 16, dtype=torch.int64)
    ),
    "ressl": lambda views: ressl_loss(views[0], views[1], unit_rows(OTHERS), 0.2, 0.2),
    "supcon": lambda views: supcon_loss(views, SAME),
    "supcon-inside": lambda views: supcon_loss(views, SAME, inside=True),
    "dcl": lambda views: dcl_loss(views[:2]),
    "dclw": lambda views: dcl_loss(views[:2], sigma=0.5),
    "pauc": lambda views: torch.stack([*prototype_terms(unit_rows(views[0]), unit_rows(views[1]), SAME)]).sum(),
}
"""All losses, as functions of V views [16, 96] in float64."""

SCALED: set[str] = {
    *("attraction-mse", "barlow-twins", "dino", "vicreg", "vibcreg"),
    *("lejepa", "lejepa-bcs", "visreg", "tregs"),
}
"""Those losses that change with the scale of the embeddings."""

REFUSED: list[tuple[str, dict[str, Any], int, int, str]] = [
    ("cwrgp", {"groups": 2, "window": 8}, 16, 1, "at least 2 views"),
    ("cwrgp", {"groups": 2, "window": 6}, 16, 2, "16 images of a process cannot be divided into windows of 6"),
    ("cwrgp", {"groups": 5, "window": 8}, 16, 2, "48 channels cannot be cut into 5 groups"),
    ("cwrgp", {"groups": 0, "window": 8}, 16, 2, "groups"),
    ("cwrgp", {"groups": 2, "window": 24}, 24, 2, r"N = 24.*48 / 2 = 24"),
    ("cwrgp", {"groups": 2, "window": None}, 32, 2, r"N = 32.*48 / 2 = 24"),
    ("cwrgp", {"groups": 2, "window": 8, "repeats": 0}, 16, 2, "repeats"),
    ("intl", {}, 16, 1, "at least 2 views"),
    ("intl", {}, 8, 2, r"not positive for n = 8"),
    ("intl", {"iterations": 0}, 16, 2, "iterations"),
    ("intl", {"momentum": 1.5}, 16, 2, "momentum"),
    ("simclr", {}, 16, 1, "at least 2 views"),
    ("simclr", {"temperature": 0.0}, 16, 2, "temperature"),
    ("barlow_twins", {}, 16, 1, "at least 2 views"),
    ("barlow_twins", {}, 1, 2, "at least 2 images"),
    ("barlow_twins", {"trade_off": -1.0}, 16, 2, "trade_off"),
    ("shuffled_dbn", {"groups": 4}, 16, 1, "at least 2 views"),
    ("shuffled_dbn", {"groups": 5}, 16, 2, "48 channels cannot be cut into 5 groups"),
    ("shuffled_dbn", {"groups": 3}, 16, 2, r"N > D / groups.*N = 16.*48 / 3 = 16"),
    ("spectral", {}, 16, 1, "at least 2 views"),
    ("spectral", {"transform": "zca"}, 48, 2, r"N < D / groups.*N = 48.*48 / 1 = 48"),
    ("spectral", {"transform": "zca", "axis": "batch"}, 48, 2, r"N > D / groups.*N = 48.*48 / 1 = 48"),
    ("spectral", {"iterations": 0}, 16, 2, "iterations"),
    ("spectral", {"trace_loss": True}, 8, 2, r"not positive for n = 8"),
    ("spectral", {"trace_loss": True, "transform": "none"}, 16, 2, "transform"),
    ("spectral", {"trace_loss": True, "groups": 2}, 16, 2, "groups"),
    ("vicreg", {}, 16, 1, "at least 2 views"),
    ("vicreg", {}, 1, 2, "at least 2 images"),
    ("vicreg", {"variance_weight": -1.0}, 16, 2, "variance_weight"),
    ("wmse", {"window": 64}, 64, 1, "at least 2 views"),
    ("wmse", {"window": 48}, 96, 2, r"N > D / groups.*N = 48.*48 / 1 = 48"),
    ("wmse", {"window": 64}, 96, 2, "96 images of a process cannot be divided into windows of 64"),
    ("wmse", {"window": 64, "repeats": 0}, 64, 2, "repeats"),
    ("wmse", {"window": 64, "eps": 1.0}, 64, 2, "eps"),
    ("zero_cl", {}, 16, 1, "at least 2 views"),
    ("zero_cl", {}, 1, 2, "at least 2 images"),
    ("zero_cl", {"instance_weight": 0.0, "feature_weight": 0.0}, 16, 2, "weights"),
    ("zero_cl", {"shrinkage": 0.0, "ridge": 0.0}, 16, 2, "shrinkage"),
    ("moco", {"queue": 8}, 16, 3, "takes 2 views"),
    ("moco", {"queue": 0}, 16, 2, "queue"),
    ("moco", {"queue": 8, "momentum": 1.5}, 16, 2, "momentum"),
    ("moco", {"queue": 8, "temperature": 0.0}, 16, 2, "temperature"),
    ("byol", {}, 16, 1, "at least 2 views"),
    ("byol", {"momentum": -0.1}, 16, 2, "momentum"),
    ("simsiam", {}, 16, 1, "at least 2 views"),
    ("swav", {}, 16, 1, "at least 2 views"),
    ("swav", {"iterations": 0}, 16, 2, "iterations"),
    ("swav", {"epsilon": 0.0}, 16, 2, "epsilon"),
    ("swav", {"queue": -1}, 16, 2, "queue"),
    ("dino", {}, 16, 1, "at least 2 views"),
    ("dino", {"outputs": 9, "teacher_temperature": 0.0}, 16, 2, "teacher_temperature"),
    ("dino", {"outputs": 9, "centre_momentum": 2.0}, 16, 2, "centre_momentum"),
    ("pcl", {"queue": 8, "clusters": ()}, 16, 2, "clusters"),
    ("pcl", {"queue": 8, "warmup_epochs": -1}, 16, 2, "warmup_epochs"),
    ("pauc", {"queue": 8, "uniformity_t": 0.0}, 16, 2, "uniformity_t"),
    ("pauc", {"queue": 8, "alignment_weight": -1.0}, 16, 2, "alignment_weight"),
    ("supervised", {"classes": 1}, 16, 1, "classes"),
    ("simclr", {"temperature": 1e-30}, 16, 2, "temperature: input should be greater than or equal to 0.001"),
    ("vicreg", {"variance_weight": float("nan")}, 16, 2, "variance_weight: input should be a finite number"),
    ("cwrgp", {"window": True}, 16, 2, "window: true and false are not numbers, not true"),
    ("supervised", {"classes": 4, "label_smoothing": 1.0}, 16, 1, "label_smoothing"),
    ("lejepa", {"weight": 1.5}, 16, 2, "weight is at most 1"),
    ("lejepa", {"points": 1}, 16, 2, "points"),
    ("lejepa", {"slices": 0}, 16, 2, "slices"),
    ("visreg", {}, 1, 2, "a variance needs at least 2 images"),
    ("visreg", {"weight": 1.5}, 16, 2, "weight"),
    ("resa", {}, 16, 1, "at least 2 views"),
    ("corinfomax", {}, 16, 3, "at most 2 views"),
    ("corinfomax", {"memory": 1.5}, 16, 2, "memory"),
    ("mmcr", {"momentum": 1.5}, 16, 2, "momentum"),
    ("mec", {}, 16, 3, "at most 2 views"),
    ("mec", {"distortion": 0.0}, 16, 2, "distortion"),
    ("matrix_ssl", {"order": 0}, 16, 2, "order"),
    ("frossl", {"form": "two-view"}, 16, 3, "two-view"),
    ("frossl", {}, 1, 2, "at least 2 images"),
    ("tico", {"beta": 1.1}, 16, 2, "beta"),
    ("vibcreg", {}, 1, 2, "at least 2 images"),
    ("tregs", {}, 1, 2, "at least 2 images"),
    ("simdino", {"eps": 0.0}, 16, 2, "eps"),
    ("emp_ssl", {}, 16, 1, "at least 2 views"),
    ("ivne", {}, 1, 2, "at least 2 images"),
    ("nnclr", {"queue": 0}, 16, 2, "queue"),
    ("moco_v3", {"temperature": 0.0}, 16, 2, "temperature"),
    ("deepcluster", {"clusters": 1}, 16, 2, "clusters"),
    ("ressl", {"queue": 8, "key_temperature": 0.0}, 16, 2, "key_temperature"),
    ("supcon", {"temperature": 0.0}, 16, 2, "temperature"),
    ("all4one", {"queue": 4}, 16, 2, "5 neighbours"),
    ("dcl", {}, 1, 2, "at least 2 images"),
    ("dcl", {"sigma": 0.0}, 16, 2, "sigma"),
]
"""Method, options, images, views that cannot work together, and what the error says (a regular expression)."""


def build(name: str, options: dict[str, Any], projector: bool = True, **encoder: Any) -> Method[Any]:
    """The method `name` on the tiny encoder, in its dtype."""
    kind = find_method(name)
    built = tiny_encoder(**encoder)
    if not projector:
        built.projector, built.embedding_dim = nn.Identity(), built.feature_dim
    return kind(built, validated(kind.Config, options, where="method")).to(next(built.parameters()).dtype)


def embedded(encoder: nn.Module, view: Tensor) -> Tensor:
    """As the training loop gives them to `prepare_epoch`, of one view of all images."""
    with torch.no_grad(), evaluating(encoder):
        z: Tensor = encoder(view).z
        return z.float()


def directions(views: list[Tensor]) -> Tensor:
    """Twelve fixed slices."""
    return random_directions(views[0].shape[1], 12, torch.Generator().manual_seed(3))


def embeddings(n: int, d: int, views: int = 2, seed: int = 0) -> list[Tensor]:
    """Noisy copies of the same random embeddings: float64 [n, d] each."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = [torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(views)]
    return [clean + 0.5 * one for one in noise]


def orders(views: list[Tensor]) -> list[Tensor]:
    """A fixed permutation of the channels for each view."""
    channels = views[0].shape[1]
    return [torch.randperm(channels, generator=torch.Generator().manual_seed(v)) for v in range(len(views))]


def narrow(views: list[Tensor]) -> list[Tensor]:
    """Fewer channels than images, for the losses that whiten over the batch."""
    return [view[:, :6] for view in views]


def assignments(views: list[Tensor]) -> list[Tensor]:
    """Of the first two views to as many prototypes as they have channels."""
    return [sinkhorn(unit_rows(view)) for view in views[:2]]
