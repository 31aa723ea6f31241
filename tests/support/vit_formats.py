"""Checkpoints of vision transformers, made here in each project's own layout, and the table of what is proven of each.

Each format has the network whose tensors the file holds, built from another implementation than the one that reads it:
plain torch (`tests.support.plain_vit`), torchvision's or lightly's own module.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.checkpoint import Backbone, read_backbone
from pretrain.evaluate.features import load_backbone
from tests.support.formats import lightning, trained, under
from tests.support.plain_vit import PlainViT, plain_vit

Tensors = dict[str, Tensor]
HEAD = {"weight": torch.ones(8, 192), "bias": torch.ones(8)}


@dataclass(frozen=True)
class VitFormat:
    project: str
    source: str
    layout: Callable[[Tensors, Tensors], Any]
    """What the file holds, of the network that the project evaluates and of its other one."""
    other: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    """Options of `plain_vit`, or {"build": a function of the seed}."""

    def build(self, seed: int) -> nn.Module:
        if "build" in self.network:
            network: nn.Module = self.network["build"](seed)
            return network
        return plain_vit(seed, **self.network)


def decoder(width: int = 64) -> Tensors:
    """As MAE has it."""
    return {
        "mask_token": torch.ones(1, 1, width),
        "decoder_pos_embed": torch.ones(1, 17, width),
        "decoder_embed.weight": torch.ones(width, 192),
        "decoder_blocks.0.norm1.weight": torch.ones(width),
        "decoder_norm.weight": torch.ones(width),
        "decoder_pred.weight": torch.ones(192, width),
    }


def chunked(tensors: Tensors) -> Tensors:
    """DINOv2's blocks for FSDP: blocks.<chunk>.<number>."""
    return {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", name): tensor for name, tensor in tensors.items()}


def transformers(tensors: Tensors, dinov2: bool = False) -> Tensors:
    """By the names of transformers' ViTModel, or of its Dinov2Model."""
    block = r"^blocks\.(\d+)\."
    rules = [
        (r"^cls_token$", "embeddings.cls_token"),
        (r"^register_tokens$", "embeddings.register_tokens"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^norm\.", "layernorm."),
        (block + r"attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
        (block + r"ls(\d)\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
        (block + r"mlp\.w12\.", r"encoder.layer.\1.mlp.weights_in."),
        (block + r"mlp\.w3\.", r"encoder.layer.\1.mlp.weights_out."),
    ]
    if not dinov2:
        rules += [
            (block + r"norm1\.", r"encoder.layer.\1.layernorm_before."),
            (block + r"norm2\.", r"encoder.layer.\1.layernorm_after."),
            (block + r"mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
            (block + r"mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
        ]
    rules.append((block, r"encoder.layer.\1."))
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        match = re.match(block + r"attn\.qkv\.(\w+)$", name)
        if match:
            for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"encoder.layer.{match[1]}.attention.attention.{part}.{match[2]}"] = value
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def transformers_dinov3(tensors: Tensors) -> Tensors:
    """By the names of transformers' DINOv3ViTModel: keys have no bias, gates are called gate_proj."""
    names = {"w1": "gate_proj", "w2": "up_proj", "w3": "down_proj", "fc1": "up_proj", "fc2": "down_proj"}
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        match = re.match(r"^blocks\.(\d+)\.attn\.qkv\.(\w+)$", name)
        if match and match[2] != "bias_mask":
            for part, value in zip("qkv", tensor.chunk(3), strict=True):
                if (part, match[2]) != ("k", "bias"):
                    renamed[f"layer.{match[1]}.attention.{part}_proj.{match[2]}"] = value
        if match or name.startswith("rope_embed"):
            continue
        name = re.sub(r"\.mlp\.(w1|w2|w3|fc1|fc2)\.", lambda match: f".mlp.{names[match[1]]}.", name)
        name = re.sub(r"^blocks\.", "layer.", name).replace(".attn.proj.", ".attention.o_proj.")
        name = re.sub(r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1", name)
        name = name.replace("patch_embed.proj.", "embeddings.patch_embeddings.").replace(
            "storage_tokens", "register_tokens"
        )
        renamed[f"embeddings.{name}" if name in ("cls_token", "register_tokens") else name] = tensor
    return renamed


def beit_biases(tensors: Tensors) -> Tensors:
    """q_bias and v_bias in place of qkv.bias, whose keys' part must be zero."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.qkv.bias"):
            q, _, v = tensor.chunk(3)
            renamed[name.replace("qkv.bias", "q_bias")], renamed[name.replace("qkv.bias", "v_bias")] = q, v
        else:
            renamed[name] = tensor
    return renamed


def without_key_bias(seed: int) -> PlainViT:
    network = plain_vit(seed)
    for block in network.blocks:
        block.attn.qkv.bias[192:384] = 0
    return network


def zero_biases(seed: int) -> PlainViT:
    """DINOv3's distilled networks: masked biases that are all zero."""
    network = plain_vit(seed, registers=4, scale="ls", rotary=True)
    for block in network.blocks:
        block.attn.qkv.bias.zero_()
    return network


def moco_v3_small(seed: int) -> PlainViT:
    """12 heads, positions as its code computes them: the row first, zero for the class token."""
    network = plain_vit(seed, width=384, heads=12)
    omega = 1 / 10000 ** (torch.arange(96) / 96)
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (row, column)]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    network.pos_embed.copy_(torch.cat([torch.zeros(1, 384), table])[None])
    return network


def torchvision_vit(seed: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(seed)
    network = VisionTransformer(32, 8, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768)
    nn.init.normal_(network.class_token, std=0.5)
    return network.eval().requires_grad_(False)


def lightly_vit(seed: int) -> nn.Module:
    """lightly's masked vision transformer, which wraps timm's."""
    from lightly.models.modules import MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3)
    network: nn.Module = MaskedVisionTransformerTIMM(vit)
    return network.eval().requires_grad_(False)


def registers_official() -> dict[str, Any]:
    return {"registers": 4, "scale": "ls"}


FORMATS = [
    VitFormat("timm ViT", "huggingface/pytorch-image-models, models/vision_transformer.py", lambda q, k: {
        **q, **under("head.", HEAD)}),
    VitFormat("timm training, with EMA", "huggingface/pytorch-image-models, train.py", lambda q, k: {
        "epoch": 9, "arch": "vit_tiny_patch16_224", "state_dict": q, "state_dict_ema": k}, "state_dict_ema"),
    VitFormat("DINO", "facebookresearch/dino, main_dino.py", lambda q, k: {
        "student": under("module.", {**under("backbone.", k), **under("head.mlp.0.", HEAD)}),
        "teacher": {**under("backbone.", q), **under("head.mlp.0.", HEAD)}, "epoch": 3}, "student"),
    VitFormat("DINO, backbone alone", "facebookresearch/dino, hubconf.py", lambda q, k: q),
    VitFormat("iBOT", "bytedance/ibot, main_ibot.py", lambda q, k: {
        "student": under("module.backbone.", {**k, "masked_embed": torch.ones(1, 192)}),
        "teacher": {**under("backbone.", q), **under("head.mlp.0.", HEAD)}, "epoch": 3}, "student"),
    VitFormat("iBOT with layer scale", "bytedance/ibot, models/vision_transformer.py (init_values)", lambda q, k: {
        "state_dict": {**q, "masked_embed": torch.ones(1, 192)}}, network={"scale": "gamma_"}),
    VitFormat("MoCo v3, ViT-S", "facebookresearch/moco-v3, main_moco.py", lambda q, k: {**trained({
        **under("module.base_encoder.", q), **under("module.momentum_encoder.", k),
        **under("module.base_encoder.head.0.", HEAD), **under("module.predictor.0.", HEAD)}), "arch": "vit_small"},
        "momentum_encoder", {"build": moco_v3_small}),
    VitFormat("MoCo v3, ViT-S, backbone alone", "facebookresearch/moco-v3", lambda q, k: {"state_dict": q},
              network={"build": moco_v3_small}),
    VitFormat("MAE", "facebookresearch/mae, main_pretrain.py", lambda q, k: {
        "model": {**q, **decoder()}, "optimizer": {"state": {}}, "epoch": 3, "scaler": {}}),
    VitFormat("q_bias and v_bias", "microsoft/unilm, beit (its form of biases)", lambda q, k: {
        "model": beit_biases(q)}, network={"build": without_key_bias}),
    VitFormat("DINOv2", "facebookresearch/dinov2, hub", lambda q, k: {
        **q, "mask_token": torch.ones(1, 192)}, network={"scale": "ls"}),
    VitFormat("DINOv2 with registers", "facebookresearch/dinov2, hub", lambda q, k: {
        **q, "mask_token": torch.ones(1, 192)}, network=registers_official()),
    VitFormat("DINOv2, SwiGLU", "facebookresearch/dinov2, layers/swiglu_ffn.py", lambda q, k: {
        **q, "mask_token": torch.ones(1, 192)}, network={"scale": "ls", "gate": "w12"}),
    VitFormat("DINOv2, training", "facebookresearch/dinov2, train/ssl_meta_arch.py (chunked blocks)", lambda q, k: {
        "model": {**under("teacher.backbone.", chunked(q)), **under("student.backbone.", chunked(k)),
                  **under("teacher.dino_head.mlp.0.", HEAD)}}, "student", {"scale": "ls"}),
    VitFormat("DINOv3", "facebookresearch/dinov3, models/vision_transformer.py", lambda q, k: {
        **q, "mask_token": torch.ones(1, 192)}, network={"registers": 4, "scale": "ls", "rotary": True}),
    VitFormat("DINOv3, biases zero", "facebookresearch/dinov3 (distilled networks)", lambda q, k: {
        **q, "mask_token": torch.ones(1, 192)}, network={"build": zero_biases}),
    VitFormat("DINOv3, SwiGLU", "facebookresearch/dinov3, layers/ffn_layers.py", lambda q, k: {
        **q, "mask_token": torch.ones(1, 192)}, network={"registers": 4, "scale": "ls", "rotary": True, "gate": "w1"}),
    VitFormat("LeJEPA", "rbalestr-lab/lejepa, MINIMAL.md", lambda q, k: {
        **under("backbone.", {**q, **under("head.", HEAD)}), **under("proj.0.", HEAD)}),
    VitFormat("stable-pretraining", "galilai-group/stable-pretraining", lambda q, k: lightning({
        **under("backbone.", q), **under("projector.0.", HEAD), **under("callbacks_modules.probe.", HEAD)})),
    VitFormat("VISReg", "HaiyuWu/visreg", lambda q, k: {
        "model": under("module.", {**under("backbone.", q), **under("projector.0.", HEAD)}), "epoch": 3}),
    VitFormat("solo-learn", "vturrisi/solo-learn", lambda q, k: lightning({
        **under("backbone.", q), **under("momentum_backbone.", k), **under("classifier.", HEAD)}), "momentum_backbone"),
    VitFormat("lightly", "lightly-ai/lightly, benchmarks/imagenet/vitb16", lambda q, k: lightning({
        **under("backbone.", q), **under("online_classifier.linear.", HEAD)}), network={"build": lightly_vit}),
    VitFormat("lightly DINO", "lightly-ai/lightly, benchmarks/imagenet/vitb16/dino.py", lambda q, k: lightning({
        **under("teacher_backbone.", q), **under("student_backbone.", k)}), "student_backbone"),
    VitFormat("torchvision vit_b_16", "pytorch/vision, torchvision/models/vision_transformer.py", lambda q, k: q,
              network={"build": torchvision_vit}),
    VitFormat("transformers ViT", "huggingface/transformers, models/vit", lambda q, k: {
        **under("vit.", transformers(q)), **under("classifier.", HEAD)}),
    VitFormat("transformers Dinov2 with registers", "huggingface/transformers, models/dinov2_with_registers",
              lambda q, k: {**transformers(q, dinov2=True), "embeddings.mask_token": torch.ones(1, 192)},
              network=registers_official()),
    VitFormat("transformers Dinov2, SwiGLU", "huggingface/transformers, models/dinov2", lambda q, k: transformers(
        q, dinov2=True), network={"scale": "ls", "gate": "w12"}),
    VitFormat("transformers DINOv3", "huggingface/transformers, models/dinov3_vit", lambda q, k: {
        **transformers_dinov3(q), "embeddings.mask_token": torch.ones(1, 1, 192)},
        network={"registers": 4, "scale": "ls", "rotary": True}),
]  # fmt: skip


def tokens(network: Any, images: Tensor) -> Tensor:
    """[B, T, D] after the final norm, of any of the networks above."""
    output: Tensor
    if hasattr(network, "conv_proj"):  # torchvision's
        x = network._process_input(images)
        output = network.encoder(torch.cat([network.class_token.expand(len(x), -1, -1), x], dim=1))
    else:
        output = network.encode(images) if hasattr(network, "encode") else network(images)
    return output


def photos(side: int = 32) -> Tensor:
    """scikit-learn's two photos, float32 [2, 3, side, side]."""
    from sklearn.datasets import load_sample_images

    pixels = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images])
    scaled = F.interpolate(pixels.permute(0, 3, 1, 2).float(), (side, side), mode="area")
    return scaled / 128 - 1


def tokens_of(backbone: Backbone, images: Tensor) -> Tensor:
    """[B, T, D] (or maps, of a ConvNeXt) of timm's network, into which every tensor fits."""
    network: Any = load_backbone(backbone).eval()
    network.load_state_dict(backbone.tensors, strict=True)
    with torch.no_grad():
        features: Tensor = network.forward_features(images)
    return features


HEADER = """
## Vision transformers and ConvNeXt

Two blocks of width 192 (MoCo v3: 384), written in each project's layout, read, and loaded into timm's network. Tokens:
the largest difference between all tokens of two photos after the final norm, of timm's network and of another
implementation (plain torch in `tests/support/plain_vit.py`, torchvision's, lightly's), in parts of the largest value.

Each tensor is used, or named in the message with the reason why features do not depend on it, or the file is refused:
distillation tokens, relative position biases, attention pooling, unknown tokens, grids of positions that are not
square, rotary positions of another base, biases of keys in DINOv3's networks. LayerScale, registers, gated layers,
q_bias and v_bias, masked biases and chunked blocks are read. Position embeddings stay at their size in the file
and are resized (bicubic, anti-aliased) where images have another one; DINO's and DINOv2's own codes resize without
anti-aliasing and with an offset of 0.1, so that features at other sizes differ a little from theirs.

**What this does not prove**: the number of attention heads, which no tensor shows. It is taken from `num_heads` in the
file, from a timm name in it or a `config.json` next to it (`num_attention_heads`), or else from the width, and the
message says so; MoCo v3's ViT-S, with 12 heads, is recognised by its names or its fixed positions. transformers' ViT
has layer norms with an epsilon of 1e-12, which are read with 1e-6.

ConvNeXt (1 and 2) is read by timm's, its authors' and torchvision's names, with equal feature maps in
`tests/pretrain/test_vit_checkpoints.py`.

| format | layout defined in | taken | by --encoder also | tensors used | not used | tokens |
|---|---|---|---|---|---|---|
"""


def table() -> str:
    """Markdown: for each format, what was recognised; every file is written and read here."""
    lines = HEADER.splitlines()
    images = photos()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ckpt.pth"
        for form in FORMATS:
            chosen, other = form.build(1), form.build(2)
            torch.save(form.layout(dict(chosen.state_dict()), dict(other.state_dict())), path)
            backbone, expected = read_backbone(path), tokens(chosen, images)
            difference = float((tokens_of(backbone, images) - expected).abs().max() / expected.abs().max())
            described, *remarks = backbone.origin.partition(", encoder ")[2].split("; ")
            taken = described.partition(" (also")[0].replace("'", "`")
            dropped = ", ".join(r.removeprefix("not used: ").partition(" (")[0] for r in remarks if "not used" in r)
            cells = (form.project, form.source, taken, form.other and f"`{form.other}`", str(len(backbone.tensors)))
            lines.append(f"| {' | '.join(cells)} | {dropped} | {difference:.0g} |")
    return "\n".join(lines)
