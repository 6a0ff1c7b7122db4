"""What a distance of finitely many images says: draws, intervals, and the bias."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

# Images from which on the bias of a Fréchet distance is usually ignored.
ENOUGH = 50_000
_POINTS = 15


@dataclasses.dataclass(frozen=True)
class Draws:
    """A metric of several sets of samples, each from seeds of its own."""

    values: tuple[float, ...]

    @property
    def lowest(self) -> float:
        """The lowest: what the papers report of three draws. Lower than the mean."""
        return min(self.values)

    @property
    def mean(self) -> float:
        """The mean over the draws."""
        return float(np.mean(self.values))

    @property
    def half_width(self) -> float | None:
        """Half of the 95% interval of the mean, by Student's t; None of one draw."""
        if len(self.values) < 2:
            return None
        import scipy.stats

        t = scipy.stats.t.ppf(0.975, len(self.values) - 1)
        return float(t * np.std(self.values, ddof=1) / np.sqrt(len(self.values)))


def at_infinity(
    distance: Callable[[np.ndarray], float],
    features: np.ndarray,
    counts: Sequence[int] | None = None,
    seed: int = 0,
) -> float:
    """A distance extrapolated to infinitely many images (arXiv 1911.07023).

    The bias of a Fréchet distance falls as 1/N. A line through distances of subsets,
    fitted against 1/N, meets 1/N = 0 at the value without that bias.

    Args:
        distance: of features (n, D) to the reference.
        features: (N, D).
        counts: sizes of the subsets; by default 15 from N/10 to N, equally spaced.
        seed: of the subsets, which are drawn without replacement.

    Returns:
        The intercept. A remaining bias of the reference's own size is not removed.

    Raises:
        ValueError: there are fewer than 20 images.
    """
    if len(features) < 20:
        raise ValueError(
            f"An extrapolation needs at least 20 images, not {len(features)}."
        )
    spaced = np.linspace(max(2, len(features) // 10), len(features), _POINTS)
    sizes = counts or spaced.astype(int).tolist()
    rng = np.random.default_rng(seed)
    found = [
        distance(features[rng.choice(len(features), count, replace=False)])
        for count in sizes
    ]
    inverse = 1 / np.asarray(sizes, np.float64)
    slope, mean = np.cov(inverse, found)[0, 1] / np.var(inverse, ddof=1), np.mean(found)
    return float(mean - slope * inverse.mean())
