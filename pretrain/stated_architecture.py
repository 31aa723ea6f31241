"""What a checkpoint says of its network, in its own keys and in a config next to it.

Names and shapes of tensors do not tell a plain ResNet from one with anti-aliasing, dilations, strides in the 1x1
convolutions (caffe style) or other activations: their features differ by more than their size. So a file that says that
it is one of those is refused, and one that says nothing is taken as torchvision's network, with a remark.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whitebench.errors import UserError

CONFIG = "config.json"
PLAIN = re.compile(r"(?<![a-z0-9])resnet[-_ ]?(18|34|50|101|152)(?![a-z0-9])")
FAMILY = re.compile(r"(?<![a-z0-9])[a-z0-9]*res(?:net|nex|nes)[a-z]*[-_]?\d+")
"""Names of residual networks; other values of `arch` or `model` are names of methods, say."""
ALTERED = re.compile(r"caffe|dilat|atrous|blur|(?<![a-z])(?:aa|os8|os16|d8|d16|silu|gelu)(?![a-z])")
"""Words in a name that say that features differ."""
NAME_KEYS = (
    *("arch", "architecture", "model", "model_name", "backbone", "backbone_name", "encoder_name", "base_model"),
)
"""Keys under which projects write their network's name, in the checkpoint or in its arguments."""
HOLDERS = ("args", "opt", "config", "cfg", "hparams", "hyper_parameters", "params", "meta", "backbone")
HARMLESS = {"num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "num_labels", "zero_init_last"}
"""Arguments of timm's models that change no feature map in evaluation."""
SOURCE = (
    (re.compile(r"style\s*=\s*['\"]caffe['\"]"), "strides in the 1x1 convolutions (style='caffe')"),
    (re.compile(r"dilations\s*=\s*\(1, 1, (?:1, [2-9]|[2-9])"), "dilated convolutions (dilations)"),
    (re.compile(r"avg_down\s*=\s*True"), "average pooling in the shortcuts (avg_down)"),
)
"""In the configs of OpenMMLab, which its checkpoints hold as text."""
OPTIONS = (
    ("replace_stride_with_dilation", "dilated convolutions"),
    ("output_stride", "dilated convolutions"),
    ("dilation", "dilated convolutions"),
    ("aa_layer", "anti-aliasing"),
    ("anti_alias", "anti-aliasing"),
    ("antialias", "anti-aliasing"),
    ("downsample_in_bottleneck", "strides in the 1x1 convolutions"),
    ("stride_in_1x1", "strides in the 1x1 convolutions"),
    ("act_layer", "another activation"),
)
PLAIN_WORDS = ("", "relu", "none", "None")
PLAIN_NUMBERS = (0, 1, 32)
"""A dilation of 1, an output stride of 32."""
LONGEST = 1_000_000


UNSTATED = "not stated, so taken as torchvision's: strides, dilations, pooling, activations"
"""The remark on a file that names no network."""


def check_stated(content: Any, path: Path, arch: str) -> str | None:
    """The name that the file gives to its network, e.g. "resnet50"; None if it gives none.

    Args:
        content: of the checkpoint, mappings with whatever its project saves.
        arch: the architecture that the tensors match, e.g. "resnet50".
    Raises:
        UserError: the file, or the config next to it, names another network or an option that changes its features.
    """
    stated = list(stated_names(content, path))
    for key, name in stated:
        plain, family = PLAIN.search(name.lower()), FAMILY.search(name.lower())
        if family and (not plain or ALTERED.search(name.lower())):
            raise UserError(
                f"states {key}: '{_short(name)}', whose tensors look like a {arch}'s and whose features differ "
                f"(strides, pooling, activations); only a plain {arch} is read. If it is one, save its state_dict alone"
            )
        if plain and f"resnet{plain[1]}" != arch:
            raise UserError(f"its tensors are a {arch}'s, but it states {key}: '{_short(name)}'")
    option = next(_options(content), None) or next(_config_options(path), None)
    if option:
        raise UserError(f"states {option}: its features differ from those of a plain {arch} with the same tensors")
    return arch if any(PLAIN.search(name.lower()) for _, name in stated) else None


def stated_names(content: Any, path: Path) -> Iterator[tuple[str, str]]:
    """(key, name) of every network that the file, or the config next to it, names."""
    yield from _names(content)
    yield from _config_names(path)


def holders(content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The mapping itself, and those in it that hold a training's arguments."""
    top = _mapping(content)
    yield "", top
    for key in HOLDERS:
        if key in top:
            inner = _mapping(top[key])
            yield f"{key}.", inner
            if "backbone" in inner:
                yield f"{key}.backbone.", _mapping(inner["backbone"])


def _mapping(value: Any) -> Mapping[str, Any]:
    """An argparse.Namespace as a mapping; nothing of other values."""
    if isinstance(value, Mapping):
        return value
    return vars(value) if type(value).__name__ in ("Namespace", "SimpleNamespace") else {}


def _names(content: Any) -> Iterator[tuple[str, str]]:
    for prefix, holder in holders(content):
        for key in (*NAME_KEYS, *(["name"] if prefix.endswith("backbone.") else [])):
            value = holder.get(key)
            if isinstance(value, str):
                yield f"{prefix}{key}", value


def _options(content: Any) -> Iterator[str]:
    for prefix, holder in holders(content):
        for key, meaning in OPTIONS:
            value = holder.get(key)
            values = value if isinstance(value, list | tuple) else [value]
            if not all(map(_is_plain, values)):
                yield f"{prefix}{key}={_short(value)} ({meaning})"
        for key in ("cfg", "config"):
            text = holder.get(key)
            if isinstance(text, str):
                yield from (f"{prefix}{key}: {meaning}" for form, meaning in SOURCE if form.search(text[:LONGEST]))
        kwargs = _mapping(holder.get("model_kwargs") or holder.get("model_args"))
        yield from (f"{prefix}model_kwargs.{key}={_short(kwargs[key])}" for key in kwargs if key not in HARMLESS)


def _is_plain(value: Any) -> bool:
    """Whether a network with this option is torchvision's; values of unknown types say nothing."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value in PLAIN_NUMBERS
    return value in PLAIN_WORDS or not isinstance(value, str)


def next_config(path: Path) -> Mapping[str, Any]:
    """The config.json next to a checkpoint; empty where there is none that can be read."""
    file = path.parent / CONFIG
    try:
        if file.is_file() and file.stat().st_size < LONGEST:
            return _mapping(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError):
        pass
    return {}


def _config_names(path: Path) -> Iterator[tuple[str, str]]:
    """Of a config.json as timm and transformers write it to the hub."""
    value = next_config(path).get("architecture")
    if isinstance(value, str):
        yield f"{CONFIG} architecture", value


def _config_options(path: Path) -> Iterator[str]:
    config = next_config(path)
    if "architecture" in config:  # timm's
        yield from _options({"model_args": config.get("model_args")})
    if config.get("model_type") == "resnet":  # transformers'
        if config.get("hidden_act", "relu") != "relu":
            yield f"{CONFIG} hidden_act={_short(config['hidden_act'])}"
        if config.get("downsample_in_bottleneck"):
            yield f"{CONFIG} downsample_in_bottleneck (strides in the 1x1 convolutions)"
        if config.get("downsample_in_first_stage"):
            yield f"{CONFIG} downsample_in_first_stage"


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, str) else repr(value)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= 80 else f"{text[:77]}..."
