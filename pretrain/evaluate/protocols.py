"""The evaluation protocols by name, with their settings and where those come from."""

from dataclasses import fields
from functools import partial
from typing import Literal

from pretrain.recipe import strict
from results.command import UserError, nearest


@strict
class KNN:
    name: str
    source: str
    neighbours: int
    distance: Literal["cosine", "euclidean"]
    temperature: float | None = None
    """Votes weigh exp(cosine / temperature); None is one neighbour one vote, a tie going to the smallest label."""


@strict
class Linear:
    name: str
    source: str
    augment: bool
    """False: features of the centre crop, computed once. True: of random resized crops and flips, anew each epoch."""
    optimizer: Literal["adam", "sgd", "larc"]
    lr: float
    lr_batch: int | None
    """The rate is per so many images; None: as it stands."""
    batch: int
    epochs: int
    schedule: Literal["cosine", "step", "exponential"]
    steps: tuple[int, ...] = ()
    """Epochs at which `step` divides the rate by 10."""
    final_lr: float = 0.0
    """Where `exponential` ends."""
    weight_decay: float = 0.0
    init_std: float | None = None
    """Weights from N(0, std), zero bias; None is torch's default for a linear layer."""
    selection: Literal["last"] = "last"
    """Which epoch is reported."""

    @property
    def base_lr(self) -> float:
        return self.lr * self.batch / self.lr_batch if self.lr_batch else self.lr


_in_steps = partial(
    Linear,
    augment=True,
    optimizer="sgd",
    lr_batch=None,
    batch=256,
    epochs=100,
    schedule="step",
    steps=(60, 80),
    init_std=0.01,
)
"""MoCo's linear protocol, which others took over with rates of their own."""

PROTOCOLS: dict[str, list[KNN] | list[Linear]] = {
    "knn": [
        KNN("cosine-20", "this suite's default for its sample and for online monitoring", 20, "cosine"),
        KNN("euclidean-5", "winci-ai/CW-RGP@5bbf6ed, winci-ai/INTL@0aa69af: eval/knn.py", 5, "euclidean"),
        KNN("dino-20", "facebookresearch/dino@7c446df: eval_knn.py", 20, "cosine", 0.07),
        KNN("lightly-200", "lightly-ai/lightly@e8d317f: benchmarks/imagenet", 200, "cosine", 0.1),
    ],
    "linear": [
        Linear(
            "features",
            "small sets of htdt/self-supervised@d9662c8, CW-RGP@5bbf6ed, INTL@0aa69af: eval/sgd.py",
            augment=False,
            optimizer="adam",
            lr=1e-2,
            lr_batch=None,
            batch=1000,
            epochs=500,
            schedule="exponential",
            final_lr=1e-6,
            weight_decay=5e-6,
        ),
        Linear(
            "cwrgp-imagenet",
            "winci-ai/CW-RGP@5bbf6ed: ImageNet/lincls.py (which keeps the best epoch; here the last counts)",
            augment=True,
            optimizer="larc",
            lr=0.1,
            lr_batch=256,
            batch=1024,
            epochs=100,
            schedule="cosine",
        ),
        _in_steps("intl-imagenet", "winci-ai/INTL@0aa69af: evaluate.py and scripts, multi-crop runs", lr=0.4),
        _in_steps(
            "intl-2view", "winci-ai/INTL@0aa69af: evaluate.py and scripts, two-view and ImageNet-100 runs", lr=0.2
        ),
        _in_steps("moco", "facebookresearch/moco@f736491: main_lincls.py", lr=30.0),
    ],
}


def find_protocol(stage: str, name: str) -> KNN | Linear:
    """The protocol of that name for the stage "linear" or "knn"; `UserError` names the nearest where there is none."""
    known = {protocol.name: protocol for protocol in PROTOCOLS[stage]}
    if name not in known:
        raise UserError(f"unknown {stage} protocol '{name}'{nearest(name, known)}")
    return known[name]


def describe(stage: str) -> str:
    """The stage's protocols, a line each, for --help."""
    return "\n".join(f"  {protocol.name:16} {protocol.source}" for protocol in PROTOCOLS[stage])


def settings(protocol: KNN | Linear) -> str:
    """`key=value` of all settings, for a log."""
    shown = (f.name for f in fields(protocol) if f.name not in ("name", "source"))
    return " ".join(f"{name}={getattr(protocol, name)}" for name in shown)
