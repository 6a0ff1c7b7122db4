"""Distances between sets of features besides Fréchet's, in NumPy float64.

Where a distance draws subsets, the draws are torch-fidelity's, so that the numbers are
comparable digit by digit.
"""

import itertools
from collections.abc import Iterator

import numpy as np

_BLOCK = 1 << 24  # distances held at a time
_SEED = 2020  # of the draws


def kid(
    real: np.ndarray, fake: np.ndarray, subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """Kernel inception distance (Binkowski et al., arXiv 1801.01401).

    The unbiased squared MMD of the kernel k(x, y) = (x.y / D + 1)^3, averaged over
    subsets drawn without replacement. Unbiased, so it may fall just below 0.

    Args:
        real, fake: features (N, D), (M, D).
        subsets: how many are drawn.
        size: images of each; all of the smaller set, where that has fewer.

    Returns:
        The mean over the subsets, and their standard deviation.

    Raises:
        ValueError: a set has fewer than two images.
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    size = min(size, len(real), len(fake))
    if size < 2:
        raise ValueError("The kernel distance needs at least two images in each set.")
    rng = np.random.RandomState(_SEED)
    found = []
    for _ in range(subsets):
        x = real[rng.choice(len(real), size, replace=False)]
        y = fake[rng.choice(len(fake), size, replace=False)]
        within = sum(_off_diagonal_sum(_kernel(z, z)) for z in (x, y))
        between = _kernel(x, y).mean()
        found.append(within / (size * (size - 1)) - 2 * between)
    return float(np.mean(found)), float(np.std(found))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal_sum(kernel: np.ndarray) -> float:
    return kernel.sum() - np.trace(kernel)


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """exp(E_x KL(p(y|x) || p(y))) (Salimans et al., arXiv 1606.03498).

    Args:
        logits: (N, classes), without the classifier's bias.
        splits: into how many parts the shuffled images are divided.

    Returns:
        The mean over the parts, and their standard deviation.

    Raises:
        ValueError: there are fewer images than parts.
    """
    logits = np.asarray(logits, np.float64)
    if len(logits) < splits:
        raise ValueError(
            f"The Inception Score of {splits} parts needs at least as many images, not "
            f"{len(logits)}."
        )
    logits = logits[np.random.RandomState(_SEED).permutation(len(logits))]
    top = logits.max(axis=1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    ends = np.arange(splits + 1) * len(logits) // splits
    scores = []
    for start, end in itertools.pairwise(ends):
        part = log_p[start:end]
        p = np.exp(part)
        # Only a class whose p underflowed in all images has no marginal, and adds 0.
        marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (part - marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    real: np.ndarray, fake: np.ndarray, k: int = 3
) -> tuple[float, float]:
    """Shares of each set inside the other's manifold (arXiv 1904.06991).

    A set's manifold is the union of balls around its features, each reaching to the k-th
    nearest neighbour within the set.

    Args:
        real, fake: features (N, D), (M, D).
        k: neighbours.

    Returns:
        Precision, the share of `fake` within the real manifold, and recall, the share
        of `real` within the other.

    Raises:
        ValueError: a set has no k-th neighbours.
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    precision = _inside(fake, real, k) > 0
    recall = _inside(real, fake, k) > 0
    return float(precision.mean()), float(recall.mean())


def density_coverage(
    real: np.ndarray, fake: np.ndarray, k: int = 5
) -> tuple[float, float]:
    """Density and coverage (Naeem et al., arXiv 2002.09797).

    Args:
        real, fake: features (N, D), (M, D).
        k: neighbours.

    Returns:
        Density, the mean over `fake` of the number of real balls around it, divided by
        k, which can exceed 1; and coverage, the share of real balls that hold any.

    Raises:
        ValueError: the real set has no k-th neighbours.
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    radii = _squared_radii(real, k)
    around, covered = 0, np.zeros(len(real), bool)
    for _, squared in _squared_distances(fake, real):
        inside = squared <= radii
        around += int(inside.sum())
        covered |= inside.any(axis=0)
    return around / (k * len(fake)), float(covered.mean())


def _inside(points: np.ndarray, centres: np.ndarray, k: int) -> np.ndarray:
    """How many balls around `centres` each of `points` is in, (N,)."""
    radii = _squared_radii(centres, k)
    counts = np.zeros(len(points), int)
    for rows, squared in _squared_distances(points, centres):
        counts[rows] = (squared <= radii).sum(axis=1)
    return counts


def _squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    """Squared distance (N,) of each to its k-th nearest neighbour."""
    if len(features) <= k:
        raise ValueError(
            f"A manifold of {k} neighbours needs more than {k} images, not "
            f"{len(features)}."
        )
    radii = np.zeros(len(features))
    for rows, squared in _squared_distances(features, features):
        radii[rows] = np.partition(squared, k, axis=1)[:, k]  # the 0th is itself
    return radii


def _squared_distances(
    a: np.ndarray, b: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of `a` (N, D) and their squared distances to `b` (M, D), block by block."""
    squares_a, squares_b = (np.square(x).sum(axis=1) for x in (a, b))
    step = max(1, _BLOCK // len(b))
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        sums = squares_a[rows, None] + squares_b
        squared = sums - 2 * a[rows] @ b.T
        # What rounding leaves of 0: a copy of an image is at no distance.
        yield rows, np.where(squared < 1e-12 * sums, 0.0, squared)
