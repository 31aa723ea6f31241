"""Semi-supervised evaluation: which labels are used, at which rates, and a fine-tuning through the user's command."""

import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.betons.manifest import Manifest, read_manifest
from pretrain.data.loaders.order import ShuffledPart
from pretrain.evaluate.protocol_kinds import Semi
from pretrain.evaluate.protocols import PROTOCOLS, find_protocol
from pretrain.evaluate.semi import rate_share
from pretrain.evaluate.subset import choose, deviation, identity, list_hash, read_list
from whitebench.errors import UserError
from whitebench.records import read_metrics, read_record


@pytest.fixture
def manifest(places: Path) -> Manifest:
    return read_manifest("tiny")


def semi(name: str) -> Semi:
    protocol = find_protocol("semi", name)
    assert isinstance(protocol, Semi)
    return protocol


def test_the_draw_takes_its_share_of_every_class(manifest: Manifest) -> None:
    files = np.array(manifest.file_names("train"))
    chosen = choose(manifest, semi("sample-10"), seed=0, image_list=None)
    assert (np.diff(chosen) > 0).all()
    for label in manifest.classes:
        members = sum(name.startswith(f"{label}/") for name in files)
        assert sum(name.startswith(f"{label}/") for name in files[chosen]) == round(members / 10)


def test_the_draw_follows_its_seed_alone(manifest: Manifest) -> None:
    protocol = semi("sample-10")
    first = choose(manifest, protocol, 0, None)
    assert (choose(manifest, protocol, 0, None) == first).all()
    assert set(choose(manifest, protocol, 1, None)) != set(first)


def test_a_list_names_its_images_with_or_without_their_class(manifest: Manifest, tmp_path: Path) -> None:
    files = manifest.file_names("train")
    whole, short = tmp_path / "whole.txt", tmp_path / "short.txt"
    whole.write_text("\n".join([files[7], files[3]]))
    short.write_text("\r\n".join(name.partition("/")[2] for name in (files[3], files[7])) + "\r\n")
    for path in (whole, short):
        assert choose(manifest, semi("sample-10"), 0, path).tolist() == [3, 7]
    assert identity(whole).removeprefix("list sha256:") == list_hash(sorted([files[3], files[7]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("a.jpg\nb.jpg\na.jpg", "a.jpg is listed twice"),
        ("nowhere.jpg", "1 of 1 images are not in tiny, e.g. nowhere.jpg"),
        (b"\xff\xfe\x00", "not a readable list"),
    ],
)
def test_a_bad_list_is_refused(manifest: Manifest, tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        choose(manifest, semi("sample-10"), 0, path)


def test_an_absent_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a readable list"):
        read_list(tmp_path / "none.txt")


def test_another_subset_than_the_standard_one_is_a_deviation() -> None:
    standard = next(protocol for protocol in PROTOCOLS["semi"] if isinstance(protocol, Semi) and protocol.standard_list)
    assert "published the standard list" in str(deviation(standard, "drawn"))
    assert deviation(semi("sample-10"), "drawn") is None


@given(st.integers(2, 300), st.integers(1, 64), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_an_epoch_shows_every_labelled_image_once(n: int, batch: int, epoch: int) -> None:
    index = np.arange(n) * 3
    part = ShuffledPart(0, index, batch)
    batches = part.batches(epoch)
    assert len(batches) == part.batches_per_epoch
    seen = np.concatenate(batches)
    assert len(set(seen)) == len(seen) >= n - 1
    assert set(seen) <= set(index)
    if len(batches) > 1 and batch > 1:
        assert len(batches[-1]) > 1


def test_rates_follow_their_schedules() -> None:
    cosine = Semi("t", "", 1, 0.1, 1, 32, 20, "cosine")
    step = Semi("t", "", 1, 0.1, 1, 32, 20, "step", steps=(12, 16), gamma=0.2)
    assert rate_share(cosine, 0) == 1
    assert rate_share(cosine, 5) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert [rate_share(step, epoch) for epoch in (11, 12, 15, 16)] == pytest.approx([1, 0.2, 0.2, 0.04])
    assert rate_share(Semi("t", "", 1, 0.1, 1, 32, 20, "constant"), 19) == 1


def test_a_backbone_is_fine_tuned(places: Path, command: Callable[..., CompletedProcess[str]]) -> None:
    """And the same again from a list of the very images that were drawn: another id, the same result."""
    small = ("data.dataset=tiny", "batch=64", "monitor.knn_every=0")
    assert command("-m", "pretrain", "sample/random", *small).returncode == 0
    (folder,) = (places / "pretrain").iterdir()
    ckpt = ("--ckpt", str(folder))
    done = command("-m", "pretrain.evaluate", "semi", *ckpt)
    assert done.returncode == 0, done.stderr
    (drawn,) = (places / "semi").iterdir()
    record = read_record(drawn)
    assert record is not None
    assert record.metrics["labelled"] == 43
    judged = [line["top1"] for line in read_metrics(drawn)]
    assert len(judged) == 20
    assert record.metrics["top1"] == judged[-1]
    assert record.metrics["top1_best"] == max(judged) == judged[record.metrics["best_epoch"] - 1]
    assert record.metrics["top1"] > 100 / 3

    manifest = read_manifest("tiny")
    files = manifest.file_names("train")
    names = places / "list.txt"
    names.write_text("\n".join(files[place] for place in choose(manifest, semi("sample-10"), 0, None)))
    assert command("-m", "pretrain.evaluate", "semi", *ckpt, "--list", str(names)).returncode == 0
    (listed,) = set((places / "semi").iterdir()) - {drawn}
    again = read_record(listed)
    assert again is not None
    assert again.metrics["top1"] == record.metrics["top1"]
