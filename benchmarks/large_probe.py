"""Memory and time of k-NN and linear probe at ImageNet's size, on random features.

Features are written to a file in half precision and mapped, as a cache of them would be. k-NN compares some queries
with all training rows, the linear probe takes some steps of its protocol's batches; both are this suite's own code.
Time is extrapolated to 50,000 queries and to an epoch.

    python benchmarks/large_probe.py                                 1,281,167 x 2048, 5.2 GB of disk
    python benchmarks/large_probe.py --images 128000 --memory       a tenth of it, float32 in memory
"""

import argparse
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from pretrain.evaluate.knn import nearest_neighbours
from pretrain.evaluate.linear import Embedded, linear_head, train_epoch, with_rates
from pretrain.evaluate.protocol_kinds import KNN, Linear
from pretrain.evaluate.protocols import find_protocol

VALIDATION = 50_000
CHUNK = 16_384
"""Rows that are drawn at once."""


class Peak:
    """Highest resident memory of this process while it is measured, GB."""

    def __init__(self) -> None:
        self.total = self.anonymous = 0.0
        """Anonymous pages are the process's own; the others are of mapped files, which the system may drop."""


@contextmanager
def measured_memory() -> Iterator[Peak]:
    """Samples /proc/self/status every 20 ms."""
    peak, stop = Peak(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak.total = max(peak.total, int(fields["VmRSS"].split()[0]) / 1e6)
            peak.anonymous = max(peak.anonymous, int(fields["RssAnon"].split()[0]) / 1e6)
            stop.wait(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def random_features(path: Path, count: int, width: int, in_memory: bool) -> Tensor:
    """Random rows [count, width]: half precision in the file `path`, mapped, or float32 in memory.

    One chunk is drawn; the others are it with its columns rotated, as drawing billions of numbers takes minutes.
    """
    kind = np.float32 if in_memory else np.float16
    drawn = np.random.default_rng(0).standard_normal((min(CHUNK, count), width), dtype=np.float32).astype(kind)
    rows = np.empty((count, width), kind) if in_memory else np.memmap(path, kind, "w+", shape=(count, width))
    for number, start in enumerate(range(0, count, CHUNK)):
        stop = min(start + CHUNK, count)
        rows[start:stop] = np.roll(drawn[: stop - start], number, axis=1)
    if isinstance(rows, np.memmap):
        rows.flush()
    return torch.from_numpy(rows)


def time_knn(train: Tensor, queries: int, protocol: KNN) -> dict[str, float]:
    test = torch.randn(queries, train.shape[1])
    with measured_memory() as peak:
        began = time.perf_counter()
        nearest_neighbours(train, test, protocol, torch.device("cpu"))
        seconds = time.perf_counter() - began
    return result(peak, seconds, {"queries": queries, "hours_for_all": seconds * VALIDATION / queries / 3600})


def time_linear(train: Tensor, classes: int, steps: int, protocol: Linear) -> dict[str, float]:
    labels = torch.randint(classes, (len(train),))
    with measured_memory() as peak:
        batches = Embedded(train, labels, protocol.batch, seed=0)
        probe = linear_head(train.shape[1], classes, protocol.init_std)
        optimizer = torch.optim.Adam(probe.parameters(), protocol.base_lr)
        began = time.perf_counter()
        train_epoch(probe, optimizer, itertools.islice(with_rates(batches, 0, protocol), steps))
        seconds = time.perf_counter() - began
    epoch = seconds * batches.batches_per_epoch / steps / 3600
    return result(peak, seconds, {"steps": steps, "batch": protocol.batch, "hours_for_an_epoch": epoch})


def result(peak: Peak, seconds: float, values: dict[str, float]) -> dict[str, float]:
    return {
        **{key: round(value, 4) for key, value in values.items()},
        "seconds": round(seconds, 2),
        "peak_gb": round(peak.total, 2),
        "peak_without_mapped_files_gb": round(peak.anonymous, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=1024, help="of k-NN")
    parser.add_argument("--steps", type=int, default=20, help="of the linear probe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="float32 in memory instead of a mapped file")
    parser.add_argument("--folder", type=Path, help="for the file; default: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    knn, linear = find_protocol("knn", "cosine-20"), find_protocol("linear", "features")
    assert isinstance(knn, KNN)
    assert isinstance(linear, Linear)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "features"
        train = random_features(path, arguments.images, arguments.features, arguments.memory)
        setting = {"images": arguments.images, "features": arguments.features, "threads": arguments.threads}
        print(json.dumps({**setting, "features_in": "memory, float32" if arguments.memory else "a file, float16"}))
        print(json.dumps({"knn": time_knn(train, arguments.queries, knn)}), flush=True)
        print(json.dumps({"linear": time_linear(train, arguments.classes, arguments.steps, linear)}), flush=True)


if __name__ == "__main__":
    main()
