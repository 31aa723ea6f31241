"""Trainings of vision transformers equal a plain loop of timm and torch.optim, step by step, in float64.

Only the initial weights are shared. The loops below know nothing of the suite: losses, target network, masks, rates,
weight decay, clipping and layer-wise rates are written out from the methods' descriptions.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.data.batch import Batch
from pretrain.method import Method, find_method
from pretrain.methods.mae import hidden_order
from pretrain.networks import build_encoder
from pretrain.recipe import Recipe, recipe_of
from pretrain.training_step import TrainingStep
from tests.golden_trajectories import image
from whitebench.errors import UserError

STEPS, EPOCHS, IMAGES = 8, 2, 16
PER_EPOCH = STEPS // EPOCHS
SIDE, PATCH, GRID = 8, 4, 4
TINY = {"backbone": "vit_tiny_patch4", "pooling": "cls", "positions": "sincos"}
MOCO: dict[str, Any] = {
    "method": {"name": "moco_v3", "temperature": 0.2, "predictor": 32, "momentum": 0.9},
    "network": {**TINY, "vit_init": "moco", "frozen_patch_embedding": True, "projector": [32, 16]},
    "optimizer": {
        "name": "adamw",
        "lr": 2e-3,
        "lr_batch": None,
        "weight_decay": 0.1,
        "final_weight_decay": 0.3,
        "decay_1d": False,
        "clip": 0.5,
        "clip_norm": "global",
        "layer_decay": 0.8,
    },
    "views": 2,
}
MAE: dict[str, Any] = {
    "method": {"name": "mae", "decoder_width": 24, "decoder_depth": 2, "decoder_heads": 3, "mask_ratio": 0.5},
    "network": {**TINY, "vit_init": "mae", "projector": []},
    "optimizer": {
        "name": "adamw",
        "lr": 2e-3,
        "lr_batch": None,
        "weight_decay": 0.05,
        "decay_1d": False,
        "beta_2": 0.95,
    },
    "views": 1,
}


def built(settings: dict[str, Any]) -> tuple[Recipe, Method[Any]]:
    """The recipe, and its method in float64 with two of its twelve blocks."""
    raw = {
        "name": "vit",
        "seed": 5,
        "batch": IMAGES,
        "data": {"dataset": "waves", "views": [{"size": SIDE, "count": settings["views"]}]},
        "schedule": {"epochs": EPOCHS, "warmup_epochs": 0.5, "final_lr": 0.1},
        **{key: settings[key] for key in ("method", "network", "optimizer")},
    }
    recipe = recipe_of(raw, where="vit")
    torch.manual_seed(0)
    encoder = build_encoder(recipe.network, recipe.view_sizes)
    backbone: Any = encoder.backbone
    backbone.blocks = backbone.blocks[:2]
    return recipe, find_method(recipe.method_name)(encoder, recipe.method).double()


def batch(step: int, views: int) -> Batch:
    index = torch.arange(IMAGES) + IMAGES * (step % PER_EPOCH)
    return Batch([image(step, view, SIDE) for view in range(views)], index, index)


def trained(training: TrainingStep, views: int, steps: range = range(STEPS)) -> list[float]:
    return [float(training(batch(step, views), step).loss.detach()) for step in steps]


def rate(step: int, base: float = 2e-3, counting: str = "from-one") -> float:
    """Two steps of warm-up, then a cosine to a tenth."""
    shift = 1 if counting == "from-one" else 0
    if step < 2:
        return base * (step + shift) / 2
    cosine = (1 + math.cos(math.pi * (step + shift - 2) / (STEPS - 2))) / 2
    return base * (cosine + (1 - cosine) * 0.1)


def decayed(parameters: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """torch's groups: biases and norms do not decay."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def plain_moco(method: Any) -> tuple[list[float], nn.Module]:
    """MoCo v3's algorithm 1, with AdamW: losses, and the encoder it ends with."""
    encoder, predictor = method.encoder, method.predictor
    base, head = encoder.backbone, encoder.projector
    key_base, key_head = copy.deepcopy(base), copy.deepcopy(head)
    layers: list[tuple[int, list[Tensor]]] = [(0, [base.cls_token])]  # positions and the patch embedding are frozen
    layers += [(k + 1, list(block.parameters())) for k, block in enumerate(base.blocks)]
    layers += [(3, [*base.norm.parameters(), *head.parameters(), *predictor.parameters()])]
    groups = [
        {**group, "scale": 0.8 ** (3 - layer)} for layer, parameters in layers for group in decayed(parameters, 0.1)
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=2e-3)
    losses = []
    for step in range(STEPS):
        x1, x2 = batch(step, 2).views
        for group in optimizer.param_groups:
            group["lr"] = rate(step, counting="from-zero") * group["scale"]
            if group["weight_decay"]:
                group["weight_decay"] = 0.3 + (0.1 - 0.3) * (1 + math.cos(math.pi * step / STEPS)) / 2
        q1, q2 = (predictor(head(base(x))) for x in (x1, x2))
        momentum = 1 - 0.1 * (1 + math.cos(math.pi * step / STEPS)) / 2
        with torch.no_grad():
            for slow, fast in ((key_base, base), (key_head, head)):
                for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                    old.mul_(momentum).add_((1 - momentum) * new)
            k1, k2 = (key_head(key_base(x)) for x in (x1, x2))
        loss = ctr(q1, k2) + ctr(q2, k1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses, base


def ctr(q: Tensor, k: Tensor, tau: float = 0.2) -> Tensor:
    logits = F.normalize(q) @ F.normalize(k).T / tau
    return 2 * tau * F.cross_entropy(logits, torch.arange(len(q)))


def plain_mae(method: Any) -> tuple[list[float], nn.Module]:
    """MAE's algorithm: shuffle, keep, encode, unshuffle with mask tokens, decode, error of hidden patches."""
    vit, decoder = method.encoder.backbone, method.decoder
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(decayed(parameters, 0.05), lr=2e-3, betas=(0.9, 0.95))
    positions = torch.cat([torch.zeros(1, 24), decoder.positions[0]]).double()
    losses = []
    for step in range(STEPS):
        now = batch(step, 1)
        x = now.views[0]
        ids_shuffle = hidden_order(5, step // PER_EPOCH, now.index, 0, GRID)
        ids_restore, ids_keep = ids_shuffle.argsort(dim=1), ids_shuffle[:, : GRID // 2]
        tokens = F.conv2d(x, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=PATCH).flatten(2).mT
        tokens = tokens + vit.pos_embed[:, 1:]
        kept = torch.gather(tokens, 1, ids_keep[..., None].repeat(1, 1, 192))
        kept = vit.norm(vit.blocks(torch.cat([vit.cls_token.expand(IMAGES, -1, -1), kept], dim=1)))
        y = decoder.embed(kept)
        masks = decoder.mask_token.repeat(IMAGES, GRID // 2, 1)
        unshuffled = torch.gather(torch.cat([y[:, 1:], masks], dim=1), 1, ids_restore[..., None].repeat(1, 1, 24))
        y = torch.cat([y[:, :1], unshuffled], dim=1) + positions
        for block in decoder.blocks:
            y = block(y)
        prediction = decoder.predict(decoder.norm(y))[:, 1:]
        target = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 4, 5, 1).reshape(IMAGES, GRID, -1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        hidden = (ids_restore >= GRID // 2).double()
        loss = (((prediction - target) ** 2).mean(-1) * hidden).sum() / hidden.sum()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, vit


@pytest.mark.parametrize(("settings", "plain"), [(MOCO, plain_moco), (MAE, plain_mae)], ids=["moco_v3", "mae"])
def test_a_training_equals_a_plain_loop(settings: dict[str, Any], plain: Callable[[Any], Any]) -> None:
    recipe, method = built(settings)
    losses, expected = plain(copy.deepcopy(method))
    training = TrainingStep(method, recipe, torch.device("cpu"), PER_EPOCH)
    assert trained(training, settings["views"]) == pytest.approx(losses, rel=1e-7)
    for (name, ours), theirs in zip(method.encoder.backbone.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")
    assert losses != pytest.approx([losses[0]] * STEPS, rel=1e-3)


@pytest.mark.parametrize("settings", [MOCO, MAE], ids=["moco_v3", "mae"])
def test_a_training_with_drop_path_continues_to_the_same_bits(settings: dict[str, Any]) -> None:
    dropping = {**settings, "network": {**settings["network"], "drop_path": 0.5}}
    recipe, method = built(dropping)
    whole = TrainingStep(method, recipe, torch.device("cpu"), PER_EPOCH)
    before = trained(whole, settings["views"], range(5))
    saved = copy.deepcopy(whole.state_dict())
    after = trained(whole, settings["views"], range(5, STEPS))
    recipe, method = built(dropping)
    resumed = TrainingStep(method, recipe, torch.device("cpu"), PER_EPOCH)
    resumed.load_state_dict(saved)
    assert trained(resumed, settings["views"], range(5, STEPS)) == after
    state = whole.method.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in resumed.method.state_dict().items())
    assert len({*before, *after}) == STEPS


def test_hidden_patches_depend_on_seed_epoch_image_and_view_alone() -> None:
    """As the draws of views do: not on the batch, its order, or the number of processes."""
    index = torch.tensor([3, 11, 4])
    orders = hidden_order(1, 2, index, 0, 16)
    assert torch.equal(orders.flip(0), hidden_order(1, 2, index.flip(0), 0, 16))
    assert torch.equal(orders[1:2], hidden_order(1, 2, index[1:2], 0, 16))
    assert all(sorted(row.tolist()) == list(range(16)) for row in orders)
    others = [hidden_order(0, 2, index, 0, 16), hidden_order(1, 3, index, 0, 16), hidden_order(1, 2, index, 1, 16)]
    assert not any(torch.equal(orders, other) for other in others)
    counts = torch.bincount(hidden_order(0, 0, torch.arange(4000), 0, 16)[:, :4].flatten(), minlength=16)
    assert counts.float().sub(1000).abs().max() < 130  # 4.7 standard deviations of a binomial


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"backbone": "resnet18"}, "needs a vision transformer with a class token"),
        ({"backbone": "vit_tiny_patch4", "projector": [8]}, r"set network.projector=\[\]"),
    ],
)
def test_mae_refuses_networks_that_it_cannot_mask(network: dict[str, Any], message: str) -> None:
    settings = {**MAE, "network": network}
    with pytest.raises(UserError, match=message):
        built(settings) if "vit" in network["backbone"] else _with_resnet(settings)


def _with_resnet(settings: dict[str, Any]) -> None:
    kind = find_method("mae")
    kind(build_encoder(recipe_of({"name": "x", "data": {"dataset": "x", "views": [{"size": 8}]}, **{
        key: settings[key] for key in ("method", "network")}}, where="x").network), kind.Config())  # fmt: skip


def test_layer_wise_rates_need_a_network_of_timm() -> None:
    settings = {**MOCO, "network": {"backbone": "resnet18", "projector": [8]}}
    raw = {"name": "x", "data": {"dataset": "x", "views": [{"size": 8, "count": 2}]}}
    recipe = recipe_of({**raw, **{key: settings[key] for key in ("method", "network", "optimizer")}}, where="x")
    method = find_method("moco_v3")(build_encoder(recipe.network), recipe.method)
    with pytest.raises(UserError, match=r"optimizer.layer_decay: needs a backbone of timm"):
        TrainingStep(method, recipe, torch.device("cpu"), PER_EPOCH)
