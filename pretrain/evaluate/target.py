"""What an evaluation is of, and how it is done: both determine its record's id."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from whitebench.errors import UserError
from whitebench.hashing import added

if TYPE_CHECKING:
    from pretrain.checkpoint import Backbone
    from pretrain.recipe import Recipe

STAGES = ("linear", "knn", "semi")
FEATURES = ("backbone", "embedding", "transformed")


@dataclass(frozen=True)
class Target:
    """What is evaluated, on what."""

    parent: str
    """Id of the pretraining's record, or "sha256:..." of a foreign checkpoint."""
    label: str
    """For run ids, e.g. "intl-s0"."""
    dataset: str
    crop: int
    resize: int
    cell: dict[str, Any]

    @classmethod
    def of_recipe(cls, recipe: "Recipe", parent: str) -> "Target":
        cell = {
            "recipe": recipe.name,
            "method": recipe.method_name,
            "seed": recipe.seed,
            "dataset": recipe.data.dataset,
        }
        return cls(parent, recipe.label, recipe.data.dataset, recipe.evaluation_crop, recipe.evaluation_resize, cell)

    @classmethod
    def of_backbone(cls, backbone: "Backbone", dataset: str | None, crop: int | None, resize: int | None) -> "Target":
        """From the metadata that our own checkpoints carry; arguments go before it and are needed for foreign ones."""
        known = backbone.metadata
        dataset, crop = dataset or known.get("dataset"), crop or known.get("image_size")
        resize = resize or known.get("eval_resize")
        if dataset is None or crop is None or resize is None:
            raise UserError("the checkpoint does not say what it was trained on: give --dataset, --crop and --resize")
        parent = known.get("id") or f"sha256:{backbone.sha256}"
        recipe = known.get("recipe", "foreign")
        cell = {
            "recipe": recipe,
            "method": known.get("method", "foreign"),
            "seed": known.get("seed", 0),
            "dataset": dataset,
        }
        label = f"{recipe.rpartition('/')[2]}-s{cell['seed']}"
        return cls(parent, label, dataset, crop, resize, cell)


@dataclass(frozen=True)
class Options:
    """How an evaluation is done; all of it but `workers`, `loader` determines its result (of a `list`, its names)."""

    protocol: str
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    workers: int = 1
    loader: Literal["ffcv", "folder"] = "ffcv"
    features: Literal["backbone", "embedding", "transformed"] = added("backbone")
    """What linear probe and k-NN see: the backbone's output, the projector's, or what the method makes of that."""
    list: Path | None = None
    """File that names the labelled images of semi-supervised evaluation, one a line; None draws them by seed."""
