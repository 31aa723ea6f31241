"""Proves the conversion of a vision transformer: every tensor, and the maps of two photos.

The reference is timm's own module with the checkpoint's tensors, LayerScale and all. Compared with it are the frozen
form, token by token, and Detectron2's ViT with global attention. The latter has no class token, as in ViTDet: it is
compared with timm's blocks on the patches' tokens alone, and how much the class token matters is measured.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from transfer.convert import Proof, load_proven
from transfer.feature_maps import TOLERANCE, photos
from transfer.vit_backbones import add_vit_keys, detectron2_vit, frozen_vit, set_structure
from transfer.vit_convert import LEFT_OUT, PATCH_WEIGHT, as_tensors
from transfer.vit_structure import TIMM, timm_vit
from whitebench.errors import UserError

if TYPE_CHECKING:
    from pretrain.checkpoint import Backbone
    from transfer.convert import Converted

WITHOUT_POSITIONS = 224
"""Side of the photos for a transformer without position embeddings, pixels."""


@torch.no_grad()
def prove_vit(backbone: "Backbone", content: "Converted") -> tuple[Proof, dict[str, Any]]:
    """The proof of its tensors, and metrics for the record: maps, maps_reference, class_token_effect, vitdet.

    Raises:
        UserError: a tensor is left over or missing; maps differ by more than rounding, or are not finite.
    """
    structure, cfg = content.structure, _cfg(content)
    grid, patch = structure.grid, structure.detection_patch
    reference = timm_vit(content.arch, content.options, grid=grid, patch=patch).eval()
    renamed = {name: content.tensors[name] for name in (PATCH_WEIGHT, *LEFT_OUT) if name in content.tensors}
    tensors = {**backbone.tensors, **as_tensors(renamed)}
    reference.load_state_dict(tensors, strict=False)
    side = grid * patch or WITHOUT_POSITIONS
    images = torch.nn.functional.interpolate(
        photos(content.pixel_mean, content.pixel_std), (side, side), mode="bilinear"
    )
    frozen = frozen_vit(cfg)
    proof = load_proven(frozen, content)
    maps = {
        "frozen": _compare("the frozen transformer", frozen(images)["last_feat"], _maps(reference, images, norm=True))
    }
    metrics: dict[str, Any] = {
        "maps": maps,
        "maps_reference": f"timm's {content.arch.removeprefix(TIMM)}",
        "vitdet": structure.refusal or "yes",
    }
    if structure.refusal is None:
        network = detectron2_vit(cfg).eval()
        metrics["vitdet_tensors"] = load_proven(network, content).matched
        patches = _patch_maps(reference, images, structure.prefix_positions)
        maps["vitdet"] = _compare("Detectron2's ViT", network(images)["last_feat"], patches)
        whole = _maps(reference, images, norm=False)
        metrics["class_token_effect"] = float((whole - patches).abs().max() / whole.abs().max())
    return proof, metrics


def _cfg(content: "Converted") -> Any:
    """For networks with global attention and no relative positions, which no pretraining has."""
    from transfer.detectron import require_detectron2

    require_detectron2()
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_vit_keys(cfg)
    set_structure(cfg, content.arch, content.options, content.structure)
    cfg.MODEL.VIT.WINDOW, cfg.MODEL.VIT.REL_POS, cfg.MODEL.VIT.DROP_PATH = 0, False, 0.0
    return cfg


def _maps(network: Any, images: Tensor, norm: bool) -> Tensor:
    """[N, D, H / P, W / P] after the last block of timm's module, as timm cuts them out."""
    (maps,) = network.forward_intermediates(images, indices=1, norm=norm, intermediates_only=True)
    return maps


def _patch_maps(network: Any, images: Tensor, prefix_positions: int) -> Tensor:
    """The same of the patches' tokens alone: no class token takes part in the attention."""
    tokens = network.patch_embed(images)  # [N, H / P, W / P, D]
    count, rows, columns, width = tokens.shape
    tokens = tokens.flatten(1, 2) + network.pos_embed[:, prefix_positions:]
    tokens = network.blocks(tokens)
    return tokens.transpose(1, 2).reshape(count, width, rows, columns)


def _compare(name: str, maps: Tensor, expected: Tensor) -> float | None:
    """The largest difference in parts of the largest value; None where all values are zero."""
    largest = float(expected.abs().max())
    if not math.isfinite(largest):
        raise UserError("the backbone's maps of photos are not finite: its weights are unusable")
    difference = float((maps - expected).abs().max())
    if not difference <= TOLERANCE * largest:
        raise UserError(
            f"the maps of {name} differ from timm's by {difference:.1g} on photos, where the largest value is "
            f"{largest:.3g}; at most {TOLERANCE:g} of that is rounding"
        )
    return difference / largest if largest else None
