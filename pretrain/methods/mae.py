"""MAE: a vision transformer sees a quarter of an image's patches, a small decoder predicts the pixels of the others.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (arXiv 2111.06377); constants as in its
official code. The backbone is a vision transformer with a class token, fixed positions (network.positions=sincos) and
no projector. Which patches are hidden is a function of (seed, epoch, image, view) alone, as the draws of views are.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.data.views.random_parameters import OF_MASKS, uniforms
from pretrain.losses.mae import mae_loss
from pretrain.method import Encoder, Method, Step
from pretrain.timm_networks import initialise_as_mae, sine_positions
from whitebench.config import strict
from whitebench.errors import UserError
from whitebench.ranges import PositiveInt, ShareBelowOne

EPS = 1e-6
"""Of the decoder's layer norms."""


@strict
class Config:
    mask_ratio: ShareBelowOne = 0.75
    """Share of the patches that are hidden."""
    decoder_width: PositiveInt = 512
    decoder_depth: PositiveInt = 8
    decoder_heads: PositiveInt = 16
    normalise: bool = True
    """Whether each patch's pixels are brought to mean 0 and variance 1 before they are predicted (norm_pix)."""


class MAE(Method[Config]):
    """The loss is of this process's images, each of which has the same number of hidden patches."""

    minimum_views = 1

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__(encoder, config)
        backbone: Any = encoder.backbone
        _check(encoder)
        self.patch: int = backbone.patch_embed.patch_size[0]
        self.side: int = backbone.patch_embed.grid_size[0]
        self.decoder = Decoder(encoder.feature_dim, self.side, self.patch, config)

    def forward(self, batch: Batch) -> Step:
        losses = []
        for v, view in enumerate(batch.views):
            order = hidden_order(self.seed, self.epoch, batch.index, v, self._patches(view)).to(view.device)
            visible = order[:, : max(1, int(order.shape[1] * (1 - self.config.mask_ratio)))]
            prediction = self.decoder(self.encode(view, visible), visible)
            mask = torch.ones_like(order, dtype=prediction.dtype).scatter(1, visible, 0.0)
            losses.append(mae_loss(view, prediction, mask, self.patch, self.config.normalise))
        return Step(torch.stack(losses).mean())

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Tokens [B, 1 + K, D] after the final norm, of the class and of the visible patches, indices [B, K]."""
        backbone: Any = self.encoder.backbone
        x = backbone.patch_embed(images)
        x = (x.flatten(1, 2) if x.ndim == 4 else x) + backbone.pos_embed[:, 1:]
        x = x.gather(1, visible[..., None].expand(-1, -1, x.shape[2]))
        token = (backbone.cls_token + backbone.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([token, x], dim=1)
        for block in backbone.blocks:
            x = block(x)
        y: Tensor = backbone.norm(x)
        return y

    def _patches(self, view: Tensor) -> int:
        sides = [side // self.patch for side in view.shape[-2:]]
        if sides != [self.side, self.side]:
            raise UserError(f"mae: all views need one size (data.views), not {view.shape[-1]} pixels beside others")
        return self.side**2


class Decoder(nn.Module):
    """[B, 1 + K, D] tokens of visible patches -> predicted pixels of all patches, [B, side^2, 3 patch^2]."""

    def __init__(self, width: int, side: int, patch: int, config: Config) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        inner = config.decoder_width
        if inner % config.decoder_heads or inner % 4:
            raise UserError(f"method.decoder_width: {inner} is not divisible by 4 and {config.decoder_heads} heads")
        self.embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
        norm: Any = partial(nn.LayerNorm, eps=EPS)
        self.blocks = nn.ModuleList(
            Block(inner, config.decoder_heads, qkv_bias=True, norm_layer=norm) for _ in range(config.decoder_depth)
        )
        self.norm = norm(inner)
        self.predict = nn.Linear(inner, 3 * patch**2)
        initialise_as_mae(self)
        nn.init.normal_(self.mask_token, std=0.02)
        self.positions: Tensor
        self.register_buffer("positions", sine_positions(side, inner)[None], persistent=False)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        x = self.embed(tokens)
        count, width = self.positions.shape[1:]
        patches = self.mask_token.to(x.dtype).expand(len(x), count, -1)
        patches = patches.scatter(1, visible[..., None].expand(-1, -1, width), x[:, 1:])
        x = torch.cat([x[:, :1], patches + self.positions], dim=1)
        for block in self.blocks:
            x = block(x)
        pixels: Tensor = self.predict(self.norm(x)[:, 1:])
        return pixels


def hidden_order(seed: int, epoch: int, index: Tensor, view: int, patches: int) -> Tensor:
    """The patches of each image in the order in which they become visible: int64 [B, patches], on the CPU."""
    numbers = uniforms(seed, epoch, index.cpu().numpy(), OF_MASKS - view, patches)
    return torch.from_numpy(numbers).argsort(dim=1, stable=True)


def _check(encoder: Encoder) -> None:
    backbone: Any = encoder.backbone
    parts = ("patch_embed", "cls_token", "pos_embed", "blocks", "norm")
    fits = all(getattr(backbone, part, None) is not None for part in parts)
    if not fits or backbone.num_prefix_tokens != 1 or backbone.no_embed_class:
        raise UserError(
            "mae: needs a vision transformer with a class token and position embeddings, e.g. "
            "network.backbone=vit_base_patch16"
        )
    if any(True for _ in encoder.projector.parameters()):
        raise UserError("mae: has a decoder in place of a projector; set network.projector=[]")
