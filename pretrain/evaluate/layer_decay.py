"""Layer-wise decay of learning rates: a layer's rate is decay^d of the head's, d layers below it.

Layers are numbered as timm numbers them (`timm.optim.param_groups_layer_decay`, after BEiT's): the stem is 0, then each
residual or transformer block, then the head; a ViT's last norm belongs to its last block.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import nn

RESNET: Mapping[str, Any] = {"stem": r"^conv1|bn1|maxpool", "blocks": r"^layer(\d+)\.(\d+)"}
"""Patterns of torchvision's names, in the form of timm's `group_matcher`."""
WITH_PREVIOUS = 99999
"""Ends the position of parameters that belong to the layer before them, in timm's patterns."""
Position = tuple[float, ...]
UNMATCHED: Position = (float("inf"),)


def layer_numbers(backbone: nn.Module) -> tuple[dict[str, int], int]:
    """Parameter name -> number of its layer, from 0; and the head's, which is that of all that no pattern matches."""
    prefix, matcher = _matcher(backbone)
    positions = {name: matcher(name.removeprefix(prefix)) for name, _ in backbone.named_parameters()}
    numbers: dict[Position, int] = {}
    number = -1
    for position in sorted({*positions.values(), UNMATCHED}):
        number += number < 0 or position[-1] != WITH_PREVIOUS
        numbers[position] = number
    return {name: numbers[position] for name, position in positions.items()}, numbers[UNMATCHED]


def undecayed_names(backbone: nn.Module) -> set[str]:
    """Names of parameters of several dimensions that the network exempts from weight decay (position embeddings, say).

    A network says so by `no_weight_decay()`, as timm's do.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in backbone.named_modules()
        if callable(getattr(module, "no_weight_decay", None))
        for name in module.no_weight_decay()
    }


def parameter_groups(
    backbone: nn.Module, head: nn.Module, *, rate: float, weight_decay: float, layer_decay: float, decay_1d: bool
) -> list[dict[str, Any]]:
    """Groups for an optimizer, one per layer and kind; each keeps its base rate under "base".

    Args:
        rate: of the head.
        decay_1d: whether biases and norms (parameters of one dimension) decay, too.
    """
    (numbers, last), exempt = layer_numbers(backbone), undecayed_names(backbone)
    named = [(numbers[name], name in exempt, p) for name, p in backbone.named_parameters() if p.requires_grad]
    named += [(last, False, parameter) for parameter in head.parameters()]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for layer, is_exempt, parameter in named:
        decays = not is_exempt and (decay_1d or parameter.ndim > 1)
        base = rate * layer_decay ** (last - layer)
        new = {"params": [], "lr": base, "base": base, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((layer, decays), new)["params"].append(parameter)
    return list(groups.values())


def _matcher(backbone: nn.Module) -> tuple[str, Callable[[str], Position]]:
    """The prefix of the part that says how its layers are matched, and name -> position of the layer."""
    for prefix, module in backbone.named_modules():
        if callable(getattr(module, "group_matcher", None)):
            return f"{prefix}." if prefix else "", _by_patterns(module.group_matcher(coarse=False))
    return "", _by_patterns(RESNET)


def _by_patterns(patterns: Mapping[str, Any] | Callable[[str], Any]) -> Callable[[str], Position]:
    if not isinstance(patterns, Mapping):
        return lambda name: _position_of(patterns(name))
    compiled = list(_compiled(patterns))

    def position(name: str) -> Position:
        for pattern, start, end in compiled:
            match = pattern.match(name)
            if match:
                return (*start, *(float(part) for part in match.groups() if part is not None), *end)
        return UNMATCHED

    return position


def _compiled(patterns: Mapping[str, Any]) -> Iterator[tuple[re.Pattern[str], Position, Position]]:
    """Pattern, what a position begins with, and what it ends with."""
    for number, entry in enumerate(patterns.values()):
        for pattern, end in [(entry, None)] if isinstance(entry, str) else entry or ():
            yield re.compile(pattern), (float(number),), tuple(map(float, end or ()))


def _position_of(value: float | Collection[float]) -> Position:
    return tuple(value) if isinstance(value, Collection) else (value,)
