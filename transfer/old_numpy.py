"""numpy with the names that two packages of evaluators still ask for, and that later versions have removed."""

from typing import Any

import numpy as np


class OldNumpy:
    """In place of `np` in lvis 0.5.3 (`np.float`, gone in 1.24) and cityscapesscripts 2.3.0 (`np.in1d`, in 2.4)."""

    float = float
    in1d = staticmethod(np.isin)  # the same for the flat arrays that it is given

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)
