"""Spectra of the encoder's outputs for fixed training images, a few times during a training.

`spectra.jsonl` of a run has one line per probe: {"step", "epoch", "backbone": {...}, "embedding": {...},
"transformed": {...} or null}. Each part has its eigenvalues and the numbers of `pretrain.diagnostics.measures`. The
encoder is in evaluation mode; a probe changes neither weights, nor statistics, nor random draws of the training.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.data.betons.manifest import Manifest
from pretrain.data.loaders.build import training_loader
from pretrain.diagnostics.measures import (
    alignment,
    alpha_req,
    change,
    condition_number,
    effective_rank,
    lidar,
    rankme,
    spectrum,
    stable_rank,
    uniformity,
)
from pretrain.evaluate.online import evaluating
from pretrain.losses.deferred import report_failed_checks
from pretrain.method import Method
from pretrain.recipe import Recipe
from whitebench.errors import UserError
from whitebench.files import SPECTRA, read_json_lines, write_atomically

DIGITS = 6
"""Significant digits in the file."""


class SpectrumProbe:
    """Holds two augmented views of 1.5 times as many images as a process trains on in a step, always the same."""

    def __init__(self, recipe: Recipe, manifest: Manifest, normalise: nn.Module, device: torch.device) -> None:
        self.recipe, self.normalise, self.device = recipe, normalise, device
        self.half = max(1, recipe.batch // recipe.world_size // 2)
        count = manifest.split("train").count
        images = min(3 * self.half, count)
        indices = np.linspace(0, count - 1, images).astype(np.int64)
        self.views: list[Tensor] = []
        loader = training_loader(
            recipe.data,
            manifest,
            seed=recipe.seed,
            batch=images,
            workers=recipe.machine.workers,
            device=str(device),
            indices=indices,
        )
        for batch in loader.epoch(0):
            self.views = [view.cpu() for view in batch.views[:2]]

    def measure(self, method: Method[Any]) -> dict[str, Any]:
        """A line of the file, without "step" and "epoch"."""
        encoder = method.encoder
        with torch.no_grad(), evaluating(encoder):
            outputs = [self._encode(encoder, view) for view in self.views]
        h, z = outputs[0]
        spectra: dict[str, Any] = {"backbone": numbers(h), "embedding": numbers(z)}
        if len(outputs) > 1:
            spectra["backbone"]["alignment"] = _rounded(alignment(h, outputs[1][0]))
            spectra["embedding"]["alignment"] = _rounded(alignment(z, outputs[1][1]))
            spectra["embedding"]["lidar"] = _rounded(lidar([z, outputs[1][1]]))
        spectra["transformed"] = self._transformed(method, z)
        return spectra

    def _encode(self, encoder: nn.Module, view: Tensor) -> tuple[Tensor, Tensor]:
        parts = [encoder(self.normalise(part.to(self.device))) for part in view.split(256)]
        return torch.cat([part.h.float() for part in parts]), torch.cat([part.z.float() for part in parts])

    def _transformed(self, method: Method[Any], z: Tensor) -> dict[str, Any] | None:
        """Numbers of the transformed outputs, and how the same images' outputs differ between two batches.

        Half of each batch is the same images; they alternate with the others, so that every window has both. None if
        there are too few images or the method does not transform.
        """
        if len(z) < 3 * self.half:
            return None
        repeated, first, second = (z[k * self.half : (k + 1) * self.half] for k in range(3))
        try:
            with torch.no_grad():
                outputs = [method.transformed(torch.stack([repeated, x], 1).flatten(0, 1)) for x in (first, second)]
            report_failed_checks()
        except UserError as error:  # a collapsed embedding cannot be whitened, and that is worth knowing
            return {"error": str(error)}
        a, b = outputs
        if a is None or b is None:
            return None
        return {**numbers(a), "change": _rounded(change(a[::2], b[::2]))}


def numbers(x: Tensor) -> dict[str, Any]:
    """The spectrum of outputs [N, D] and what it says, rounded."""
    eigenvalues = spectrum(x)
    return {
        "effective_rank": _rounded(effective_rank(eigenvalues)),
        "stable_rank": _rounded(stable_rank(eigenvalues)),
        "condition_number": _rounded(condition_number(eigenvalues)),
        "uniformity": _rounded(uniformity(x)),
        "rankme": _rounded(rankme(x)),
        "alpha_req": _rounded(alpha_req(eigenvalues)),
        "eigenvalues": [_rounded(value) for value in eigenvalues.tolist()],
    }


def summary(spectra: dict[str, Any]) -> dict[str, float]:
    """The numbers of a probe that join the record's metrics.

    Of the embedding the effective and the stable rank, and `rank`, the share of its eigenvalues that are not 0; the
    backbone's effective rank; how far transformed outputs change with the rest of the batch. RankMe and alpha-ReQ of
    both, and LiDAR of the embedding.
    """
    embedding, transformed = spectra["embedding"], spectra["transformed"] or {}
    eigenvalues = embedding["eigenvalues"]
    metrics = {
        "effective_rank": embedding["effective_rank"],
        "stable_rank": embedding["stable_rank"],
        "rank": sum(value > 0 for value in eigenvalues) / len(eigenvalues),
        "backbone_effective_rank": spectra["backbone"]["effective_rank"],
    }
    for part, prefix in (("embedding", ""), ("backbone", "backbone_")):
        for key in ("rankme", "alpha_req", "lidar"):
            value = spectra[part].get(key)
            if value is not None:
                metrics[f"{prefix}{key}"] = value
    return {**metrics, "target_change": transformed["change"]} if "change" in transformed else metrics


def append_spectra(folder: Path, step: int, epoch: int, spectra: dict[str, Any]) -> None:
    """Adds a line to the run's file; it replaces those at this step or later, of a run that was resumed."""
    earlier = [line for line in read_spectra(folder) if line["step"] < step]
    lines = [*earlier, {"step": step, "epoch": epoch, **spectra}]
    write_atomically(folder / SPECTRA, "".join(json.dumps(line) + "\n" for line in lines).encode())


def read_spectra(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's file, in order; none if it has no such file."""
    return read_json_lines(folder / SPECTRA)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
