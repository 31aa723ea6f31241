"""The parts of a pretraining other than its backbone: the projector, and the method's transform of its output."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain import resume
from pretrain.method import Method, find_method
from pretrain.networks import build_encoder
from pretrain.recipe import Recipe, recipe_of
from whitebench.errors import UserError
from whitebench.files import BACKBONE, CHECKPOINT
from whitebench.records import RECORD, Record, read_record


@dataclass(frozen=True)
class Trained:
    """A method as its pretraining left it."""

    method: Method[Any]
    recipe: Recipe


def load_trained(ckpt: Path, parent: str, features: str) -> Trained:
    """The method of the pretraining `parent` that left the backbone at `ckpt`.

    Args:
        ckpt: its folder, or the backbone in it.
        features: which output: "embedding" or "transformed".
    Raises:
        UserError: not a pretraining of this suite, its folder is not complete, or its method has no such output.
    """
    folder = ckpt if ckpt.is_dir() else ckpt.parent
    record = _record(ckpt, folder, parent, features)
    config = {key: value for key, value in record.config.items() if key != "data_hash"}
    recipe = recipe_of({**config, "name": record.cell["recipe"]}, where=str(folder / RECORD))
    method = find_method(recipe.method_name)(build_encoder(recipe.network, recipe.view_sizes), recipe.method)
    state = resume.load(folder)
    assert state is not None, "its checkpoint is there"
    method.load_state_dict(state["method"])
    trained = Trained(method.requires_grad_(False).eval(), recipe)
    _check_output(trained, features)
    return trained


def _record(ckpt: Path, folder: Path, parent: str, features: str) -> Record:
    """The pretraining's record."""
    record = read_record(folder)
    if record is None or record.id != parent or not (folder / CHECKPOINT).exists():
        raise UserError(
            f"{ckpt}: features={features} need the projector, which a backbone alone does not have; name the folder "
            f"of a pretraining of this suite, with its {RECORD}, {CHECKPOINT} and {BACKBONE}"
        )
    return record


def _check_output(trained: Trained, features: str) -> None:
    name, width = trained.recipe.method_name, trained.method.encoder.embedding_dim
    if not trained.recipe.network.projector:
        raise UserError(f"features={features}: {name} has no projector here: its embedding is the backbone's output")
    if features == "transformed":
        generator = torch.Generator().manual_seed(0)
        trial = trained.method.transformed(torch.randn(trained.recipe.batch, width, generator=generator))
        if trial is None:
            raise UserError(f"features=transformed: {name} compares embeddings as they are; use features=embedding")
