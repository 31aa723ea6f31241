"""FFCV's JPEG decoder (libjpeg-turbo), and how FFCV is imported here.

FFCV compiles a dictionary while it is imported (5 seconds) and sets torch's number of threads; both are prevented.
"""

import importlib
import sys
import threading
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.views.jit import without_compilation
from whitebench.errors import UserError

_importing = threading.Lock()


def import_ffcv(module: str) -> Any:
    """The module of that name, e.g. "ffcv.loader".

    Raises:
        UserError: FFCV cannot be imported; names the loader that works without it.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        with _importing:
            if module in sys.modules:
                return sys.modules[module]
            with without_compilation():
                return importlib.import_module(module)
    except ImportError as error:
        advice = "use data.loader=folder (--loader folder of an evaluation), or install it: make env"
        raise UserError(f"ffcv cannot be imported ({error}); {advice}") from error
    finally:
        torch.set_num_threads(threads)


@cache
def has_ffcv() -> bool:
    """Whether FFCV can be imported."""
    try:
        import_ffcv("ffcv.libffcv")
    except UserError:
        return False
    return True


def decode_jpeg(data: bytes, height: int, width: int) -> NDArray[np.uint8] | None:
    """Pixels [height, width, 3] as the ffcv loader has them; None if libjpeg-turbo fails or warns."""
    libffcv = import_ffcv("ffcv.libffcv")
    pixels = np.empty((height, width, 3), np.uint8)
    failed = libffcv.ctypes_imdecode(
        data, len(data), height, width, pixels.ctypes.data, height, width, 0, 0, 1, 1, False, False
    )
    return None if failed else pixels
