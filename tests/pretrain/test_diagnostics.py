"""What spectra say of inputs whose collapse is known, and that looking at a training leaves it as it is."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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
from pretrain.diagnostics.spectrum_probe import append_spectra, read_spectra
from whitebench.records import read_record

Command = Callable[..., CompletedProcess[str]]


def noise(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def equal_spectrum(n: int, k: int, d: int) -> Tensor:
    """[n, d], centred, with k equal eigenvalues and the others 0."""
    x = noise(n, k)
    q, _ = torch.linalg.qr(x - x.mean(dim=0))
    directions, _ = torch.linalg.qr(noise(d, k, seed=1))
    return q @ directions.mT


@pytest.mark.parametrize(("n", "d"), [(20, 7), (7, 20), (10, 10)])
def test_the_spectrum_is_that_of_the_covariance(n: int, d: int) -> None:
    x = noise(n, d)
    expected = torch.linalg.eigvalsh(torch.cov(x.mT)).flip(0)[: min(n - 1, d)]
    torch.testing.assert_close(spectrum(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_outputs_have_no_variance(dtype: torch.dtype) -> None:
    x = noise(1, 30).to(dtype).expand(50, 30)
    values = spectrum(x)
    assert not values.any()
    assert effective_rank(values) == stable_rank(values) == 0
    assert condition_number(values) is None
    assert uniformity(x) == pytest.approx(0, abs=1e-6)


@given(st.integers(1, 12), st.integers(12, 30), st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_outputs_of_rank_k_have_effective_rank_k(k: int, d: int, scale: float) -> None:
    values = spectrum(scale * equal_spectrum(40, k, d) + 5 * scale)
    assert effective_rank(values) == pytest.approx(k, rel=1e-6)
    assert stable_rank(values) == pytest.approx(k / d, rel=1e-6)
    assert (condition_number(values) is None) is (k < d)
    assert int((values > 0).sum()) == k


def test_isotropic_outputs_are_of_full_rank() -> None:
    values = spectrum(equal_spectrum(50, 8, 8))
    assert effective_rank(values) == pytest.approx(8)
    assert stable_rank(values) == pytest.approx(1)
    assert condition_number(values) == pytest.approx(1)


def test_effective_rank_of_unequal_eigenvalues() -> None:
    shares = [0.5, 0.25, 0.25]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert effective_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(expected)


def test_alignment_and_uniformity_are_those_of_their_definitions() -> None:
    a, b = noise(6, 4), noise(6, 4, seed=1)
    u, v = ((x / x.norm(dim=1, keepdim=True)) for x in (a, b))
    assert alignment(a, b) == pytest.approx(float((u - v).square().sum(1).mean()))
    potentials = [math.exp(-2 * float((u[i] - u[j]).square().sum())) for i in range(6) for j in range(i)]
    assert uniformity(a) == pytest.approx(math.log(sum(potentials) / len(potentials)))
    assert change(a, 3 * a) == pytest.approx(0, abs=1e-12)
    assert change(a, -a) == pytest.approx(4)


def test_rankme_is_of_singular_values_that_are_not_centred() -> None:
    x = noise(9, 6) + 2
    shares = torch.linalg.svdvals(x)
    shares = shares / shares.sum() + 1e-7
    assert rankme(x) == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-9)
    assert rankme(torch.zeros(4, 3)) == 0
    assert rankme(torch.ones(5, 7)) == pytest.approx(1, abs=1e-4)
    assert rankme(torch.eye(6)) == pytest.approx(6, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.3])
def test_alpha_req_is_the_exponent_of_a_power_law(alpha: float) -> None:
    values = 3 * torch.arange(1, 200, dtype=torch.float64) ** -alpha
    assert alpha_req(values) == pytest.approx(alpha)
    assert alpha_req(torch.cat([values, torch.zeros(5)]), first=10) == pytest.approx(alpha)
    assert alpha_req(torch.tensor([1.0, 0.0])) is None


@pytest.mark.parametrize("shape", [(12, 5), (6, 20)], ids=str)
def test_lidar_is_that_of_its_definition(shape: tuple[int, int]) -> None:
    views = [noise(*shape) + 0.3 * noise(*shape, seed=v) for v in (1, 2, 3)]
    stacked = torch.stack(views)
    means = stacked.mean(0)
    deviations = (stacked - means).flatten(0, 1)
    within = deviations.T @ deviations / len(deviations) + 1e-4 * torch.eye(shape[1])
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    ratios = torch.linalg.eigvalsh(root @ torch.cov(means.T) @ root).clamp_min(0)
    shares = ratios / ratios.sum()
    # eps of the paper, once for each image
    padded = torch.cat([shares.sort().values[-min(shape) :], torch.zeros(max(0, shape[0] - shape[1]))]) + 1e-7
    assert lidar(views) == pytest.approx(math.exp(-float((padded * padded.log()).sum())), rel=1e-4)
    assert lidar(views[:1]) is None
    assert lidar([torch.ones(4, 3)] * 2) == 0


def test_a_probe_replaces_later_ones(tmp_path: Path) -> None:
    for step in (10, 20, 30, 20):
        append_spectra(tmp_path, step, step // 10, {"mark": step})
    assert [line["step"] for line in read_spectra(tmp_path)] == [10, 20]


def test_probes_leave_a_training_as_it_is(places: Path, command: Command, tmp_path: Path) -> None:
    small = ("sample/intl", "data.dataset=tiny", "batch=64", "network.projector=[256,256]", "monitor.knn_every=0")
    two = (*small, "schedule.epochs=2", "data.views.0.size=32")
    backbones, records = [], []
    for every in (0, 1):
        runs = tmp_path / str(every)
        done = command("-m", "pretrain", *two, f"monitor.spectra_every={every}", WHITEBENCH_RUNS=str(runs))
        assert done.returncode == 0, done.stderr
        (folder,) = (runs / "pretrain").iterdir()
        backbones.append((folder / "backbone.safetensors").read_bytes())
        records.append(read_record(folder))
    assert backbones[0] == backbones[1]
    assert not read_spectra(tmp_path / "0" / "pretrain" / folder.name)
    spectra = read_spectra(folder)
    assert [line["epoch"] for line in spectra] == [1, 2]
    last = spectra[-1]
    assert set(last) == {"step", "epoch", "backbone", "embedding", "transformed"}
    assert 1 < last["embedding"]["effective_rank"] <= len(last["embedding"]["eigenvalues"])
    assert 0 < last["embedding"]["alignment"] < 4
    assert 0 < last["transformed"]["change"] < 4
    assert last["embedding"]["eigenvalues"] == sorted(last["embedding"]["eigenvalues"], reverse=True)
    assert records[1] is not None
    assert records[1].metrics["effective_rank"] == last["embedding"]["effective_rank"]

    picture = tmp_path / "spectra.png"
    drawn = command("-m", "pretrain.diagnostics", str(folder), "--out", str(picture))
    assert drawn.returncode == 0, drawn.stderr
    assert "effective rank: backbone" in drawn.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused = command("-m", "pretrain.diagnostics", str(tmp_path))
    assert refused.returncode != 0
    assert "no spectra.jsonl" in refused.stderr
    assert json.loads((folder / "spectra.jsonl").read_text().splitlines()[0])["epoch"] == 1
