"""k-means over the embeddings of a whole training set, by faiss."""

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from pretrain.distributed import rank, world_size
from whitebench.errors import UserError


@dataclass(frozen=True)
class Clusters:
    centroids: Tensor
    """[K, D], rows of length 1."""
    concentration: Tensor
    """[K]: phi, the temperature of each cluster; small where its members lie close together."""
    assignment: Tensor
    """int64 [n]: the cluster of each image."""


def cluster(
    features: Tensor, k: int, temperature: float, seed: int = 0, iterations: int = 20, repeats: int = 5
) -> Clusters:
    """Euclidean k-means of unit vectors; the best of `repeats` runs. Every process gets rank 0's result.

    Args:
        features: float32 [n, D], rows of length 1, the same on every process.
        temperature: mean of the concentrations.
        seed: of the initial centroids.
    Raises:
        UserError: more clusters than images, or features that are not finite.
    """
    n, d = features.shape
    check_clusters(k, n)
    if not features.isfinite().all():
        raise UserError("embeddings to be clustered are not finite: the training has diverged")
    device = features.device
    shapes = ((k, d), torch.float32), ((n,), torch.float32), ((n,), torch.int64)
    results = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in shapes]
    if rank() == 0:
        results = [tensor.to(device) for tensor in _kmeans(features.cpu(), k, seed, iterations, repeats)]
    if world_size() > 1:
        for tensor in results:
            dist.broadcast(tensor, src=0)
    centroids, distances, assignment = results
    phi = concentrations(distances, assignment, k, temperature)
    return Clusters(torch.nn.functional.normalize(centroids), phi, assignment)


def check_clusters(k: int, images: int) -> None:
    """Raises `UserError` if `images` images cannot be put into k clusters, or faiss is not installed."""
    if not 1 <= k <= images:
        raise UserError(f"{k} clusters cannot be made of {images} images; choose method.clusters of at most {images}")
    if importlib.util.find_spec("faiss") is None:
        raise UserError("clusters need the package faiss: pip install faiss-cpu")


def concentrations(distances: Tensor, assignment: Tensor, k: int, temperature: float) -> Tensor:
    """phi of each cluster: mean distance of its Z members to its centroid over log(Z + 10).

    As in PCL's official code, a cluster of fewer than two members gets the largest phi, values are clipped to their
    10th and 90th percentile, and scaled to the mean `temperature`.

    Args:
        distances: [n], Euclidean, of each image to its own centroid.
        assignment: int64 [n], below k.
    Returns:
        [k].
    """
    count = torch.bincount(assignment, minlength=k)
    total = torch.zeros(k, dtype=distances.dtype, device=distances.device).index_add_(0, assignment, distances)
    phi = total / count.clamp_min(1) / (count + 10).to(distances.dtype).log()
    phi = torch.where(count > 1, phi, phi[count > 1].max() if (count > 1).any() else torch.ones_like(phi))
    low, high = _percentile(phi, 0.1), _percentile(phi, 0.9)
    phi = phi.clamp(low, high)
    mean = phi.mean()
    return phi * (temperature / mean) if float(mean) > 0 else torch.full_like(phi, temperature)


def _percentile(values: Tensor, share: float) -> float:
    """By linear interpolation (torch.quantile takes no more than 16 million values)."""
    import numpy as np

    return float(np.quantile(values.cpu().numpy(), share))


def _kmeans(features: Tensor, k: int, seed: int, iterations: int, repeats: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centroids [k, D], and of each image the distance to its own and which it is."""
    import faiss

    # Images a centroid, as PCL has them; faiss draws a sample of larger sets and warns below.
    settings = {"max_points_per_centroid": 1000, "min_points_per_centroid": 10, "seed": seed % 2**31}
    faiss.omp_set_num_threads(torch.get_num_threads())
    on_gpu = getattr(faiss, "get_num_gpus", lambda: 0)() > 0
    kmeans = faiss.Kmeans(features.shape[1], k, niter=iterations, nredo=repeats, gpu=on_gpu, **settings)
    points = features.numpy()
    kmeans.train(points)
    squared, assignment = kmeans.index.search(points, 1)
    distances = torch.from_numpy(squared[:, 0]).clamp_min(0).sqrt()
    return torch.from_numpy(kmeans.centroids), distances, torch.from_numpy(assignment[:, 0])
