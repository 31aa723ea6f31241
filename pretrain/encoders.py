"""Finds the encoder in a checkpoint of unknown layout, and recognises its architecture from names and shapes.

Projects wrap the same network in many ways (`state_dict`, `module.`, `backbone.`, `encoder_q.`, `teacher`, compiled or
distributed wrappers, any of them nested). So no list of wrappers is kept: wherever tensors with the own names of a
ResNet, a vision transformer or a ConvNeXt stand below a common prefix, there is an encoder; the words of the prefix say
what it is to its project.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain import convnext_layout, vit_layout
from pretrain.architectures import RESNETS, resnet_width
from pretrain.convnext_layout import STEM, is_convnext
from pretrain.tensor_checks import as_float32, check_shapes, clean, dimensions, has_values
from pretrain.tensor_names import common_names
from pretrain.vit_layout import PATCHES, is_vit
from whitebench.errors import UserError

ARCHITECTURES = tuple(RESNETS)
WIDTHS = sorted({resnet_width(arch) for arch in RESNETS})
STEMS = ("imagenet", "cifar", "cifar-pad2", "small")
TRUNK = re.compile(r"(conv1|bn1|layer\d+)\.")
"""The parts of a ResNet that a backbone consists of; the rest of it (fc, projection heads) is not ours."""
ANY_TRUNK = re.compile(f"{TRUNK.pattern}|{vit_layout.TRUNK.pattern}|{convnext_layout.TRUNK.pattern}")
COUNTER = "num_batches_tracked"
SECOND_CHOICE = {"momentum", "target", "ema", "k", "key", "student", "moco"}
"""Words of encoders that their projects do not evaluate; DINO evaluates the teacher, the others the online network.

VISSL keeps MoCo's key encoder in its loss, as `moco_encoder`."""
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What DataParallel, DDP, torch.compile, FSDP and activation checkpointing put into names, also inside a network."""
SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Children of a ResNet that was cut into an `nn.Sequential` (lightly does so): 2 and 3 are ReLU and pooling."""
WITHOUT_POOLING = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4"}
"""The same for a ResNet for small images."""
MAX_DEPTH, MAX_ENTRIES = 16, 1_000_000
"""Of nested mappings; a pickle of a few bytes can hold endlessly many, by naming one mapping again and again."""
MAX_NUMEL = 2**24
"""Elements of a tensor worth comparing (a ResNet-101's largest has 2.4 million); a view of one number can claim any."""


@dataclass(frozen=True)
class Match:
    tensors: dict[str, Tensor]
    """Below its prefix, by torchvision's or timm's names."""
    description: str
    """The prefix of their names, and the encoders that were not chosen."""
    prefix: str = ""


def find_encoder(content: Any, name: str | None = None, anchor: str | None = None) -> Match:
    """The encoder in what a checkpoint holds; of several, the one called `name`, or its project's choice.

    Args:
        anchor: a tensor that every encoder of the file has, where its network is known; None: see `_candidates`.
    Raises:
        UserError: no encoder, none of that name, or several of which none is preferred.
    """
    tensors = _without_wrappers(_all_tensors(content))
    if anchor is None:
        tensors = {common: tensors[name] for name, common in common_names(list(tensors)).items()}
        candidates = _candidates(tensors)
    else:
        prefixes = [n.removesuffix(anchor) for n in tensors if n == anchor or n.endswith(f".{anchor}")]
        candidates = {prefix: _below(prefix, tensors) for prefix in prefixes}
    if not candidates:
        raise UserError(_why_none(tensors))
    prefix = _choose(candidates, name)
    others = [_quoted(other) for other in candidates if other != prefix]
    rest = f" (also there: {', '.join(others)}; choose with --encoder)" if others else ""
    return Match(candidates[prefix], f"encoder {_quoted(prefix)}{rest}", prefix)


def recognise(tensors: Mapping[str, Tensor], stated_stem: str | None = None) -> tuple[str, str, dict[str, Tensor]]:
    """Architecture and stem of `tensors`, which are returned complete, as float32, without head and batch counters.

    Args:
        tensors: by torchvision's names.
        stated_stem: the stem as the file states it; the weights of all 3x3 stems look alike.
    Raises:
        UserError: another network; tensors missing or left over; not floating point; not finite.
    """
    trunk = {name: t for name, t in tensors.items() if TRUNK.match(name) and not name.endswith(COUNTER)}
    stem = _stem(trunk, stated_stem)
    arch = _architecture(trunk)
    check_shapes(arch, tensor_shapes(arch, stem), trunk, "; wide and grouped ResNets are not supported")
    return arch, stem, {name: as_float32(name, trunk[name]) for name in tensor_shapes(arch, stem)}


@cache
def tensor_shapes(arch: str, stem: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a backbone: 100 for a ResNet-18, 265 for a ResNet-50."""
    from pretrain.resnets import build_resnet

    with torch.device("meta"):
        network = build_resnet(arch)
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.startswith("fc.") and not name.endswith(COUNTER)
    }
    if stem != "imagenet":
        shapes["conv1.weight"] = (resnet_width(arch), 3, 3, 3)
    return shapes


def _all_tensors(content: Any) -> dict[str, Tensor]:
    """All tensors in nested mappings, by their dotted path."""
    tensors: dict[str, Tensor] = {}
    queue, entries = deque([("", content, 0)]), 0
    while queue:
        prefix, mapping, depth = queue.popleft()
        for key, value in _entries(mapping) if depth <= MAX_DEPTH else ():
            entries += 1
            if entries > MAX_ENTRIES:
                raise UserError(f"holds more than {MAX_ENTRIES:,} entries in nested mappings: it is not a checkpoint")
            if isinstance(value, Tensor):
                tensors[f"{prefix}{key}"] = value
            elif isinstance(value, np.ndarray):
                if value.dtype.kind in "fiub" and value.dtype.isnative:
                    tensors[f"{prefix}{key}"] = torch.from_numpy(np.array(value))
            else:
                queue.append((f"{prefix}{key}.", value, depth + 1))
    return tensors


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, torch.nn.Module):  # only a file loaded as an unsafe pickle holds one
        value = value.state_dict()
    return value.items() if isinstance(value, Mapping) else ()


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names that the network had before it was wrapped; names that would then coincide stay as they are."""
    plain = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors}
    uses = Counter(plain.values())
    return {name if uses[plain[name]] > 1 else plain[name]: tensor for name, tensor in tensors.items()}


def _candidates(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Prefix -> the tensors below it by torchvision's or timm's names, for each place that looks like an encoder."""
    candidates: dict[str, dict[str, Tensor]] = {}
    for name in tensors:
        if name.endswith("layer1.0.conv1.weight"):
            prefix = name.removesuffix("layer1.0.conv1.weight")
            if f"{prefix}conv1.weight" in tensors:
                candidates[prefix] = _below(prefix, tensors)
        elif name.endswith("4.0.conv1.weight"):
            prefix = name.removesuffix("4.0.conv1.weight")
            stem = tensors.get(f"{prefix}0.weight")
            if stem is not None and stem.ndim == 4 and stem.shape[1] == 3:
                candidates[prefix] = _from_sequential(_below(prefix, tensors))
        elif name.endswith((PATCHES, STEM)):
            prefix = name.removesuffix(PATCHES).removesuffix(STEM)
            below = _below(prefix, tensors)
            if is_vit(below) or is_convnext(below):
                candidates[prefix] = below
    return candidates


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _from_sequential(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    children = SEQUENTIAL if "7.0.conv1.weight" in tensors else WITHOUT_POOLING
    renamed = {}
    for name, tensor in tensors.items():
        child, _, rest = name.partition(".")
        if child in children:
            renamed[f"{children[child]}.{rest}"] = tensor
    return renamed


def _choose(candidates: dict[str, dict[str, Tensor]], name: str | None) -> str:
    if name is not None:
        matching = [prefix for prefix in candidates if name in prefix]
        exact = [prefix for prefix in matching if name in prefix.split(".")]
        matching = exact or matching
    else:
        best = min(_rank(prefix) for prefix in candidates)
        matching = [prefix for prefix in candidates if _rank(prefix) == best]
    matching = [p for n, p in enumerate(matching) if not any(_same(candidates, p, q) for q in matching[:n])]
    if len(matching) != 1:
        names = ", ".join(map(_quoted, matching or candidates))
        problem = "no encoder" if not matching else "more than one encoder"
        called = f" called '{name}'" if name else ""
        raise UserError(f"{problem}{called} in the file; choose with --encoder one of: {names}")
    return matching[0]


def _same(candidates: dict[str, dict[str, Tensor]], one: str, other: str) -> bool:
    """Whether both hold the same backbone: mmselfsup's `backbone` is a copy of its `encoder_q.0` or `online_net.0`."""
    a, b = ({name: t for name, t in candidates[prefix].items() if ANY_TRUNK.match(name)} for prefix in (one, other))
    return a.keys() == b.keys() and all(a[name] is b[name] or _equal(a[name], b[name]) for name in a)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.numel() <= MAX_NUMEL and has_values(a) and has_values(b) and torch.equal(a, b)


def _rank(prefix: str) -> int:
    return len(SECOND_CHOICE.intersection(re.split(r"[._]", prefix.lower())))


def _quoted(prefix: str) -> str:
    return f"'{clean(prefix.rstrip('.'))}'" if prefix else "at top level"


def _why_none(tensors: dict[str, Tensor]) -> str:
    supported = f"supported: {', '.join(ARCHITECTURES)}, vision transformers, ConvNeXt"
    if not tensors:
        return f"holds no tensors, so it is not a checkpoint of a network; {supported}"
    examples = ", ".join(map(clean, list(tensors)[:3]))
    residual = any(re.search(r"(?:^|\.)layer1\.0\.conv1\.weight$", name) for name in tensors)
    if residual and any(re.search(r"(?:^|\.)(?:conv1|stem)\.0\.(?:\d\.)?weight$", name) for name in tensors):
        return f"holds a ResNet with a stem of several convolutions (ResNet-C or -D); {supported}, with one in the stem"
    if any(re.search(r"(?:^|\.)stem\.conv\w*\.weight$", name) for name in tensors):
        return f"holds a network with a stem of its own (stem.conv...), not by torchvision's names; {supported}"
    if any("dwconv" in name or "conv_dw" in name or "token_mixer" in name for name in tensors):
        return f"holds a network of depthwise convolutions by names of its own; {supported}"
    if any("attn.qkv" in name or "attention.query" in name or "self_attn" in name for name in tensors):
        return f"holds a vision transformer by names of its own, or a part of one; {supported}"
    count = f"it has {len(tensors)} tensors: {examples}, ..."
    return f"holds no ResNet, vision transformer or ConvNeXt by names that are known ({count}); {supported}"


def _stem(trunk: dict[str, Tensor], stated: str | None) -> str:
    first = trunk.get("conv1.weight")
    shape = None if first is None else tuple(first.shape)
    if stated is not None and stated not in STEMS:
        raise UserError(f"states an unknown stem '{stated}'; choose one of: {', '.join(STEMS)}")
    if shape in [(width, 3, 7, 7) for width in WIDTHS]:
        stem = "imagenet"
    elif shape in [(width, 3, 3, 3) for width in WIDTHS]:
        stem = stated if stated not in (None, "imagenet") else "cifar"
    else:
        wide = "; wide ResNets are not supported" if shape and len(shape) == 4 and shape[0] > 64 else ""
        problem = f"conv1.weight is {dimensions(shape)}: neither a 7x7 nor a 3x3 stem of 64 channels from RGB"
        raise UserError(f"{problem}{wide}")
    if stated is not None and stated != stem:
        raise UserError(f"states the stem '{stated}', but conv1.weight is {dimensions(shape)}")
    return stem


def _architecture(trunk: dict[str, Tensor]) -> str:
    """By the number of blocks of each stage, whether they are bottlenecks, and the stem's channels."""
    blocks = [len({name.split(".")[1] for name in trunk if name.startswith(f"layer{k}.")}) for k in (1, 2, 3, 4)]
    bottleneck = any(name.endswith(".conv3.weight") for name in trunk)
    width = len(trunk["conv1.weight"])
    for arch in (arch for arch in ARCHITECTURES if resnet_width(arch) == width):
        expected = tensor_shapes(arch, "imagenet")
        counts = [len({name.split(".")[1] for name in expected if name.startswith(f"layer{k}.")}) for k in (1, 2, 3, 4)]
        if blocks == counts and bottleneck == ("layer1.0.conv3.weight" in expected):
            return arch
    kind = "bottleneck" if bottleneck else "basic"
    raise UserError(f"a ResNet of {blocks} {kind} blocks is not known; known are {', '.join(ARCHITECTURES)}")
