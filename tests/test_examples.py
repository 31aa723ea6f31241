"""The examples run as their pages say."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([EXAMPLES / script, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture
def data(places: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A data root that can be written to, with links to the sample."""
    root = tmp_path / "data"
    root.mkdir()
    for folder in Path(os.environ["WHITEBENCH_DATA"]).iterdir():
        (root / folder.name).symlink_to(folder.resolve())
    monkeypatch.setenv("WHITEBENCH_DATA", str(root))
    return root


def test_a_method_of_one_s_own_is_trained_and_evaluated(data: Path, tmp_path: Path) -> None:
    done = run("own_method/run.sh", "data.dataset=tiny", "batch=64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "attract-s0-" in done.stderr
    assert "knn cosine-20 on tiny" in done.stdout
    assert "top1" in done.stdout


def test_a_folder_of_one_s_own_images_is_written_shown_and_trained_on(data: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 256, (60, 70, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
    done = run("own_images.sh", str(tmp_path / "pets"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "views.png").exists()
    assert "knn cosine-20 on pets" in done.stdout


@pytest.mark.parametrize(
    ("network", "tensors", "protocol"),
    [("resnet18", "100 of 100", "sample"), ("vit_tiny_patch16_224", "150 of 150", "sample-vitdet")],
)
def test_a_checkpoint_becomes_ap_by_the_protocol_for_its_network(
    network: str, tensors: str, protocol: str, data: Path, tmp_path: Path
) -> None:
    import timm
    import torch

    torch.save(timm.create_model(network).state_dict(), tmp_path / "checkpoint.pth")
    short = ("--coco", "sample-det", "--iterations", "2", "--subset", "4")
    done = run("checkpoint_to_ap.sh", str(tmp_path / "checkpoint.pth"), *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{tensors} tensors" in done.stdout
    assert "box AP" in done.stdout
    assert list((tmp_path / "runs" / "detect").glob(f"*-{protocol}-d0-*"))


@pytest.mark.parametrize("script", ["own_images.sh", "checkpoint_to_ap.sh"])
def test_without_its_argument_a_script_says_how_it_is_used(script: str, tmp_path: Path) -> None:
    done = run(script, cwd=tmp_path)
    assert (done.returncode, done.stderr.startswith("usage: ")) == (2, True)
