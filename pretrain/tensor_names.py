"""Tensor names of other libraries' ResNets, translated to torchvision's.

Detectron2 (and the converters of MoCo and others) say `stem.conv1.norm`, `res2.0.shortcut`; transformers says
`embedder.embedder.convolution`, `encoder.stages.0.layers.0.layer.1.normalization`.
"""

import re
from collections.abc import Callable

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
DETECTRON2: tuple[Rule, ...] = (
    (r"(^|\.)roi_heads\.res5\.", r"\1backbone.res5."),  # of a C4 detector: the stage belongs to its head
    (r"(^|\.)stem\.((?:conv1|bn1)\.)", r"\1\2"),
    (r"(^|\.)res([2-5])\.(?=\d)", lambda match: f"{match[1]}layer{int(match[2]) - 1}."),
    (r"(^|\.)conv([123])\.norm\.", r"\1bn\2."),
    (r"(^|\.)shortcut\.norm\.", r"\1downsample.1."),
    (r"(^|\.)shortcut\.(weight|bias)$", r"\1downsample.0.\2"),
)
TRANSFORMERS: tuple[Rule, ...] = (
    (r"(^|\.)embedder\.embedder\.convolution\.", r"\1conv1."),
    (r"(^|\.)embedder\.embedder\.normalization\.", r"\1bn1."),
    (r"(^|\.)encoder\.stages\.(\d)\.layers\.", lambda match: f"{match[1]}layer{int(match[2]) + 1}."),
    (r"\.layer\.(\d)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)


def torchvision_names(names: list[str]) -> dict[str, str]:
    """Each name, with torchvision's in place of Detectron2's or transformers'; as it is in any other library."""
    if any(re.search(r"(^|\.)res2\.0\.conv1\.weight$|(^|\.)stem\.conv1\.weight$", name) for name in names):
        return {name: _translated(name, DETECTRON2) for name in names}
    if any("embedder.embedder.convolution.weight" in name for name in names):
        return {name: _translated(name, TRANSFORMERS) for name in names}
    return {name: name for name in names}


def _translated(name: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
