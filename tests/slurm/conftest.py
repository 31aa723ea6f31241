"""What tests on a real SLURM cluster share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launching import prepare
from tests.support.own_cluster import NoCluster, own_cluster


@pytest.fixture
def lab_folder(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a launcher whose preset `lab` is a cluster of this test's own, with a tiny dataset."""
    try:
        with own_cluster():
            folder = prepare(tmp_path, monkeypatch, "lab", "kind: slurm\nsignal_delay_s: 5\n")
            monkeypatch.setenv("WHITEBENCH_DATA", str(tiny_root))
            yield folder
    except NoCluster as reason:
        pytest.skip(str(reason))
