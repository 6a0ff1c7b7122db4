"""Fréchet distances between sets of features (Heusel et al., arXiv 1706.08500)."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and centred second moment of features, in float64; sums of them merge.

    a + b are the moments of both sets, by the update of Chan, Golub and LeVeque (1979),
    which loses no digits where the mean is far larger than the deviations. So batches,
    devices and hosts may each give their share.

    Attributes:
        count: N.
        mean: (D,).
        scatter: sum of (x - mean)(x - mean)^T, (D, D).
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Moments":
        """The moments of features (N, D).

        Raises:
            ValueError: the shape is another, or features are not finite.
        """
        features = _checked(features, at_least=1)
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        shift = other.mean - self.mean
        between = np.outer(shift, shift) * (self.count * other.count / count)
        mean = self.mean + shift * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def gaussian(self) -> "Gaussian":
        """The fit, with the unbiased covariance (N - 1); raises ValueError for N < 2."""
        if self.count < 2:
            raise ValueError("A covariance needs at least two images.")
        return Gaussian.of(self.mean, self.scatter / (self.count - 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """A mean (D,) and a factor F (R, D) of the covariance F^T F."""

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, mean: np.ndarray, covariance: np.ndarray) -> "Gaussian":
        """The Gaussian of a mean (D,) and a covariance (D, D).

        Eigenvalues that are 0 to rounding, as of fewer images than features, are left
        out: their roots would be a hundred million times the rounding.

        Raises:
            ValueError: the numbers are not finite.
        """
        named = {"mean": mean, "covariance": covariance}
        if bad := [name for name, value in named.items() if not _is_finite(value)]:
            raise ValueError(
                f"The Fréchet distance needs a finite {' and '.join(bad)}."
            )
        values, vectors = np.linalg.eigh(covariance)
        noise = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
        kept = values > noise
        factor = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
        return cls(np.asarray(mean, np.float64), factor)

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """(D, D)."""
        return self.factor.T @ self.factor


def gaussian_fit(features: np.ndarray) -> Gaussian:
    """The Gaussian of features (N, D), with the unbiased covariance, in float64.

    Raises:
        ValueError: the shape is another, or features are not finite.
    """
    features = _checked(features, at_least=2)
    if len(features) > features.shape[1]:
        return Moments.of(features).gaussian()
    # Of fewer images than features the (D, D) covariance is never made.
    mean = features.mean(axis=0)
    return Gaussian(mean, (features - mean) / np.sqrt(len(features) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) of two Gaussians.

    Where S_a = A^T A and S_b = B^T B, tr (S_a S_b)^1/2 is the sum of the singular values
    of A B^T, each known to the rounding of the largest. No matrix root is taken, and
    singular covariances need nothing added to them.
    """
    trace_root = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    traces = np.square(a.factor).sum() + np.square(b.factor).sum()
    difference = np.sum((a.mean - b.mean) ** 2)
    # Rounding may leave it just below 0.
    return max(float(difference + traces - 2 * trace_root), 0.0)


def pixel_frechet(samples: np.ndarray, reference: np.ndarray) -> float:
    """Fréchet distance of raw pixels of (N, H, W, C) images, scaled to sigma_data.

    Not FID: the features are the pixels themselves.

    Raises:
        ValueError: pixels are not finite; which set's.
    """
    fits = []
    for name, images in (("samples", samples), ("reference images", reference)):
        try:
            fits.append(gaussian_fit(np.reshape(images, (len(images), -1))))
        except ValueError as error:
            raise ValueError(f"Pixel Fréchet distance, {name}: {error}") from None
    return frechet_distance(*fits)


def _is_finite(value: np.ndarray) -> bool:
    return bool(np.isfinite(value).all())


def _checked(features: np.ndarray, at_least: int) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < at_least:
        raise ValueError(
            f"Features must be (N >= {at_least}, D), not {features.shape}."
        )
    if bad := np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
        raise ValueError(
            f"{len(bad)} of {len(features)} rows of features are not finite, "
            f"the first of them row {bad[0]}."
        )
    return features
