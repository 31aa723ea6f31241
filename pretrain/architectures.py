"""Names of backbones: torchvision's ResNets, the vision transformers of the papers, any network of timm.

Nothing heavy is imported here: recipes are checked, and sweeps planned, where neither torchvision nor timm is needed.
"""

import re
from collections.abc import Mapping

from whitebench.errors import UserError, nearest

RESNETS = {
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "resnet18-32": 256,
    "resnet18-16": 128,
}
"""torchvision's, and its ResNet-18 with 32 or 16 channels in the first stage; each with the width of its features."""
TIMM = "timm:"
VIT_SIZES = {"tiny": "ti", "small": "s", "base": "b", "large": "l"}
"""Sizes of vision transformers, with their usual abbreviations."""
_VIT = re.compile(
    r"vit[-_ ]?(tiny|ti|t|small|s|base|b|large|l)(?:[-_/ ]?(?:patch|p)?[-_]?(\d{1,3}))?", flags=re.IGNORECASE
)
_PATCH = re.compile(r"patch(\d+)")


def resnet_depth(name: str) -> int:
    """18 of resnet18 and resnet18-32."""
    return int(name.removeprefix("resnet").partition("-")[0])


def resnet_width(name: str) -> int:
    """Channels of the stem and of the first stage's 3x3 convolutions: 64, or as the name says."""
    return int(name.partition("-")[2] or 64)


def canonical_backbone(name: str) -> str:
    """One spelling for each vision transformer: `ViT-S/8` and `vit_small_8` are `vit_small_patch8`; others as they are.

    Without a patch, it is 16 pixels.
    """
    match = _VIT.fullmatch(name)
    if not match:
        return name
    size = next(full for full, short in VIT_SIZES.items() if match[1].lower() in (full, short, short[0]))
    return f"vit_{size}_patch{int(match[2] or 16)}"


def timm_architecture(name: str) -> str | None:
    """`timm:NAME` of a backbone that timm builds: `vit_small_patch8` -> `timm:vit_small_patch16_224`. None: ResNets."""
    if name.startswith(TIMM):
        return name
    match = _VIT.fullmatch(name)
    return f"{TIMM}vit_{canonical_backbone(name).split('_')[1]}_patch16_224" if match else None


def patch_of(name: str) -> int | None:
    """The side of a transformer's patches in pixels, as its name states it; None for networks without patches."""
    match = _PATCH.search(canonical_backbone(name))
    return int(match[1]) if match else None


def check_backbone(name: str) -> None:
    """Raises `UserError` for a name that neither this suite nor, where it is installed, timm knows."""
    if name.startswith(TIMM):
        check_timm_name(name)
    elif name not in RESNETS and timm_architecture(name) is None:
        if _in_timm(name):
            raise UserError(f"unknown backbone '{name}'; did you mean '{TIMM}{name}'?")
        raise UserError(f"unknown backbone '{name}'{nearest(name, [*RESNETS, *short_names()])}")
    patch = patch_of(name)
    if patch is not None and patch < 1:
        raise UserError(f"backbone '{name}': a patch has at least 1 pixel")


def check_timm_name(name: str) -> None:
    """Raises `UserError` for a `timm:NAME` that timm does not have; nothing where timm is not installed."""
    network, _, tag = name.removeprefix(TIMM).partition(".")
    names = _timm_names()
    if names and network not in names:
        raise UserError(f"unknown network of timm '{network}'{_prefixed(nearest(network, names))}")
    if tag:
        raise UserError(
            f"backbone '{name}': '.{tag}' names pretrained weights, and a pretraining starts from random ones; "
            f"write '{TIMM}{network}'"
        )


def check_sizes(name: str, sizes: Mapping[str, int], patch: int | None = None) -> None:
    """Raises `UserError` if images of these sides cannot be cut into the backbone's patches.

    Args:
        sizes: key of the recipe (or option of a command) to the side in pixels.
        patch: the side of a patch; None: as the backbone's name states it.
    """
    patch = patch or patch_of(name)
    for key, size in sizes.items():
        if patch and size % patch:
            below, above = size // patch * patch, (size // patch + 1) * patch
            options = f"{below} or {above}" if below else str(above)
            raise UserError(f"{key}: {size} pixels are not a multiple of the patch of {name}, {patch}; use {options}")


def short_names() -> list[str]:
    return [f"vit_{size}_patch{patch}" for size in VIT_SIZES for patch in (16, 8)]


def _timm_names() -> list[str]:
    """All networks of timm; empty where it is not installed. Its import takes seconds."""
    try:
        import timm
    except ImportError:
        return []
    names: list[str] = timm.list_models()
    return names


def _in_timm(name: str) -> bool:
    return name in _timm_names()


def _prefixed(hint: str) -> str:
    """The hint with `timm:` before each name in it."""
    return re.sub(r"'(\w+)'", rf"'{TIMM}\1'", hint)
