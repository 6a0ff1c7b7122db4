"""Fréchet distances between sets of features (Heusel et al., arXiv 1706.08500)."""

import numpy as np


def gaussian_fit(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64.

    Raises:
      ValueError: the shape is another, or features are not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"Features must be (N >= 2, D), not {features.shape}.")
    if bad := np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
        raise ValueError(
            f"{len(bad)} of {len(features)} rows of features are not finite, "
            f"the first of them row {bad[0]}."
        )
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
    fits = []
    for name, images in (("samples", samples), ("reference images", reference)):
        try:
            fits.append(gaussian_fit(images.reshape(len(images), -1)))
        except ValueError as error:
            raise ValueError(f"Pixel Fréchet distance, {name}: {error}") from None
    return frechet_distance(*fits)
