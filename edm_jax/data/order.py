"""In which order a split's examples are trained on, and how often each of them."""

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import numpy as np

from edm_jax.fields import NotNegative, Settings, Share


@runtime_checkable
class Sampling(Protocol):
    """An entry of SAMPLINGS."""

    def weights(self, counts: np.ndarray) -> np.ndarray:
        """How often an example of each class is drawn, relative to others (K,) float64.

        Args:
            counts: the examples of each class (K,).

        Raises:
            ValueError: it does not suit these classes.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Uniform(Settings):
    """Every example once per epoch."""

    def weights(self, counts: np.ndarray) -> np.ndarray:
        """Ones."""
        return np.ones(len(counts))


@dataclasses.dataclass(frozen=True)
class Balanced(Settings):
    """Rare classes more often: a class of n examples has a share of n^(1 - power)."""

    power: Share = 1.0  # 1: all classes equally often; 0: as `uniform`

    def weights(self, counts: np.ndarray) -> np.ndarray:
        """n^-power."""
        return np.where(counts > 0, np.maximum(counts, 1.0) ** -self.power, 0.0)


@dataclasses.dataclass(frozen=True)
class Weighted(Settings):
    """Examples of class k as often as `by_class[k]` says, relative to other classes."""

    by_class: tuple[NotNegative, ...] = ()  # one for each class; 0 leaves it out

    def weights(self, counts: np.ndarray) -> np.ndarray:
        """Those of the config."""
        if len(self.by_class) != len(counts):
            raise ValueError(
                f"data.sampling.by_class has {len(self.by_class)} weights, and there "
                f"are {len(counts)} classes: give one for each."
            )
        if not np.any((found := np.array(self.by_class)) * counts):
            raise ValueError(
                f"data.sampling.by_class={self.by_class} leaves no example: the classes "
                "with a weight have none."
            )
        return found


SAMPLINGS = {"uniform": Uniform, "balanced": Balanced, "weighted": Weighted}


def batch_rows(
    step: int, batch_size: int, seed: int, size: int, strata: "Strata | None" = None
) -> np.ndarray:
    """Returns the rows (batch_size,) of the global batch that `step` trains on.

    Args:
        step: the steps taken before.
        batch_size: images of the global batch.
        seed: of the order.
        size: the examples of the split, which is the length of an epoch.
        strata: how often each is drawn; None: once per epoch.
    """
    order = epoch_order if strata is None else strata.order
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(places, size)
    return np.concatenate(
        [
            order(seed, epoch, size)[places[epochs == epoch]]
            for epoch in np.unique(epochs).tolist()
        ]
    )


# A pure function, remembered because consecutive batches share an epoch.
@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns the order (size,) in which `epoch` visits the rows."""
    # A resumed run must find its order again under a later NumPy, which promises to keep
    # the stream of a bit generator, but not what `shuffle` makes of it.
    return np.argsort(_bits(seed, epoch).random_raw(size), kind="stable")


def _bits(*entropy: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence(entropy))


class Strata:
    """Orders in which examples come as often as their classes' weights say.

    Of an epoch of N places, an example of the share w is drawn floor(N w) or ceil(N w)
    times, N w on average over epochs, and a class of the share W at most 2 times more or
    fewer than N W: the examples lie side by side on the unit interval, class by class,
    each class in an order of the epoch, and are met by N points 1 / N apart (systematic
    sampling). Shares without a remainder, such as equal ones, are met exactly.

    Args:
        labels: the examples' classes (N,).
        weights: of an example of each class (K,).
    """

    def __init__(self, labels: np.ndarray, weights: np.ndarray):
        self._labels, self._weights = labels, weights
        # Remembered as above; of this object alone.
        self.order = functools.lru_cache(maxsize=4)(self._order)

    def __reduce__(self) -> tuple:
        return Strata, (self._labels, self._weights)

    def _order(self, seed: int, epoch: int, size: int) -> np.ndarray:
        bits = _bits(seed, epoch, 1)
        shuffled = np.argsort(bits.random_raw(size), kind="stable")
        laid = shuffled[np.argsort(self._labels[shuffled], kind="stable")]
        edges = np.cumsum(self._weights[self._labels[laid]])
        start = (int(bits.random_raw()) >> 11) * 2.0**-53  # in [0, 1)
        points = (start + np.arange(size)) * (edges[-1] / size)
        met = np.searchsorted(edges, points, side="right")
        # Rounding may put the last point on the last edge.
        last = np.searchsorted(edges, edges[-1], side="left")
        drawn = laid[np.minimum(met, last)]
        return drawn[np.argsort(bits.random_raw(size), kind="stable")]
