"""Random: the encoder as it was initialised, the lower bound that every method has to exceed."""

from pretrain.method import Method
from whitebench.config import strict


@strict
class Config:
    """Nothing to set."""


class Random(Method[Config]):
    """Never trained: the run ends with its initial weights."""

    trains = False
    minimum_views = 1

    @classmethod
    def joint_batch(cls, config: Config) -> bool:
        return True
