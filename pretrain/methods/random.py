"""Random: the encoder as it was initialised, the lower bound that every method has to exceed."""

from pretrain.config import strict
from pretrain.methods import Method


@strict
class Config:
    """Nothing to set."""


class Random(Method[Config]):
    """Never trained: the run ends with its initial weights."""

    trains = False
