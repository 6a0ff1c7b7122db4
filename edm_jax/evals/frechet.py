"""Fréchet distances between sets of features (Heusel et al., arXiv 1706.08500)."""

import numpy as np


def gaussian_fit(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64.

    Raises:
      ValueError: the shape is another, or features are not finite.
    """
    features = np.asarray(features, np.float64)
    _check(features)
    return features.mean(axis=0), np.cov(features, rowvar=False).reshape(
        features.shape[1], -1
    )


def frechet_distance(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) of two Gaussian fits.

    The root is taken through eigenvalues of the symmetric S_a^1/2 S_b S_a^1/2, which
    holds for singular covariances too.

    Raises:
      ValueError: statistics are not finite.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    named = {
        "mean of the first set": mean_a,
        "covariance of the first set": cov_a,
        "mean of the second set": mean_b,
        "covariance of the second set": cov_b,
    }
    if bad := [name for name, value in named.items() if not np.isfinite(value).all()]:
        raise ValueError(f"The Fréchet distance needs a finite {' and '.join(bad)}.")
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_b @ root)
    trace_root = np.sqrt(np.clip(product, 0, None)).sum()
    difference = np.sum((mean_a - mean_b) ** 2)
    distance = difference + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_root
    return max(float(distance), 0.0)  # rounding may leave it just below


def pixel_frechet(samples: np.ndarray, reference: np.ndarray) -> float:
    """Fréchet distance of raw pixels of (N, H, W, C) images, scaled to sigma_data.

    Not FID: the features are the pixels themselves.

    Raises:
      ValueError: pixels are not finite; which set's.
    """
    sets = []
    for name, images in (("samples", samples), ("reference images", reference)):
        features = np.asarray(images, np.float64).reshape(len(images), -1)
        try:
            _check(features)
        except ValueError as error:
            raise ValueError(f"Pixel Fréchet distance, {name}: {error}") from None
        sets.append(features)
    if min(map(len, sets)) < sets[0].shape[1]:
        return _distance_of_few(*sets)
    return frechet_distance(*map(gaussian_fit, sets))


def _distance_of_few(a: np.ndarray, b: np.ndarray) -> float:
    """`frechet_distance` of features (N, D), (M, D), without the (D, D) covariances.

    Where S_a = A^T A and S_b = B^T B, tr (S_a S_b)^1/2 is the sum of the singular values
    of A B^T (N, M).
    """
    means = a.mean(axis=0), b.mean(axis=0)
    scaled_a, scaled_b = (
        (x - mean) / np.sqrt(len(x) - 1) for x, mean in zip((a, b), means, strict=True)
    )
    trace_root = np.linalg.svd(scaled_a @ scaled_b.T, compute_uv=False).sum()
    traces = np.square(scaled_a).sum() + np.square(scaled_b).sum()
    difference = np.sum((means[0] - means[1]) ** 2)
    return max(float(difference + traces - 2 * trace_root), 0.0)


def _check(features: np.ndarray) -> None:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"Features must be (N >= 2, D), not {features.shape}.")
    if bad := np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
        raise ValueError(
            f"{len(bad)} of {len(features)} rows of features are not finite, "
            f"the first of them row {bad[0]}."
        )
