"""A vision transformer in plain torch, by the names of DINO's, MAE's, DINOv2's and DINOv3's own code.

Independent of timm: attention, gates, registers, layer scale and rotary positions are written out here, so that what
the reader of checkpoints makes of these tensors is compared with another implementation.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainViT(nn.Module):
    """[B, 3, S, S] -> tokens [B, 1 + R + N, D] after the final norm: class token, registers, patches."""

    patch_embed: Any
    blocks: Any
    norm: Any
    rope_embed: Any
    pos_embed: Any
    cls_token: Any

    def __init__(
        self,
        width: int = 192,
        heads: int = 3,
        depth: int = 2,
        side: int = 4,
        patch: int = 8,
        *,
        registers: int = 0,
        scale: str | None = None,
        gate: str | None = None,
        rotary: bool = False,
        qkv_bias: bool = True,
    ) -> None:
        """scale: the name of layer scales ("ls", "gamma_"); gate: of gated layers ("w12": DINOv2, "w1": DINOv3)."""
        super().__init__()
        self.side, self.registers, self.rotary, self.eps = side, registers, rotary, 1e-5 if rotary else 1e-6
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if registers:
            name = "storage_tokens" if rotary else "register_tokens"
            self.register_parameter(name, nn.Parameter(torch.zeros(1, registers, width)))
        if not rotary:
            self.pos_embed = nn.Parameter(torch.zeros(1, side**2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, scale, gate, self.eps, qkv_bias, rotary) for _ in range(depth))
        self.norm = nn.LayerNorm(width, self.eps)
        if rotary:
            self.rope_embed = nn.Module()
            quarter = width // heads // 4
            self.rope_embed.register_buffer("periods", 100 ** (torch.arange(quarter) / quarter))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed["proj"](images).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        if not self.rotary:
            x = x + self.pos_embed
        if self.registers:
            tokens: Any = self.storage_tokens if self.rotary else self.register_tokens
            x = torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        turn = self._rotation() if self.rotary else None
        for block in self.blocks:
            x = block(x, turn)
        y: Tensor = self.norm(x)
        return y

    def _rotation(self) -> tuple[Tensor, Tensor]:
        """cos and sin, [N, D / heads] each, of the patches' positions."""
        line = (torch.arange(self.side) + 0.5) / self.side * 2 - 1
        positions = torch.cartesian_prod(line, line)  # row, column
        angles = (2 * math.pi * positions[:, :, None] / self.rope_embed.periods).flatten(1).repeat(1, 2)
        return angles.cos(), angles.sin()


class Block(nn.Module):
    attn: Any
    mlp: Any

    def __init__(
        self, width: int, heads: int, scale: str | None, gate: str | None, eps: float, bias: bool, rotary: bool
    ) -> None:
        super().__init__()
        self.heads, self.gate, self.scale = heads, gate, scale
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)
        if rotary and bias:
            mask = torch.ones(3 * width)
            mask[width : 2 * width] = 0
            self.attn.qkv.register_buffer("bias_mask", mask)
        self.mlp, hidden = nn.Module(), 4 * width
        if gate == "w12":
            self.mlp.w12, self.mlp.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        elif gate == "w1":
            self.mlp.w1, self.mlp.w2 = nn.Linear(width, hidden), nn.Linear(width, hidden)
            self.mlp.w3 = nn.Linear(hidden, width)
        else:
            self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        for number in (1, 2) if scale else ():
            if scale == "ls":
                holder = nn.Module()
                holder.gamma = nn.Parameter(torch.ones(width))
                setattr(self, f"ls{number}", holder)
            else:
                setattr(self, f"{scale}{number}", nn.Parameter(torch.ones(width)))

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self._scaled(self._attention(self.norm1(x), turn), 1)
        return x + self._scaled(self._mlp(self.norm2(x)), 2)

    def _attention(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        qkv = self.attn.qkv
        bias = qkv.bias * qkv.bias_mask if hasattr(qkv, "bias_mask") else qkv.bias
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in F.linear(x, qkv.weight, bias).chunk(3, 2)
        )
        if turn is not None:
            q, k = _turned(q, *turn), _turned(k, *turn)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
        y: Tensor = self.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        return y

    def _mlp(self, x: Tensor) -> Tensor:
        mlp = self.mlp
        if self.gate is None:
            y: Tensor = mlp.fc2(F.gelu(mlp.fc1(x)))
            return y
        gate, value = mlp.w12(x).chunk(2, -1) if self.gate == "w12" else (mlp.w1(x), mlp.w2(x))
        gated: Tensor = mlp.w3(F.silu(gate) * value)
        return gated

    def _scaled(self, x: Tensor, number: int) -> Tensor:
        if not self.scale:
            return x
        scale: Any = getattr(self, f"{self.scale}{number}")
        return x * (scale.gamma if self.scale == "ls" else scale)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of the last N tokens of x [B, heads, T, d]; the tokens before have none."""
    prefix, patches = x[:, :, : -len(cos)], x[:, :, -len(cos) :]
    first, second = patches.chunk(2, dim=-1)
    return torch.cat([prefix, patches * cos + torch.cat([-second, first], dim=-1) * sin], dim=2)


def plain_vit(seed: int = 0, **options: Any) -> PlainViT:
    """With weights that make every part count: biases, scales and tokens are not at their usual starts."""
    torch.manual_seed(seed)
    network = PlainViT(**options)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, -0.2, 0.2)
            if ("norm" in name and name.endswith("weight")) or "gamma" in name:
                with torch.no_grad():
                    parameter.add_(1)
        elif name.endswith(("token", "tokens", "pos_embed")):
            nn.init.normal_(parameter, std=0.5)
    return network.eval().requires_grad_(False)
