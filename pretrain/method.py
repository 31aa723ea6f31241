"""What a method is. One file of `pretrain/methods` is one method; adding a method is adding a file.

The file holds a `Config` (decorated with `whitebench.config.strict`), which is the recipe's `method` section, one
subclass of `Method`, and the loss as a pure function of embeddings.
"""

import importlib
import inspect
import pkgutil
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pretrain import methods
from pretrain.data.batch import Batch
from whitebench.config import strict
from whitebench.errors import UserError, nearest, printable


@dataclass(frozen=True)
class Step:
    """The result of a method on a batch: the loss to minimise (a scalar), and scalars to log (detached)."""

    loss: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)


class Encoded(NamedTuple):
    h: Tensor
    """[B, F]: the backbone's pooled features; what is evaluated."""
    z: Tensor
    """[B, D]: the projector's output, the embedding; what the loss sees."""


class Encoder(nn.Module):
    """Backbone and projector: view [B, 3, S, S] -> Encoded."""

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        feature_dim: int,
        embedding_dim: int,
        options: dict[str, Any] | None = None,
    ) -> None:
        """`options` are those of a backbone that timm built (see `pretrain.timm_networks`); None of others."""
        super().__init__()
        self.backbone, self.projector = backbone, projector
        self.feature_dim, self.embedding_dim = feature_dim, embedding_dim
        self.options = options

    def forward(self, view: Tensor) -> Encoded:
        h = self.backbone(view)
        return Encoded(h, self.projector(h))


ConfigT = TypeVar("ConfigT")
Counting = Literal["from-one", "from-zero", "inclusive"]
"""See `recipe_sections.Schedule.counting`."""


Embed = Callable[[nn.Module], Tensor]
"""embed(encoder) -> what the encoder, in evaluation mode, makes of the centre crop of every training image: its z,
float32 [n, D], in the order of the dataset, the same on every process."""


class Method(nn.Module, Generic[ConfigT]):
    """Owns the encoder and all parts of the method that have state (predictor, queue, prototypes, target network).

    The training loop sets `step`, `epoch`, `epochs` and `progress` before each `forward`, and seeds torch's generators
    from (seed, step, rank), so that random draws in `forward` repeat after a resumption.
    """

    Config: ClassVar[type]
    uses_labels: ClassVar[bool] = False
    minimum_views: ClassVar[int] = 2
    """Of each image; a loss that compares views needs two."""
    maximum_views: ClassVar[int | None] = None
    trains: ClassVar[bool] = True
    """False for a bound that is not trained at all (`random`)."""
    counting: ClassVar[Counting] = "from-one"
    """How the method's official code counts the steps of the learning rate; the default of `schedule.counting`."""
    step: int = 0
    """Of the training, from 0; so is `epoch`."""
    epoch: int = 0
    epochs: int = 1
    """Of the whole training."""
    progress: float = 0.0
    """Share of all steps that are done."""
    steps_per_epoch: int = 1
    seed: int = 0
    """Of the training: for draws that depend on (seed, epoch, image) alone, as those of views do."""
    shared_seed: int = 0
    """Of this step, the same on every process: for draws that all processes must share (`shared_generator`)."""

    def __init__(self, encoder: Encoder, config: ConfigT) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config

    def forward(self, batch: Batch) -> Step:
        raise NotImplementedError

    @classmethod
    def begins_after(cls, config: ConfigT) -> dict[str, float]:
        """Settings that say after how many epochs a part of the method begins: no shorter training is that method."""
        return {}

    @classmethod
    def begins_after_steps(cls, config: ConfigT) -> dict[str, int]:
        """The same, in steps."""
        return {}

    @classmethod
    def joint_batch(cls, config: ConfigT) -> bool:
        """Whether several processes train as one with the joint batch, where batch norms are over all of them.

        `machine.processes` then may divide the batch among another number of them (see `pretrain.processes`).
        """
        return False

    def check_dataset(self, images: int, classes: int) -> None:
        """Raises `UserError` if the method cannot work with a training set of these sizes."""

    def check(self, batch: int, views: int) -> None:
        """Raises `UserError` if the method cannot work with `batch` images per process and this number of views."""
        name = type(self).__module__.rpartition(".")[2]
        if views < self.minimum_views:
            raise UserError(f"{name}: needs at least {self.minimum_views} views, not {views} (data.views)")
        if self.maximum_views is not None and views > self.maximum_views:
            raise UserError(f"{name}: takes at most {self.maximum_views} views, not {views} (data.views)")

    def shared_generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator whose draws depend on the seed and the step, not on the process."""
        return torch.Generator(device).manual_seed(self.shared_seed)

    def prepare_epoch(self, epoch: int, embed: Embed) -> None:
        """Before the first step of an epoch: what needs the whole training set (clusters).

        It is not run on resumption within an epoch, so that what it leaves must be in the method's state.
        """

    def before_update(self) -> None:
        """Between the backward pass and the optimizer's step: a layer that is still frozen drops its gradients here."""

    def after_update(self) -> None:
        """After the optimizer's step: where the official code moves its target network then."""

    def encoders(self) -> dict[str, Encoder]:
        """The encoders by name, the one that the method's source evaluates first.

        That one is exported as the run's backbone, evaluated and transferred; the others are written next to it.
        """
        return {"online": self.encoder}

    @property
    def exported(self) -> Encoder:
        """The encoder that is evaluated and transferred."""
        return next(iter(self.encoders().values()))

    def constant_rate(self) -> Iterable[nn.Module]:
        """Parts whose learning rate stays at its base instead of following the schedule."""
        return ()

    def transformed(self, z: Tensor) -> Tensor | None:
        """What the loss compares instead of the embeddings z [N, D] of one view: whitened outputs. None: z itself."""
        return None


def with_first(name: str, encoders: dict[str, Encoder]) -> dict[str, Encoder]:
    """`encoders` with the one of this name moved to the front; for `Method.encoders`."""
    return {name: encoders[name], **encoders}


LONGEST_NAME = 100
"""Characters of a method's name; file systems refuse names of more than some 250 bytes."""


def method_names() -> list[str]:
    """Files of `pretrain/methods` that define a method; one that cannot be imported is left out."""
    names = []
    for name in sorted(module.name for module in pkgutil.iter_modules(methods.__path__)):
        with suppress(UserError):
            if _method_of(_imported(name)):
                names.append(name)
    return names


def find_method(name: Any) -> type[Method[Any]]:
    """The method of the file `<name>.py`.

    Raises:
        UserError: the file does not exist (the nearest names are listed), it cannot be imported, or it does not define
            exactly one method.
    """
    exists = (
        isinstance(name, str)
        and name.isidentifier()
        and len(name) <= LONGEST_NAME
        and any((Path(folder) / f"{name}.py").is_file() for folder in methods.__path__)
    )
    if not exists:
        start = printable(str(name))[:LONGEST_NAME]
        raise UserError(f"unknown method '{start}'{nearest(start, method_names())}")
    method = _method_of(_imported(name))
    if method is None:
        raise UserError(f"methods/{name}.py defines no subclass of Method{nearest(name, method_names())}")
    return method


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{methods.__name__}.{name}")
    except Exception as error:  # whatever a file raises that a user has written
        line = traceback.extract_tb(error.__traceback__)[-1]
        position = f"{Path(line.filename).name}, line {line.lineno}"
        raise UserError(
            f"methods/{name}.py cannot be imported: {type(error).__name__}: {error} ({position})"
        ) from error


def _method_of(module: ModuleType) -> type[Method[Any]] | None:
    """The Method subclass that `module` defines, with a `Config` of its own; None if it defines none.

    Of classes that build on each other the last one counts.

    Raises:
        UserError: it defines several that do not build on each other.
    """
    defined = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, Method) and item.__module__ == module.__name__
    ]
    final = [item for item in defined if not any(item in other.__mro__[1:] for other in defined)]
    if len(final) > 1:
        names = ", ".join(item.__name__ for item in final)
        raise UserError(
            f"{module.__name__.rpartition('.')[2]}.py defines several methods: {names}; one file, one method"
        )
    if not final:
        return None
    if "Config" not in vars(final[0]):
        final[0].Config = _own_config(module)
    return final[0]


def _own_config(module: ModuleType) -> type:
    """The module's `Config`, as a class that belongs to this module: a recipe knows its method by it.

    A variant may import another method's Config, or have none, where it has no settings.
    """
    config: Any = getattr(module, "Config", None)
    if config is None or config.__module__ != module.__name__:
        bases = () if config is None else (config,)
        return strict(type("Config", bases, {"__module__": module.__name__, "__annotations__": {}}))
    if not is_dataclass(config):
        config = strict(config)
    config_class: type = config
    return config_class
