"""How near samples come to a density that is known exactly."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import digamma

from edm_jax import data
from edm_jax.data import plane
from edm_jax.data.plane import Mixture
from edm_jax.fields import Positive, Settings

if TYPE_CHECKING:
    from edm_jax.evals.evaluation import Subject

_NEIGHBOUR = 3
_RARE = 1e-3  # share of the data that counts as outliers


@dataclasses.dataclass(frozen=True)
class Density(Settings):
    """KL divergence of samples from the exact density, for data that have one; and its
    floor.

    cross entropy - entropy, in nats: E_q[-ln p] says how good samples are, and E_q[-ln q]
    how varied. Both with a little noise added. The entropy is estimated from distances
    to the third nearest sample (Kozachenko and Leonenko), also for exact draws of the
    same number, whose divergence is the floor. Of networks with classes, the mean over
    the classes.
    """

    headline: ClassVar[str] = "density_kl"  # the first of its numbers
    sigma: Positive = 0.02  # of the noise, in units of the data

    def evaluate(self, subject: "Subject") -> dict[str, Any]:
        """density_kl, its floor and parts, and density_outliers, a share."""
        config = subject.config
        mixtures = getattr(config.data.reader, "mixtures", None)
        if mixtures is None:
            raise ValueError(
                f"The evaluator 'density' needs data whose density is known, and that of "
                f"{config.data.name!r} is not: leave it out of evaluation.evaluators."
            )
        raw = data.denormalize(config.data, subject.images).reshape(-1, 2)
        classes = mixtures()
        if not config.network.num_classes:
            classes = (plane.together(classes),)
        parts = [
            compare(mixture, raw[subject.labels == label], self.sigma)
            for label, mixture in enumerate(classes)
            if np.any(subject.labels == label)
        ]
        means = {
            name: float(np.mean([part[name] for part in parts])) for name in parts[0]
        }
        return {f"density_{name}": mean for name, mean in means.items()}


def compare(mixture: Mixture, points: np.ndarray, sigma: float) -> dict[str, float]:
    """kl, kl_floor, cross_entropy, entropy and outliers of points (N, 2).

    Raises:
        ValueError: points are not finite.
    """
    if bad := int(np.sum(~np.isfinite(points).all(axis=1))):
        raise ValueError(f"{bad} of {len(points)} samples are not finite.")
    floor, rare = _exact(mixture, len(points), sigma)
    noisy, log = _with_noise(mixture, points, sigma)
    entropy = entropy_of(noisy)
    return {
        "kl": float(-log.mean()) - entropy,
        "kl_floor": floor,
        "cross_entropy": float(-log.mean()),
        "entropy": entropy,
        "outliers": float(np.mean(log < rare)),
    }


def outliers(mixture: Mixture, points: np.ndarray, sigma: float) -> np.ndarray:
    """Which points (N, 2) are less likely than all but a thousandth of the data, (N,)."""
    _, rare = _exact(mixture, len(points), sigma)
    return _with_noise(mixture, points, sigma)[1] < rare


def _with_noise(
    mixture: Mixture, points: np.ndarray, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    noisy = points + sigma * np.random.default_rng(0).standard_normal(points.shape)
    return noisy, _log_density(mixture, noisy, sigma)


@functools.lru_cache(maxsize=16)
def _exact(mixture: Mixture, count: int, sigma: float) -> tuple[float, float]:
    """The divergence of exact draws, and the ln p below which a point is an outlier."""
    rng = np.random.default_rng(1)
    points = mixture.sample(rng, max(count, 2**14))
    points += sigma * rng.standard_normal(points.shape)
    log = _log_density(mixture, points, sigma)
    floor = float(-log[:count].mean()) - entropy_of(points[:count])
    return floor, float(np.quantile(log, _RARE))


def _log_density(mixture: Mixture, points: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(mixture.log_density(np.float32(points), sigma), np.float64)


def entropy_of(points: np.ndarray) -> float:
    """An estimate of the differential entropy of the density of points (N, 2), in nats.

    psi(N) - psi(k) + ln pi + 2 mean(ln r), r the distance to the k-th nearest.
    """
    # Imported here, as every command imports this file.
    from scipy.spatial import KDTree

    distance, _ = KDTree(points).query(points, k=_NEIGHBOUR + 1)  # the first: itself
    spread = 2 * np.log(distance[:, -1]).mean()
    return float(digamma(len(points)) - digamma(_NEIGHBOUR) + np.log(np.pi) + spread)
