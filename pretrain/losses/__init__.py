"""What several methods share: whitening, covariance, similarity, momentum contrast, k-means."""
