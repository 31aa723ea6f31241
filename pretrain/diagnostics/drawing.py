"""Charts of the spectra of pretrainings."""

from pathlib import Path
from typing import Any

PARTS = ("backbone", "embedding", "transformed")


def draw(spectra: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Writes an image: one row per run, a column for the eigenvalues of each part and one for numbers over epochs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(spectra), 4, figsize=(17, 3.6 * len(spectra)), squeeze=False, layout="constrained"
    )
    for row, (name, lines) in zip(axes, spectra.items(), strict=True):
        for axis, part in zip(row, PARTS):
            _eigenvalues(axis, lines, part)
        row[0].set_ylabel(f"{name}\neigenvalue / largest")
        _ranks(row[3], lines)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def _eigenvalues(axis: Any, lines: list[dict[str, Any]], part: str) -> None:
    from matplotlib import colormaps

    with_values = [line for line in lines if line[part] and "eigenvalues" in line[part]]
    axis.set(title=part, xlabel="number", yscale="log", ylim=(1e-8, 2))
    if not with_values:
        axis.text(
            0.5, 0.5, "none" if not lines[-1][part] else "cannot be whitened", transform=axis.transAxes, ha="center"
        )
    for number, line in enumerate(with_values):
        values = line[part]["eigenvalues"]
        largest = max(values) or 1.0
        colour = colormaps["viridis"](number / max(1, len(with_values) - 1))
        axis.plot(range(1, len(values) + 1), [value / largest for value in values], color=colour, label=line["epoch"])
    if with_values:
        axis.legend(title="epoch", fontsize=6, title_fontsize=7, ncols=2)


def _ranks(axis: Any, lines: list[dict[str, Any]]) -> None:
    epochs = [line["epoch"] for line in lines]
    for part in PARTS:
        values = [(line[part] or {}).get("effective_rank") for line in lines]
        if any(value is not None for value in values):
            axis.plot(epochs, values, marker=".", label=f"{part}, effective rank")
    axis.set(title="over epochs", xlabel="epoch", ylim=(0, None))
    other = axis.twinx()
    for name, style in (("uniformity", ":"), ("alignment", "--")):
        other.plot(
            epochs, [line["embedding"].get(name) for line in lines], style, color="gray", label=f"embedding, {name}"
        )
    handles = [*axis.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axis.legend(handles=handles, fontsize=6)
