"""Evaluates a case of `tests/data/golden.json` or `golden_more.json` with this project's own losses, in float64.

evaluate(case) -> (loss, gradients). `gradients` maps the name that the file gives a gradient ("grad0" of view 0's
input, "grad_p0", "grad_pred", ...) to the whole tensor; every input that the case differentiates is there, whether the
file records its gradient or not. `gradients[0]` is `gradients["grad0"]`. Cases that record a transformed output alone
(bw_*) have neither: None and {}.

details(case) gives what else the file records (states, assignments, terms of the loss), by its names there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.losses.mae import mae_loss, patches
from pretrain.losses.similarity import distance_to_centre, unit_rows
from pretrain.losses.spectra import coding_rate, von_neumann_entropy
from pretrain.losses.spherical_kmeans import spherical_kmeans
from pretrain.losses.whitening import whiten
from pretrain.losses.windows import whiten_windows
from pretrain.methods.all4one import build_transformer, terms_of
from pretrain.methods.corinfomax import corinfomax_loss, initial_state
from pretrain.methods.cwrgp import cwrgp_loss
from pretrain.methods.dcl import dcl_loss
from pretrain.methods.deepcluster import deepcluster_loss
from pretrain.methods.emp_ssl import emp_ssl_loss
from pretrain.methods.frossl import frossl_loss
from pretrain.methods.intl import intl_ema_loss, intl_loss, trace_loss
from pretrain.methods.ivne import ivne_loss
from pretrain.methods.lejepa import bcs_loss, lejepa_loss, sigreg
from pretrain.methods.matrix_ssl import matrix_ssl_loss
from pretrain.methods.mec import mec_loss
from pretrain.methods.mmcr import mmcr_loss
from pretrain.methods.moco_v3 import moco_v3_loss
from pretrain.methods.nnclr import nnclr_loss
from pretrain.methods.resa import assignment, resa_loss
from pretrain.methods.ressl import ressl_loss
from pretrain.methods.simdino import simdino_loss
from pretrain.methods.supcon import supcon_loss
from pretrain.methods.tico import tico_loss
from pretrain.methods.tregs import tree_length, tregs_loss
from pretrain.methods.vibcreg import vibcreg_loss
from pretrain.methods.visreg import visreg_loss
from pretrain.whitening_layer import Whitening

Case = dict[str, Any]


class Gradients(dict[Any, Tensor]):
    """By the names of the file; a number stands for the view of that number."""

    def __missing__(self, key: Any) -> Tensor:
        if isinstance(key, int):
            return self[f"grad{key}"]
        raise KeyError(key)


@dataclass
class Outcome:
    loss: Tensor | None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """By the names of their gradients."""
    details: dict[str, Any] = field(default_factory=dict)


def evaluate(case: Case) -> tuple[Tensor | None, Gradients]:
    """The loss of a case (a scalar), and its gradients with respect to the case's inputs."""
    outcome = _outcome(case)
    if outcome.loss is None:
        return None, Gradients()
    names, inputs = list(outcome.inputs), list(outcome.inputs.values())
    gradients = torch.autograd.grad(outcome.loss, inputs, allow_unused=True)
    whole = (torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True))
    return outcome.loss.detach(), Gradients(zip(names, whole, strict=True))


def details(case: Case) -> dict[str, Any]:
    """What the case records beside its loss and the gradients of that: tensors, numbers, lists of indices."""
    return _outcome(case).details


def _outcome(case: Case) -> Outcome:
    kind = case["case"]
    return EVALUATORS["bw" if kind.startswith("bw_") else kind](case)


# --- inputs -----------------------------------------------------------------------------------------------------------


def inp(n: int, d: int, view: float, seed: float) -> Tensor:
    i = torch.arange(n * d, dtype=torch.float64)
    wave = (0.7 * i + seed).sin() + 0.5 * (0.013 * i.square() + seed).cos() + 0.1 * (1.3 * i + 2 * view + seed).sin()
    return wave.view(n, d)


def perm(d: int, k: int) -> Tensor:
    j = torch.arange(d, dtype=torch.float64)
    x = (12.9898 * j + 78.233 * k).sin() * 43758.5453
    return (x - x.floor()).argsort()


def views_of(case: Case, shift: float = 0.0, count: int | None = None) -> list[Tensor]:
    count = case.get("views", 2) if count is None else count
    return [inp(case["n"], case["d"], v, case["seed"] + shift).requires_grad_() for v in range(count)]


def named(views: list[Tensor], name: str = "grad") -> dict[str, Tensor]:
    return {f"{name}{v}": view for v, view in enumerate(views)}


def directions_of(case: Case) -> Tensor:
    a = inp(case["d"], case["slices"], 0, case["seed"])
    return a / a.norm(dim=0, keepdim=True)


def queue_of(case: Case) -> Tensor:
    return unit_rows(inp(case["queue"], case["d"], 0, case["seed"] + 0.4))


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


# --- golden.json ------------------------------------------------------------------------------------------------------


def cwrgp(case: Case) -> Outcome:
    views = views_of(case)
    orders = [perm(case["d"], v) for v in range(len(views))]
    loss = cwrgp_loss(views, case["groups"], permutations=orders)
    whitened = whiten(views[0].detach(), groups=case["groups"], permutation=orders[0])
    return Outcome(loss, named(views), {"whitened0": whitened})


def intl(case: Case) -> Outcome:
    views = views_of(case)
    loss = intl_loss(views, iterations=case["iterations"], trade_off=case["trade_off"])
    whitened = whiten(views[0].detach(), "iternorm", iterations=case["iterations"])
    return Outcome(loss, named(views), {"whitened0": whitened, "trace0": trace_loss(whitened, "channel")})


def intl_ema(case: Case) -> Outcome:
    target, *online = views_of(case)
    loss = intl_ema_loss(online, target, iterations=case["iterations"], trade_off=case["trade_off"])
    return Outcome(loss, named([target, *online]))


def intl_batch_axis(case: Case) -> Outcome:
    views = views_of(case)
    return Outcome(intl_loss(views, case["iterations"], case["trade_off"], axis="batch"), named(views))


def batch_whitening(case: Case) -> Outcome:
    x = inp(case["n"], case["d"], 0, case["seed"])
    return Outcome(None, {}, {"whitened_abs": whiten(x, case["case"].removeprefix("bw_"), axis="batch").abs()})


# --- SIGReg and VISReg ------------------------------------------------------------------------------------------------


def sigreg_case(case: Case) -> Outcome:
    views = views_of(case)
    flatten = case["case"] == "sigreg_flattened"
    loss = sigreg(views, directions_of(case), case.get("points", 17), case.get("t_max", 3.0), flatten)
    return Outcome(loss, named(views))


def lejepa(case: Case) -> Outcome:
    views, directions = views_of(case), directions_of(case)
    flatten = convex = case["case"] == "lejepa_stable_pretraining"
    centred_on = None if case["case"] == "lejepa_minimal" else case["globals"]
    grid = (case.get("points", 17), case.get("t_max", 3.0))
    loss = lejepa_loss(views, directions, case.get("lam", 0.02), centred_on, flatten, not convex, *grid)
    terms = {"inv": distance_to_centre(views, centred_on), "reg": sigreg(views, directions, *grid, flatten)}
    return Outcome(loss, named(views), terms)


def bcs(case: Case) -> Outcome:
    views, directions = views_of(case), directions_of(case)
    regulariser = bcs_loss([view.detach() for view in views], directions, 1.0) - bcs_loss(views, directions, 0.0)
    return Outcome(bcs_loss(views, directions, case.get("lmbd", 10.0)), named(views), {"bcs": regulariser})


def visreg(case: Case) -> Outcome:
    views, directions = views_of(case), directions_of(case)
    eps = (0.0, 1e-4) if case["case"] == "visreg_lightly" else (1e-6, None)
    loss = visreg_loss(views, directions, case.get("lam", 0.9), case["globals"], *eps)
    regulariser = visreg_loss(views, directions, 1.0, case["globals"], *eps)
    return Outcome(loss, named(views), {"inv": distance_to_centre(views, case["globals"]), "reg": regulariser})


# --- assignment, state, spectra ---------------------------------------------------------------------------------------


def resa(case: Case) -> Outcome:
    n, width, seed = case["n"], case["dh"], case["seed"]
    views, targets = views_of(case), views_of(case, 0.1, 2)
    h, target_h = inp(n, width, 0, seed), inp(n, width, 0, seed + 0.1)
    loss = resa_loss(views, targets, h, target_h, case["temperature"])
    return Outcome(loss, named(views), {"assignment": assignment(h, target_h)})


def corinfomax(case: Case) -> Outcome:
    options = {"attraction": case["alpha"], "memory": case["la"], "eps": case["eps"]}
    first = views_of(case)
    before = corinfomax_loss(first, initial_state(case["d"]), **options)
    views = views_of(case, 1.0)
    after = corinfomax_loss(views, before.state, **options)
    return Outcome(
        after.loss,
        named(views),
        {
            "loss_first_step": before.loss,
            "grad0_first_step": gradient(before.loss, first[0]),
            "covariance_term_first_step": -before.log_determinants,
            "state_R1": after.state.covariance[0],
            "state_mu1": after.state.mean[0],
        },
    )


def mmcr(case: Case) -> Outcome:
    views = views_of(case)
    targets = views_of(case, 0.1) if case["case"] == "mmcr_momentum" else None
    return Outcome(mmcr_loss(views, targets, case.get("lmbda", 0.0)), named(views))


def mec(case: Case) -> Outcome:
    views = views_of(case)
    scale = case.get("factor", 1.0) * case["n"] * case["eps"] / case["d"]
    loss = mec_loss(views, views_of(case, 0.1), scale, case.get("order", 4))
    return Outcome(loss, named(views), {"lamda_inv": scale})


def matrix_ssl(case: Case) -> Outcome:
    views, targets = views_of(case), views_of(case, 0.1)
    options = {"scale": case.get("lamda", 1.0), "shift": case.get("mu", 1.0), "order": case.get("order", 4)}
    loss = matrix_ssl_loss(views, targets, own_weight=case.get("gamma", 1.0), **options)
    # Both directions the same pair: what remains is one direction's terms.
    pair = ([views[0]] * 2, [targets[1]] * 2)
    cross = matrix_ssl_loss(*pair, own_weight=0.0, **options)
    own = matrix_ssl_loss(*pair, own_weight=1.0, **options) - cross
    return Outcome(loss, named(views), {"term_cross_p1_z0": cross, "term_own_p1_z0": own})


def frossl(case: Case) -> Outcome:
    views = views_of(case)
    form: Any = "two-view" if case["case"] == "frossl_two_view_paper" else "multi-view"
    return Outcome(frossl_loss(views, case.get("weight", 1.0), form), named(views))


def tico(case: Case) -> Outcome:
    attached = case["case"] == "tico_attached"
    options = {"beta": case.get("beta", 0.9), "rho": case.get("rho", 8.0), "attached": attached}
    constant = 1.0 if attached else 0.0  # that code leaves it out
    first = tico_loss(*views_of(case), torch.zeros(case["d"], case["d"], dtype=torch.float64), **options)
    views = views_of(case, 1.0)
    second = tico_loss(*views, first.covariance, **options)
    seen = {"loss_first_step": first.loss - constant, "state_C": second.covariance}
    return Outcome(second.loss - constant, named(views), seen)


def vibcreg(case: Case) -> Outcome:
    views = views_of(case)
    return Outcome(vibcreg_loss(views), named(views))


def iternorm_layer(case: Case) -> Outcome:
    n, d, seed = case["n"], case["d"], case["seed"]
    layer = Whitening(d, "iternorm", d // case["channels"], case["T"]).double()
    x = inp(n, d, 0, seed).requires_grad_()
    output = layer(x)
    loss = (output * inp(n, d, 1, seed + 0.5)).sum()
    seen = {"output": output, "running_mean": layer.running_mean, "running_wm": layer.running_matrix}
    return Outcome(loss, {"grad0": x}, seen)


def tregs(case: Case) -> Outcome:
    views = views_of(case)
    weights = case.get("beta", 10.0), case.get("gamma", 0.2), case.get("lambda", 8e-4)
    return Outcome(tregs_loss(views, *weights), named(views), {"mst_length0": tree_length(views[0])})


def simdino(case: Case) -> Outcome:
    views, teacher = views_of(case), views_of(case, 0.1, 2)
    smooth, world, eps = bool(case["expa_type"]), case.get("world", 1), case["eps"]
    loss = simdino_loss(views, teacher, eps, smooth, world, case.get("coeff", 1.0))
    expansion = -simdino_loss(views, teacher, eps, smooth, world, 0.0)
    compression = -simdino_loss(views, teacher, eps, smooth, world, 1.0) - expansion
    return Outcome(loss, named(views), {"compression": compression, "expansion": expansion})


def emp_ssl(case: Case) -> Outcome:
    views = views_of(case)
    rates = [coding_rate(unit_rows(view), case["d"] / (case["n"] * case["eps"])) for view in views]
    tcr = -torch.stack(rates).mean()
    similarity = emp_ssl_loss(views, case["eps"], 1.0) - tcr
    return Outcome(emp_ssl_loss(views, case["eps"]), named(views), {"similarity": similarity, "tcr": tcr})


def ivne(case: Case) -> Outcome:
    views = views_of(case)
    loss = ivne_loss(views, case.get("alpha_1", log(case["n"])), case.get("alpha_2", 1.0))
    return Outcome(loss, named(views), {"entropy0": von_neumann_entropy(unit_rows(views[0]))})


# --- contrast and clusters --------------------------------------------------------------------------------------------


def nnclr(case: Case) -> Outcome:
    p, z, queue = views_of(case, 0.2), views_of(case), queue_of(case)
    loss = nnclr_loss(p, z, queue, case["temperature"])
    nearest = (unit_rows(z[0]) @ queue.mT).argmax(dim=1)
    return Outcome(loss, named(p), {"neighbours0": nearest})


def moco_v3(case: Case) -> Outcome:
    q = views_of(case, 0.2)
    return Outcome(moco_v3_loss(q, views_of(case), case["temperature"]), named(q))


def deepcluster(case: Case) -> Outcome:
    views, size, clusters = views_of(case), case["memory"], case["clusters"]
    banks = [unit_rows(inp(size, case["d"], v, case["seed"])) for v in range(2)]
    heads = [spherical_kmeans(banks[h % 2], banks[h % 2][perm(size, h)[:clusters]]) for h in range(3)]
    centroids = torch.stack([head.centroids for head in heads])
    assignments = torch.stack([head.assignment for head in heads])
    loss = deepcluster_loss(views, centroids, assignments[:, : case["n"]], case.get("temperature", 0.1))
    seen = {"assignments": assignments, "centroids0": centroids[0], "centroids2": centroids[2]}
    return Outcome(loss, named(views), seen)


def ressl(case: Case) -> Outcome:
    q, k = views_of(case)
    temperatures = case.get("tau_q", 0.1), case.get("tau_k", 0.04)
    return Outcome(ressl_loss(q, k, queue_of(case), *temperatures), named([q, k]))


def supcon(case: Case) -> Outcome:
    views = views_of(case)
    labels = (7 * torch.arange(case["n"]) + 3) % case["classes"]
    inside = case["case"] == "supcon_solo_learn"
    loss = supcon_loss(views, labels, case["temperature"], inside, case.get("base_temperature"))
    return Outcome(loss, named(views))


def all4one(case: Case) -> Outcome:
    z, p, p2 = views_of(case), views_of(case, 0.2), views_of(case, 0.3)
    targets = [unit_rows(view.detach()) for view in views_of(case, 0.1)]
    transformer = build_transformer(case["d"], dropout=0.0).double()
    fill(transformer, case["seed"] + 0.5)
    terms = terms_of(z, targets, p, p2, queue_of(case), transformer, case["temperature"])
    inputs = {**named(z, "grad_z"), **named(p, "grad_p"), **named(p2, "grad_p2_"), **named(z)}
    seen = {"nnclr_term": terms.contrast, "attention_term": terms.attention, "feature_term": terms.feature}
    return Outcome(terms.loss, inputs, seen)


@torch.no_grad()
def fill(network: nn.Module, seed: float) -> None:
    for k, (name, parameter) in enumerate(network.named_parameters()):
        rows = parameter.shape[0]
        x = inp(rows, parameter.numel() // rows, 0, seed + 0.01 * k).view(parameter.shape)
        if "norm" in name:
            parameter.copy_(1 + 0.1 * x if name.endswith("weight") else 0.1 * x)
        elif parameter.ndim == 1:
            parameter.copy_(0.1 * x)
        else:
            parameter.copy_(x / (parameter.numel() // rows) ** 0.5)


def dcl(case: Case) -> Outcome:
    views = views_of(case)
    tau, sigma = case["temperature"], case.get("sigma")
    loss = dcl_loss(views, tau, sigma)
    detached = dcl_loss(views, tau, sigma, attached=False)
    seen = {"lightly_loss": detached / 2, "lightly_grad0_times_2": gradient(detached, views[0])}
    return Outcome(loss, named(views), seen)


def mae(case: Case) -> Outcome:
    b, size, patch, seed = case["batch"], case["size"], case["patch"], case["seed"]
    images = inp(b, 3 * size * size, 0, seed).view(b, 3, size, size)
    count = (size // patch) ** 2
    prediction = inp(b * count, 3 * patch**2, 1, seed).view(b, count, -1).requires_grad_()
    mask = torch.stack([(perm(count, k) >= count // 4).double() for k in range(b)])
    loss = mae_loss(images, prediction, mask, patch, case["norm_pix"])
    return Outcome(loss, {"grad_pred": prediction}, {"target": patches(images, patch)})


# --- CW-RGP's arms ----------------------------------------------------------------------------------------------------


def cw_arm(case: Case) -> Outcome:
    kind, views, d = case["case"], views_of(case), case["d"]
    if kind in ("cw_plain", "cw_bn"):
        loss = cwrgp_loss(views, 1, transform="none" if kind == "cw_plain" else "batch_norm")
    else:
        orders = [perm(d, 0 if kind == "cw_aligned" else v) for v in range(len(views))]
        loss = cwrgp_loss(views, case.get("groups", 2), permutations=orders, stop_first=kind == "cw_stop")
    return Outcome(loss, named(views))


def cw_stop_windows(case: Case) -> Outcome:
    views, n, d, window = views_of(case), case["n"], case["d"], case["window"]
    count = len(views)
    orders = [torch.stack([perm(d, count * j + v) for j in range(n // window)]) for v in range(count)]
    loss = cwrgp_loss(
        views, case["groups"], permutations=orders, window=window, stop_first=True, image_order=perm(n, 99)
    )
    return Outcome(loss, named(views))


def cw_pca_abs(case: Case) -> Outcome:
    views = views_of(case)
    outputs = [output[0] for output in whiten_windows(views, "pca", "channel")]
    cosines = torch.cosine_similarity(outputs[0], outputs[1], dim=1, eps=1e-12)
    return Outcome(2 - 2 * cosines.abs().mean(), named(views), {"whitened_abs0": outputs[0].abs()})


EVALUATORS: dict[str, Callable[[Case], Outcome]] = {
    "cwrgp": cwrgp,
    "intl": intl,
    "intl_ema": intl_ema,
    "intl_batch_axis": intl_batch_axis,
    "bw": batch_whitening,
    "sigreg_per_view": sigreg_case,
    "sigreg_flattened": sigreg_case,
    "lejepa_minimal": lejepa,
    "lejepa_global_centre": lejepa,
    "lejepa_stable_pretraining": lejepa,
    "bcs_eb_jepa": bcs,
    "visreg": visreg,
    "visreg_lightly": visreg,
    "resa": resa,
    "corinfomax": corinfomax,
    "mmcr": mmcr,
    "mmcr_momentum": mmcr,
    "mec": mec,
    "matrix_ssl": matrix_ssl,
    "frossl": frossl,
    "frossl_two_view_paper": frossl,
    "tico": tico,
    "tico_attached": tico,
    "vibcreg": vibcreg,
    "iternorm_layer": iternorm_layer,
    "tregs": tregs,
    "simdino": simdino,
    "simdino_rank_of_many": simdino,
    "emp_ssl": emp_ssl,
    "ivne": ivne,
    "nnclr": nnclr,
    "moco_v3": moco_v3,
    "deepcluster_v2": deepcluster,
    "ressl": ressl,
    "supcon": supcon,
    "supcon_solo_learn": supcon,
    "all4one": all4one,
    "dcl": dcl,
    "dclw": dcl,
    "mae": mae,
    "cw_stop": cw_arm,
    "cw_not_aligned": cw_arm,
    "cw_aligned": cw_arm,
    "cw_plain": cw_arm,
    "cw_bn": cw_arm,
    "cw_stop_windows": cw_stop_windows,
    "cw_pca_abs": cw_pca_abs,
}
"""By the case's name."""
