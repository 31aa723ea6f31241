"""The architecture that a checkpoint names beside its weights, where it names one.

Networks that differ in what has no weights (anti-aliased, dilated, with strides elsewhere or another activation) have
the names and shapes of a plain ResNet. The tensors cannot tell them apart; what the file says can.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whitebench.errors import UserError

KEYS = ("arch", "architecture", "model_name", "backbone", "model", "encoder", "name")
SETTINGS = ("args", "opt", "cfg", "config", "hyper_parameters", "hparams", "options")
"""Where training scripts keep their settings: mappings, or objects with attributes."""
OTHER = re.compile(r"resnet_?(aa|blur)|dilat|caffe|deeplab|fcn_|anti_?alias|blurpool|_lpf|silu|swish|gelu|leaky|elu\b")
"""Parts of names of networks with a plain ResNet's tensors and other layers between them."""
STYLE = re.compile(r"""style\s*[=:]\s*["']?caffe|dilations\s*[=:]\s*[(\[]\s*1,\s*1,\s*[^1]""")
"""In the config texts of OpenMMLab's checkpoints."""


def stated_architecture(content: Any, path: Path) -> str | None:
    """The name that a checkpoint's content, or a config.json in its folder (Hugging Face), gives to its network.

    Returns:
        In lower case, without the organisation and the tag: "resnet50" of "timm/resnet50.a1_in1k". None: no name.
    """
    name = next(_names(content, path), None)
    return name.lower().rpartition("/")[2].partition(".")[0].replace("-", "_") if name else None


def check_stated(content: Any, path: Path, arch: str) -> str | None:
    """`stated_architecture`, refused where it is another network than a plain ResNet.

    Args:
        arch: what the tensors are.
    Raises:
        UserError: the name, or the config beside the weights, is that of another network.
    """
    name = stated_architecture(content, path)
    style = _mapping(_mapping(content).get("meta")).get("config")
    other = name if name and OTHER.search(name) else None
    if other is None and isinstance(style, str) and (match := STYLE.search(style)):
        other = match[0]
    if other is not None:
        raise UserError(
            f"its network is '{other[:60]}', as the file says: it has the tensors of a {arch}, but other layers "
            "between them; only plain ResNets are taken"
        )
    return name


def _names(content: Any, path: Path) -> Iterator[str]:
    whole = _mapping(content)
    for settings in (whole, *(_mapping(whole.get(key)) for key in SETTINGS), _config_file(path)):
        for key in KEYS:
            value = settings.get(key)
            value = _mapping(value).get("name", value) if key in ("backbone", "model", "encoder") else value
            if isinstance(value, str) and value:
                yield value


def _mapping(value: Any) -> Mapping[Any, Any]:
    """A mapping, or the attributes of an argparse.Namespace; of anything else nothing."""
    if isinstance(value, Mapping):
        return value
    return vars(value) if type(value).__name__ == "Namespace" else {}


def _config_file(path: Path) -> Mapping[Any, Any]:
    try:
        return _mapping(json.loads((path.parent / "config.json").read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}
