"""What a method is. One file of `pretrain/methods` is one method; adding a method is adding a file.

The file holds a `Config` (decorated with `pretrain.recipe.strict`), which is the recipe's `method` section, one
subclass of `Method`, and the loss as a pure function of embeddings.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from pretrain import methods
from pretrain.data.batch import Batch
from whitebench.errors import UserError, nearest


@dataclass(frozen=True)
class Step:
    """What a method makes of a batch: the loss to descend (a scalar), and scalars worth logging (detached)."""

    loss: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)


class Encoded(NamedTuple):
    h: Tensor
    """[B, F]: the backbone's pooled features; what is evaluated."""
    z: Tensor
    """[B, D]: the projector's output, the embedding; what the loss sees."""


class Encoder(nn.Module):
    """Backbone and projector: view [B, 3, S, S] -> Encoded."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, feature_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector
        self.feature_dim, self.embedding_dim = feature_dim, embedding_dim

    def forward(self, view: Tensor) -> Encoded:
        h = self.backbone(view)
        return Encoded(h, self.projector(h))


ConfigT = TypeVar("ConfigT")


Embed = Callable[[nn.Module], Tensor]
"""embed(encoder) -> what the encoder, in evaluation mode, makes of the centre crop of every training image: its z,
float32 [n, D], in the order of the dataset, the same on every process."""


class Method(nn.Module, Generic[ConfigT]):
    """Owns the encoder and whatever of the method has state (predictor, queue, prototypes, target network).

    The training loop sets `step`, `epoch` and `progress` before each `forward`, and seeds torch's generators from
    (seed, step, rank), so that random draws in `forward` repeat after a resumption.
    """

    Config: ClassVar[type]
    uses_labels: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    """False for a bound that is not trained at all (`random`)."""
    step: int = 0
    """Of the training, from 0; `epoch` likewise."""
    epoch: int = 0
    progress: float = 0.0
    """Share of all steps that are done."""

    def __init__(self, encoder: Encoder, config: ConfigT) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config

    def forward(self, batch: Batch) -> Step:
        raise NotImplementedError

    def check(self, batch: int, views: int) -> None:
        """Raises `UserError` where the method cannot work with `batch` images a process and so many views."""

    def prepare_epoch(self, epoch: int, embed: Embed) -> None:
        """Before the first step of an epoch: what needs the whole training set (clusters). Not run on resumption within
        an epoch, so that what it leaves must be in the method's state."""

    def before_update(self) -> None:
        """Between the backward pass and the optimizer's step: a layer that is still frozen drops its gradients here."""

    def constant_rate(self) -> Iterable[nn.Module]:
        """Parts whose learning rate stays at its base instead of following the schedule."""
        return ()

    def transformed(self, z: Tensor) -> Tensor | None:
        """What the loss compares instead of the embeddings z [N, D] of one view: whitened outputs. None: z itself."""
        return None


def method_names() -> list[str]:
    """Files of this folder that define a method (helpers like `similarity` do not)."""
    names = (module.name for module in pkgutil.iter_modules(methods.__path__))
    return sorted(name for name in names if _method_of(importlib.import_module(f"{methods.__name__}.{name}")))


def find_method(name: Any) -> type[Method[Any]]:
    """The method of the file `<name>.py`.

    Raises:
        UserError: there is none; the nearest names are given.
    """
    known = (
        isinstance(name, str)
        and name.isidentifier()
        and any((Path(p) / f"{name}.py").is_file() for p in methods.__path__)
    )
    if not known:
        raise UserError(f"unknown method '{name}'{nearest(str(name), method_names())}")
    found = _method_of(importlib.import_module(f"{methods.__name__}.{name}"))
    if found is None:
        raise UserError(f"methods/{name}.py defines no method{nearest(name, method_names())}")
    return found


def _method_of(module: Any) -> type[Method[Any]] | None:
    """The Method subclass that `module` itself defines, with the module's Config attached."""
    own = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, Method) and item.__module__ == module.__name__
    ]
    if not own:
        return None
    own[0].Config = module.Config
    return own[0]
