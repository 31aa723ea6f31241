"""Networks of timm as backbones: vision transformers, ConvNeXt, wide and deep ResNets, and whatever else it has.

A backbone of timm has timm's own tensor names, without a classifier, and `options` that rebuild it: keyword arguments
of `timm.create_model`, all plain JSON.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.architectures import TIMM, check_timm_name, patch_of, timm_architecture
from pretrain.recipe_sections import Network
from whitebench.errors import UserError

Options = dict[str, Any]
INSTALL = "pip install timm"
POOLING = {"cls": "token", "mean": "avg"}
"""A recipe's words to timm's. The mean is that of the patches' tokens, after the final norm."""
OPTIONAL = {"img_size", "dynamic_img_size", "fc_norm", "zero_init_last"}
"""Options that are left out where a network does not take them; all others are a recipe's own, and then an error."""
RECIPE_KEYS = {
    "global_pool": "network.pooling",
    "num_heads": "network.heads",
    "drop_path_rate": "network.drop_path",
    "weight_init": "network.vit_init",
    "patch_size": "network.backbone",
}


def build_for_recipe(network: Network, view_sizes: Iterable[int]) -> tuple[nn.Module, Options]:
    """The backbone of a recipe, initialised from torch's global generator, and the options that rebuild it.

    Args:
        view_sizes: sides of the views in pixels; position embeddings are made for the largest.
    Raises:
        UserError: timm is not installed or has no such network; it does not take these options or views.
    """
    architecture = timm_architecture(network.backbone)
    assert architecture is not None, "the caller has looked at the name"
    sizes = sorted(set(view_sizes), reverse=True)
    backbone, options = _fitting(architecture, network, _options(network, sizes[0] if sizes else None))
    _check_pooling(backbone, network)
    if network.positions == "sincos":
        fix_positions(backbone)
    if network.vit_init == "mae":
        initialise_as_mae(backbone)
    if network.frozen_patch_embedding:
        _freeze_patches(backbone, network)
    for size in sizes:
        _try(backbone, architecture, size)
    return backbone, {k: v for k, v in options.items() if k not in ("drop_path_rate", "weight_init")}


def build_timm(architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """timm's network `timm:NAME` without classifier, randomly initialised: [B, 3, S, S] -> [B, F].

    Raises:
        UserError: timm is not installed, has no such network, or it does not take these options.
    """
    timm = import_timm()
    check_timm_name(architecture)
    try:
        network: nn.Module = timm.create_model(
            architecture.removeprefix(TIMM), pretrained=False, num_classes=0, **options
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError, KeyError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{architecture}: timm cannot build it with {_listed(options)}: {text[:160]}") from error
    return network


def import_timm() -> Any:
    """The package timm.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(f"vision transformers and other networks of timm need the package timm: {INSTALL}") from error
    return timm


def feature_width(backbone: nn.Module) -> int:
    """F, of a backbone's pooled features: timm's or torchvision's."""
    width = getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)
    if width is None:  # torchvision's ResNets do not say
        block = list(backbone.get_submodule("layer4"))[-1]  # type: ignore[call-overload]
        width = getattr(block, "conv3", block.conv2).out_channels
    return int(width)


def _options(network: Network, size: int | None) -> Options:
    """What a recipe asks of timm, and what is tried."""
    options: Options = {"img_size": size, "dynamic_img_size": True, "zero_init_last": network.zero_init_residual}
    if not network.backbone.startswith(TIMM):
        options["patch_size"] = patch_of(network.backbone)
    if network.pooling is not None:
        options |= {"global_pool": POOLING[network.pooling], "fc_norm": False}
    if network.heads is not None:
        options["num_heads"] = network.heads
    if network.drop_path:
        options["drop_path_rate"] = network.drop_path
    if network.vit_init == "moco":
        options["weight_init"] = "moco"
    return {key: value for key, value in options.items() if value is not None}


def _fitting(architecture: str, network: Network, options: Options) -> tuple[nn.Module, Options]:
    """The network with all options that it takes."""
    state = torch.get_rng_state()
    while True:
        try:
            return build_timm(architecture, options), options
        except UserError as error:
            if network.pooling and "pool" in str(error.__cause__ or ""):
                raise UserError(f"network.pooling={network.pooling}: {architecture} has no such pooling") from error
            match = re.search(r"unexpected keyword argument '(\w+)'", str(error.__cause__ or ""))
            if not match or match[1] not in options:
                raise
            if match[1] not in OPTIONAL:
                raise UserError(f"{RECIPE_KEYS[match[1]]}: {architecture} has no such option") from error
            options = {key: value for key, value in options.items() if key != match[1]}
            torch.set_rng_state(state)


def _check_pooling(backbone: nn.Module, network: Network) -> None:
    if network.pooling == "cls" and getattr(backbone, "cls_token", None) is None:
        raise UserError(f"network.pooling=cls: {network.backbone} has no class token; use network.pooling=mean")


def _freeze_patches(backbone: nn.Module, network: Network) -> None:
    embedding = getattr(backbone, "patch_embed", None)
    if embedding is None:
        raise UserError(f"network.frozen_patch_embedding: {network.backbone} has no patch embedding")
    embedding.requires_grad_(False)


@torch.no_grad()
def _try(backbone: nn.Module, architecture: str, size: int) -> None:
    """Raises `UserError` if the backbone cannot take views of `size` pixels."""
    was_training = backbone.training
    try:
        output = backbone.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"data.views: {architecture} does not take views of {size} pixels: {text[:160]}") from error
    finally:
        backbone.train(was_training)
    if output.shape != (1, feature_width(backbone)):
        raise UserError(f"{architecture}: its output is {list(output.shape)}, not one vector of features per image")


def fix_positions(backbone: nn.Module) -> None:
    """Replaces learned position embeddings by fixed sines and cosines (MoCo v3, MAE); a class token has zeros.

    Raises:
        UserError: the network has no table of positions for a square grid.
    """
    table = getattr(backbone, "pos_embed", None)
    if not isinstance(table, Tensor):
        raise UserError("network.positions=sincos: the backbone has no table of position embeddings")
    prefix = 0 if getattr(backbone, "no_embed_class", False) else int(getattr(backbone, "num_prefix_tokens", 0))
    side = round((table.shape[1] - prefix) ** 0.5)
    if side * side != table.shape[1] - prefix or table.shape[2] % 4:
        raise UserError("network.positions=sincos: needs a square grid of patches and a width that 4 divides")
    with torch.no_grad():
        table.zero_()
        table[0, prefix:] = sine_positions(side, table.shape[2])
    table.requires_grad_(False)


def sine_positions(side: int, width: int) -> Tensor:
    """float32 [side^2, width], rows of patches: sines, cosines of the column, then of the row, as MAE has them.

    MoCo v3 has the row first: the same up to an order of channels that no initialisation distinguishes.
    """
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    one = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    columns, rows = one.repeat(side, 1), one.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()


def initialise_as_mae(backbone: nn.Module) -> None:
    """Xavier-uniform linear layers and patch embedding, zero biases, N(0, 0.02) for the class token."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    projection = getattr(getattr(backbone, "patch_embed", None), "proj", None)
    if isinstance(projection, nn.Conv2d):
        nn.init.xavier_uniform_(projection.weight.data.flatten(1))
    token = getattr(backbone, "cls_token", None)
    if isinstance(token, Tensor):
        nn.init.normal_(token, std=0.02)


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "its defaults"
