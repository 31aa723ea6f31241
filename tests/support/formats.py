"""Checkpoints of the field, made here in each project's own layout, and the table of what is proven of each.

python -m tests.support.formats [resnet50] > docs/formats.md
"""

import argparse
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.resnets import build_resnet

Tensors = dict[str, Tensor]
HEAD = {"weight": torch.ones(8, 512), "bias": torch.ones(8)}


@dataclass(frozen=True)
class Format:
    project: str
    source: str
    """Where the layout is defined."""
    layout: Callable[[Tensors, Tensors], Any]
    """What the file holds, of the encoder that the project evaluates and of its other one."""
    other: str = ""
    """A name for --encoder that takes the other one."""
    kind: str = "zip"
    """How the file is written: torch.save's zip or old form, or safetensors."""

    def write(self, path: Path, chosen: Tensors, other: Tensors) -> None:
        from safetensors.torch import save_file

        content = self.layout(chosen, other)
        if self.kind == "safetensors":
            save_file(content, path)
        else:
            torch.save(content, path, _use_new_zipfile_serialization=self.kind == "zip")


def resnet(arch: str = "resnet18", seed: int = 0) -> Tensors:
    """A seeded state dict as torchvision makes it, with statistics and norms that are not the trivial ones."""
    torch.manual_seed(seed)
    state = build_resnet(arch).state_dict()
    for name, tensor in state.items():
        if name.endswith(("running_mean", "bn1.bias", "bn2.bias", "bn3.bias")):
            tensor.uniform_(-0.2, 0.2)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return state


def trunk(state: Tensors) -> Tensors:
    return {name: t for name, t in state.items() if not name.startswith("fc.") and "num_batches" not in name}


def headless(state: Tensors) -> Tensors:
    return {name: t for name, t in state.items() if not name.startswith("fc.")}


def under(prefix: str, state: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def sequential(state: Tensors) -> Tensors:
    """As `nn.Sequential(*list(resnet.children())[:-1])` names it."""
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    parts = ((name.partition("."), tensor) for name, tensor in state.items())
    return {f"{places[first]}.{rest}": tensor for (first, _, rest), tensor in parts if first in places}


def checkpointed(state: Tensors) -> Tensors:
    """As torch's wrapper for activation checkpointing names each block."""
    inside = {name: name.split(".") for name in state}
    return {
        ".".join([*parts[:2], "_checkpoint_wrapped_module", *parts[2:]] if parts[0].startswith("layer") else parts): (
            state[name]
        )
        for name, parts in inside.items()
    }


def arch_of(state: Tensors) -> str:
    return "resnet50" if any("conv3" in name for name in state) else "resnet18"


def trained(state: Tensors) -> dict[str, Any]:
    """As the training scripts of MoCo's family save."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}
    return {"epoch": 100, "arch": arch_of(state), "state_dict": OrderedDict(state), "optimizer": optimizer}


def lightning(state: Tensors) -> dict[str, Any]:
    """As Lightning's Trainer saves."""
    return {
        "epoch": 99, "global_step": 1000, "pytorch-lightning_version": "2.4.0", "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 100}}}}, "callbacks": {},
        "optimizer_states": [{"state": {}, "param_groups": []}], "lr_schedulers": [], "hyper_parameters": {"lr": 0.3},
    }  # fmt: skip


def vissl(state: Tensors, loss: Tensors) -> dict[str, Any]:
    trunk_of = under("_feature_blocks.", headless(state))
    model = {"model": {"trunk": trunk_of, "heads": under("0.clf.0.", HEAD)}, "meta": {}}
    return {"phase_idx": 9, "classy_state_dict": {"base_model": model, "loss": loss, "train_phase_idx": 9}}


QUEUE = {"queue": torch.ones(4, 4), "queue_ptr": torch.zeros(1, dtype=torch.long)}
FORMATS = [
    Format("ours, checkpoint.pt", "pretrain/train.py", lambda q, k: {
        "step": 3, "method": {**under("encoder.backbone.", q), **under("target.network.backbone.", k)}}, "target"),
    Format("ours, backbone.safetensors", "pretrain/checkpoint.py", lambda q, k: trunk(q), kind="safetensors"),
    Format("torchvision", "pytorch/vision, torchvision/models/resnet.py", lambda q, k: OrderedDict(q)),
    Format("timm ResNet", "huggingface/pytorch-image-models, models/resnet.py", lambda q, k: q, kind="safetensors"),
    Format("timm training, with EMA", "huggingface/pytorch-image-models, train.py", lambda q, k: {
        "epoch": 9, "arch": arch_of(q), "state_dict": q, "state_dict_ema": k, "version": 2, "metric": 71.3,
        "args": argparse.Namespace(model=arch_of(q))}, "state_dict_ema"),
    Format("MoCo, PCL", "facebookresearch/moco; salesforce/PCL", lambda q, k: trained(
        under("module.", {**under("encoder_q.", q), **under("encoder_k.", k), **QUEUE})), "encoder_k"),
    Format("SimSiam", "facebookresearch/simsiam", lambda q, k: trained(
        under("module.", {**under("encoder.", q), **under("predictor.0.", HEAD)}))),
    Format("SwAV", "facebookresearch/swav", lambda q, k: trained(
        under("module.", {**headless(q), **under("projection_head.0.", HEAD), "prototypes.weight": torch.ones(8, 8)}))),
    Format("DINO", "facebookresearch/dino, main_dino.py", lambda q, k: {
        "student": under("module.", {**under("backbone.", headless(k)), **under("head.mlp.0.", HEAD)}),
        "teacher": under("module.", {**under("backbone.", headless(q)), **under("head.mlp.0.", HEAD)}),
        "epoch": 100, "dino_loss": {"center": torch.zeros(1, 8)},
        "args": argparse.Namespace(arch=arch_of(q), patch_size=16)}, "student"),
    Format("DINO, teacher not wrapped", "facebookresearch/dino, main_dino.py", lambda q, k: {
        "student": under("module.backbone.", headless(k)), "teacher": under("backbone.", headless(q))}, "student"),
    Format("Barlow Twins, VICReg", "facebookresearch/barlowtwins; facebookresearch/vicreg", lambda q, k: {
        "epoch": 99, "model": under("module.", {**under("backbone.", q), **under("projector.0.", HEAD)})}),
    Format("VICReg, backbone alone", "facebookresearch/vicreg, resnet50.pth", lambda q, k: headless(q)),
    Format("BYOL", "sthalles/PyTorch-BYOL", lambda q, k: {
        "online_network_state_dict": under("encoder.", q),
        "target_network_state_dict": under("encoder.", k)}, "target"),
    Format("BYOL, one module", "lucidrains/byol-pytorch", lambda q, k: {
        **under("online_encoder.net.", q), **under("target_encoder.net.", k)}, "target"),
    Format("INTL", "winci-ai/INTL", lambda q, k: trained(
        under("module.", {**under("backbone.", headless(q)), **under("projection.0.", HEAD)}))),
    Format("INTL with EMA", "winci-ai/INTL", lambda q, k: trained(under("module.", {
        **under("momentum_backbone.", headless(k)), **under("backbone.", headless(q))})), "momentum_backbone"),
    Format("CW-RGP, ImageNet", "winci-ai/CW-RGP, ImageNet", lambda q, k: trained(
        under("module.", {**under("model.", headless(q)), **under("head.0.", HEAD)}))),
    Format("CW-RGP, small sets", "winci-ai/CW-RGP, base", lambda q, k: trained(
        {**under("model.module.", headless(q)), **under("head.0.", HEAD)})),
    Format("ReSA", "winci-ai/resa", lambda q, k: trained(
        under("module.", {**under("momentum_encoder.", k), **under("encoder.", q)})), "momentum_encoder"),
    Format("W-MSE", "htdt/self-supervised", lambda q, k: {
        **under("model.", headless(q)), **under("head.0.", HEAD)}),
    Format("W-MSE, DataParallel", "htdt/self-supervised", lambda q, k: {
        **under("model.module.", headless(q)), **under("head.module.0.", HEAD)}),
    Format("solo-learn", "vturrisi/solo-learn", lambda q, k: lightning({
        **under("backbone.", headless(q)), **under("momentum_backbone.", headless(k)),
        **under("projector.0.", HEAD), **under("classifier.", HEAD)}), "momentum_backbone"),
    Format("solo-learn, older", "vturrisi/solo-learn", lambda q, k: lightning({
        **under("encoder.", headless(q)), **under("momentum_encoder.", headless(k))}), "momentum_encoder"),
    Format("lightly", "lightly-ai/lightly, benchmarks/imagenet/resnet50", lambda q, k: lightning({
        **under("backbone.", headless(q)), **under("projection_head.layers.0.", HEAD),
        **under("online_classifier.linear.", HEAD)})),
    Format("lightly, cut to a Sequential", "lightly-ai/lightly, examples", lambda q, k: lightning({
        **under("backbone.", sequential(q)), **under("backbone_momentum.", sequential(k))}), "backbone_momentum"),
    Format("lightly DINO", "lightly-ai/lightly, benchmarks/imagenet/resnet50/dino.py", lambda q, k: lightning({
        **under("backbone.", headless(q)), **under("student_backbone.", headless(k))}), "student_backbone"),
    Format("mmselfsup", "open-mmlab/mmselfsup, 1.x", lambda q, k: {
        "meta": {"epoch": 200}, "state_dict": {**under("backbone.", headless(q)), **under("neck.fc0.", HEAD)},
        "message_hub": {"log_scalars": {}}}),
    Format("mmselfsup MoCo", "open-mmlab/mmselfsup, 0.x (encoder_q[0] is its backbone, too)", lambda q, k: {
        "meta": {}, "state_dict": {**under("encoder_q.0.", headless(q)), **under("encoder_k.0.", headless(k)),
                                   **under("backbone.", headless(q)), **QUEUE}}, "encoder_k"),
    Format("mmselfsup BYOL", "open-mmlab/mmselfsup, 1.x", lambda q, k: {
        "meta": {}, "state_dict": {**under("backbone.", headless(q)), "target_net.steps": torch.tensor(3),
                                   **under("target_net.module.0.", headless(k))}}, "target_net"),
    Format("mmselfsup, backbone extracted", "open-mmlab/mmselfsup, tools", lambda q, k: {
        "state_dict": headless(q), "meta": {}}),
    Format("VISSL", "facebookresearch/vissl", lambda q, k: vissl(q, {})),
    Format("VISSL MoCo", "facebookresearch/vissl, losses/moco_loss.py", lambda q, k: vissl(
        q, {**QUEUE, **under("moco_encoder.trunk._feature_blocks.", headless(k))}), "moco_encoder"),
    Format("DDP", "torch.nn.parallel", lambda q, k: {"model": under("module.", q)}),
    Format("compiled inside DDP", "torch.compile", lambda q, k: {"model": under("module._orig_mod.backbone.", q)}),
    Format("DDP inside compiled", "torch.compile", lambda q, k: under("_orig_mod.module.", q)),
    Format("DDP of DataParallel of compiled parts", "torch.nn.parallel", lambda q, k: {
        "net": under("module.module.encoder._orig_mod.", {
            name.replace("layer3.", "layer3._orig_mod.module."): t for name, t in q.items()})}),
    Format("FSDP, checkpointed blocks", "torch.distributed", lambda q, k: under(
        "_fsdp_wrapped_module.backbone.", checkpointed(q))),
    Format("Lightning, half precision", "Lightning-AI/pytorch-lightning", lambda q, k: lightning(
        under("model.", {name: t.half() if t.is_floating_point() else t for name, t in q.items()}))),
    Format("torch.save's old form", "torch.serialization", lambda q, k: {"state_dict": q}, kind="old"),
    Format("safetensors with prefixes", "huggingface/safetensors", lambda q, k: under(
        "module.backbone.", q), kind="safetensors"),
]  # fmt: skip


HEADER = """# Checkpoints that are recognised

Checkpoints of a {arch}, written in each project's layout by `python -m tests.support.formats {arch}`, read,
converted and loaded into Detectron2's own ResNet. Maps: the largest difference between feature maps of two
photos, res2 to res5, of torchvision's ResNet with these tensors and of Detectron2's, in parts of a map's largest
value.

**What this does not prove**: that the network which was trained is that ResNet. Anti-aliased (timm's resnetaa and
resnetblur) and dilated ResNets, strides in the 1x1 convolutions (OpenMMLab's caffe style), another activation or
another epsilon of batch norm leave no trace in names and shapes. Where a checkpoint names its network (`arch`,
`args.arch`, `hyper_parameters`, a `config.json` in its folder, OpenMMLab's `meta.config`), such a network is
refused; where it names a ResNet of timm and timm is installed, timm's network is the one that is compared.

Also read, with tests in `tests/pretrain/test_foreign_files.py`: Detectron2's own `model_final.pth` and pickles in its
form (`d2.pkl`, those of MoCo's converter), folders and parts of the Hugging Face hub, transformers' ResNet names, every
pickle protocol. argparse.Namespace, numpy's values, paths, OmegaConf and yacs beside the weights need no
`--unsafe-pickle`.

| format | layout defined in | taken | by --encoder also | tensors | left over | maps |
|---|---|---|---|---|---|---|
"""


def table(arch: str) -> str:
    """Markdown: for each format, what was recognised and proven; every file is written, read and converted here."""
    from pretrain.checkpoint import read_backbone
    from transfer.convert import converted, load_proven
    from transfer.detectron import detectron2_resnet
    from transfer.feature_maps import compare_maps

    chosen, other, network = resnet(arch, seed=1), resnet(arch, seed=2), detectron2_resnet(arch)
    lines = HEADER.format(arch=arch).splitlines()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ckpt"
        for form in FORMATS:
            form.write(path, chosen, other)
            backbone = read_backbone(path)
            content = converted(backbone)
            proof = load_proven(network, content)
            worst = max(value for value in compare_maps(backbone, network, content).values() if value is not None)
            taken = (
                backbone.origin.partition(", encoder ")[2].partition(" (also")[0].partition("; ")[0].replace("'", "`")
            )
            cells = (form.project, form.source, taken, form.other and f"`{form.other}`")
            counts = f"{proof.matched} of {proof.expected} | {proof.left_over} | {worst:.1g}"
            lines.append(f"| {' | '.join(cells)} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    from tests.support.vit_formats import table as table_of_transformers

    print(table(sys.argv[1] if len(sys.argv) > 1 else "resnet18"))
    print(table_of_transformers())
