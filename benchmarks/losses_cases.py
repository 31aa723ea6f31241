"""What `losses.py` measures: losses of the suite, their straightforward forms, and their floors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from benchmarks import losses_plain as plain
from benchmarks.losses_floors import Floor, eigen, factor, inverse, product, solve, sort, symmetric
from pretrain.losses.sliced import random_directions
from pretrain.methods.barlow_twins import barlow_twins_loss
from pretrain.methods.corinfomax import State, corinfomax_loss, initial_state
from pretrain.methods.cwrgp import cwrgp_loss
from pretrain.methods.dcl import dcl_loss
from pretrain.methods.emp_ssl import emp_ssl_loss
from pretrain.methods.frossl import frossl_loss
from pretrain.methods.intl import intl_loss
from pretrain.methods.ivne import ivne_loss
from pretrain.methods.lejepa import lejepa_loss
from pretrain.methods.matrix_ssl import matrix_ssl_loss
from pretrain.methods.mec import mec_loss
from pretrain.methods.mmcr import mmcr_loss
from pretrain.methods.simdino import simdino_loss
from pretrain.methods.tico import tico_loss
from pretrain.methods.tregs import tregs_loss
from pretrain.methods.vibcreg import vibcreg_loss
from pretrain.methods.vicreg import vicreg_loss
from pretrain.methods.visreg import visreg_loss
from pretrain.methods.wmse import wmse_loss

Loss = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Case:
    name: str
    images: int
    channels: int
    suite: Loss
    peer: Loss
    floor: Floor | None = None
    views: int = 2
    heavy: bool = False
    """Whether the peer takes minutes, or gigabytes, on a CPU: measured with --full only."""
    equal: bool = True
    """Whether both are the same function (not of other random draws)."""

    @property
    def title(self) -> str:
        return f"{self.name} N={self.images} D={self.channels}"


def slices(views: list[Tensor], count: int) -> Tensor:
    """Always the same."""
    return random_directions(views[0].shape[1], count, torch.Generator().manual_seed(2)).to(views[0])


@cache
def covariance(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(width, dtype=dtype, device=device) / width


def covariance_for(views: list[Tensor]) -> Tensor:
    return covariance(views[0].shape[1], views[0].dtype, views[0].device)


@cache
def fresh_state(width: int, device: torch.device) -> State:
    return State(*(part.to(device) for part in initial_state(width)))


def detached(views: list[Tensor]) -> list[Tensor]:
    """In place of a teacher's outputs."""
    return [view.detach() for view in views]


def simdino(views: list[Tensor]) -> Tensor:
    return simdino_loss(views, detached(views), smooth=False)


def matrix_ssl(views: list[Tensor]) -> Tensor:
    return matrix_ssl_loss(views, detached(views))


def corinfomax(views: list[Tensor]) -> Tensor:
    return corinfomax_loss(views, fresh_state(views[0].shape[1], views[0].device)).loss


def tico(views: list[Tensor]) -> Tensor:
    return tico_loss(views[0], views[1], covariance_for(views)).loss


def lejepa(k: int, n: int, d: int) -> Case:
    return Case(
        f"LeJEPA K={k}", n, d,
        lambda v: lejepa_loss(v, slices(v, k)), lambda v: plain.plain_lejepa(v, slices(v, k)),
    )  # fmt: skip


def visreg(k: int, n: int, d: int) -> Case:
    floor = Floor("projection, sort, gradient", [product(k, d, n, 2), sort(k, n, 2), product(n, k, d, 2)])
    return Case(
        f"VISReg K={k}", n, d,
        lambda v: visreg_loss(v, slices(v, k)), lambda v: plain.plain_visreg(v, slices(v, k)), floor,
    )  # fmt: skip


def mec(n: int, d: int) -> Case:
    scale, small = n * 64 / d, min(n, d)
    floor = Floor("4 products a direction", [product(small, n + d - small, small, 4), product(small, small, small, 4)])
    return Case("MEC", n, d, lambda v: mec_loss(v, detached(v), scale), lambda v: plain.plain_mec(v, scale), floor)


def nuclear(n: int, d: int) -> Floor:
    """Of one nuclear norm or entropy: a Gram matrix, its eigenvectors, the gradient's two products."""
    small, large = min(n, d), max(n, d)
    parts = [symmetric(small, large, wide=True), eigen(small), product(small, small, small, wide=True)]
    return Floor("Gram matrix, eigenvectors, 2 products", [*parts, product(small, small, large)])


def twice(floor: Floor) -> Floor:
    return Floor(f"{floor.text}, each twice", [*floor.parts, *floor.parts])


def cwrgp(n: int, d: int, groups: int, views: int) -> Case:
    batch, width = views * groups, d // groups
    parts = [
        symmetric(n, width, batch=batch, wide=True),
        eigen(n, batch=batch),
        symmetric(n, n, batch=batch, wide=True),
    ]
    parts += [product(n, n, n, 4, batch=batch), product(n, n, width, 3, batch=batch)]
    parts += [product(n, width, n, batch=batch)]
    return Case(
        f"CW-RGP g={groups} V={views}", n, d,
        lambda v: cwrgp_loss(v, groups, permutations=plain.orders(v)), lambda v: plain.plain_cwrgp(v, groups, n),
        Floor("in float64: Gram matrix, eigenvectors, root; 8 products", parts), views,
    )  # fmt: skip


def intl(n: int, d: int, views: int) -> Case:
    parts = [symmetric(n, d, views), product(n, n, d, 3 * views), product(n, d, n, views)]
    newton = product(n, n, n, 27 * views, wide=True)
    return Case(
        f"INTL V={views}", n, d, intl_loss, lambda v: plain.plain_intl(v, "channel"),
        Floor("5 products, 27 of Newton's iteration", [*parts, newton]), views,
    )  # fmt: skip


def wmse(n: int, d: int, window: int) -> Case:
    batch = 2 * n // window
    parts = [symmetric(d, window, batch=batch, wide=True), factor(d, batch=batch), solve(d, d, wide=True, batch=batch)]
    parts += [product(d, d, window, 3, batch=batch), product(d, window, d, batch=batch)]
    return Case(
        f"W-MSE window {window}", n, d,
        lambda v: wmse_loss(v, window=window), lambda v: plain.plain_wmse(v, window),
        Floor("in float64: Gram matrix, factor, its inverse; 4 products", parts), equal=False,
    )  # fmt: skip


def corinfomax_case(n: int, d: int) -> Case:
    parts = [symmetric(d, n, 2, wide=True)]
    if n < d:
        parts += [factor(d, 2), solve(d, n, 4, wide=True)]
    else:
        parts += [inverse(d, 2, wide=True), product(d, d, n, 2, wide=True)]
    text = "covariance, factor, " + ("2 solves" if n < d else "inverse, 1 product")
    return Case("CorInfoMax", n, d, corinfomax, plain.plain_corinfomax, Floor(f"in float64: {text}", parts))


def tico_case(n: int, d: int) -> Case:
    floor = Floor("covariance, 1 product", [symmetric(d, n), product(n, d, d)])
    return Case("TiCo", n, d, tico, lambda v: plain.plain_tico(v, covariance_for(v)), floor)


def tregs(n: int, d: int) -> Case:
    return Case(
        "T-REGS", n, d, tregs_loss, plain.plain_tregs, Floor("float64 distances", [symmetric(n, d, 2, wide=True)])
    )


def dcl(n: int, d: int) -> Case:
    floor = Floor("similarities of 2N rows, 1 product", [symmetric(2 * n, d), product(2 * n, 2 * n, d)])
    return Case("DCL", n, d, dcl_loss, plain.plain_dcl, floor)


def frossl(n: int, d: int) -> Case:
    return Case("FroSSL", n, d, frossl_loss, plain.plain_frossl, heavy=n * d > 2**22)


def cases() -> Iterator[Case]:
    yield cwrgp(128, 1024, 2, 4)
    yield cwrgp(256, 2048, 2, 2)
    yield intl(256, 8192, 2)
    yield intl(1024, 2048, 2)
    for d in (2048, 8192):
        yield Case(
            "INTL batch axis", 256, d,
            lambda v: intl_loss(v, axis="batch"), lambda v: plain.plain_intl(v, "batch"), heavy=d > 2048,
        )  # fmt: skip
    yield wmse(256, 64, 128)
    yield wmse(1024, 128, 256)
    for n, d in ((256, 8192), (1024, 8192)):
        yield Case("Barlow Twins", n, d, barlow_twins_loss, plain.plain_barlow, heavy=n > 256)
        yield Case("VICReg", n, d, vicreg_loss, plain.plain_vicreg, heavy=n > 256)
        yield Case("VIbCReg", n, d, vibcreg_loss, plain.plain_vibcreg, heavy=n > 256)
        yield frossl(n, d)
    yield Case("VIbCReg", 1024, 2048, vibcreg_loss, plain.plain_vibcreg)
    yield frossl(1024, 2048)
    yield lejepa(1024, 256, 128)
    yield lejepa(4096, 1024, 512)
    yield visreg(4096, 256, 256)
    yield visreg(4096, 1024, 256)
    for n, d in ((256, 8192), (1024, 512), (1024, 2048)):
        yield Case("MMCR", n, d, mmcr_loss, plain.plain_mmcr, nuclear(n, d))
    for n, d in ((256, 2048), (1024, 2048)):
        yield Case("I-VNE+", n, d, ivne_loss, plain.plain_ivne, twice(nuclear(n, d)))
    for n, d in ((256, 2048), (1024, 2048), (256, 8192), (1024, 8192)):
        yield Case("SimDINO", n, d, simdino, plain.plain_simdino, heavy=d > 2048)
        yield Case("EMP-SSL", n, d, emp_ssl_loss, plain.plain_emp_ssl, heavy=d > 2048)
    for n, d in ((256, 2048), (1024, 256), (1024, 2048), (1024, 8192)):
        yield mec(n, d)
    for n, d in ((256, 1024), (1024, 1024), (256, 2048), (1024, 2048)):
        yield Case("Matrix-SSL", n, d, matrix_ssl, plain.plain_matrix_ssl, heavy=(n, d) == (1024, 2048))
    for n, d in ((256, 1024), (1024, 512), (1024, 1024)):
        yield corinfomax_case(n, d)
    for n, d in ((256, 1024), (1024, 2048)):
        yield tico_case(n, d)
    for n, d in ((256, 1024), (1024, 1024)):
        yield tregs(n, d)
    for n, d in ((256, 1024), (1024, 1024), (1024, 8192)):
        yield dcl(n, d)
