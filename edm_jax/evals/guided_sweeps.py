"""Quality of guided samples against both EMA lengths, the strength, and the interval.

The two lengths are those of the network and of its guide (arXiv 2406.02507, Fig. 3), the
interval that of arXiv 2404.07724. All points share their seeds, so their noise.
"""

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from edm_jax.diffusion.guidance import EVERYWHERE
from edm_jax.ema.snapshots import Snapshot
from edm_jax.evals import evaluation, sweeps
from edm_jax.evals.config import Config
from edm_jax.evals.evaluators import Evaluator
from edm_jax.evals.sweeps import Memory, OnProgress
from edm_jax.models.unet import Params

# (weights, the guide's weights, w, interval) -> images (N, H, W, C).
Sample = Callable[[Params, Params, float, tuple[float, float]], np.ndarray]


class Point(NamedTuple):
    """One way to sample: the EMA lengths of network and guide, w, and the interval."""

    sigma_rel: float
    guide_sigma_rel: float
    weight: float
    interval: tuple[float, float] = EVERYWHERE


class Grid(NamedTuple):
    """Values (X, Y) over two quantities; nan where they make no sense together.

    Attributes:
        x: (X,), rising.
        y: (Y,), rising.
        value: of the metric; the lower, the better.
        at: the point that has the rest in common.
    """

    x: list[float]
    y: list[float]
    value: list[list[float]]
    at: Point

    @property
    def best(self) -> tuple[float, float, float]:
        """x, y and the lowest value; raises ValueError where none is finite."""
        value = np.array(self.value)
        if not np.isfinite(value).any():
            raise ValueError("No point that was measured is finite.")
        lowest = np.min(value[np.isfinite(value)])
        i, j = np.argwhere(value == lowest)[0]
        return self.x[i], self.y[j], float(lowest)


class Given(evaluation.Samples):
    """Images that are given, as evaluators see a run's."""

    def __init__(self, config: Config, labels: np.ndarray):
        self.config, self.labels = config, labels
        self.on_progress = lambda *_: None
        self.real = functools.cache(self.real)

    def measure(self, evaluator: Evaluator, field: str, images: np.ndarray) -> float:
        """A field of what an evaluator finds of images; the first number for ''.

        Infinite for images that are not finite; raises ValueError where it finds none.
        """
        if not np.isfinite(images).all():
            return math.inf
        self.images = images
        found: dict[str, Any] = evaluator.evaluate(self)
        numbers = {k: v for k, v in found.items() if isinstance(v, int | float)}
        if not numbers or field not in ("", *numbers):
            raise ValueError(
                f"The metric measures {', '.join(numbers) or 'no number'}"
                + (f", and no {field!r}." if field else ".")
            )
        return float(numbers[field] if field else next(iter(numbers.values())))


class Averages:
    """The averages of a run by length, as many rebuilt in one pass as fit."""

    def __init__(self, stored: Sequence[Snapshot], lengths: Sequence[float]):
        self._stored, self._lengths = list(stored), list(lengths)
        self._held: dict[float, Params] = {}

    def at(self, sigma_rel: float) -> Params:
        """The weights of one of the lengths."""
        if sigma_rel not in self._held:
            start = self._lengths.index(sigma_rel)
            size = max(snapshot.size for snapshot in self._stored)
            together = max(1, sweeps.REBUILD_BYTES // (8 * size))
            part = self._lengths[start : start + together]
            made = sweeps.rebuilt(self._stored, part)
            self._held = {length: each.params for length, each in made}
        return self._held[sigma_rel]


class GuidedSweeps:
    """Measures points, and remembers each in a file.

    Args:
        sample: makes the images of a point.
        measure: their distance from what they should be; the lower, the better.
        averages: the network's by length.
        guides: the guide's by length.
        memory: holds the points measured before.
        on_progress: takes what is measured, and how far.
    """

    def __init__(
        self,
        sample: Sample,
        measure: Callable[[np.ndarray], float],
        averages: Averages,
        guides: Averages,
        memory: Memory,
        on_progress: OnProgress = lambda *_: None,
    ):
        self._sample, self._measure = sample, measure
        self._averages, self._guides = averages, guides
        self._memory, self._report = memory, on_progress

    def lengths(self, x: Sequence[float], y: Sequence[float], at: Point) -> Grid:
        """Over the network's length and the guide's."""
        points = [
            at._replace(sigma_rel=own, guide_sigma_rel=guides)
            for own, guides in itertools.product(x, y)
        ]
        return self._grid("both EMA lengths", x, y, points, at)

    def weights(self, weights: Sequence[float], at: Point) -> Grid:
        """Over w; y is [0]."""
        points = [at._replace(weight=w) for w in weights]
        return self._grid("strengths", weights, [0.0], points, at)

    def intervals(self, ends: Sequence[float], at: Point) -> Grid:
        """Over the low end, from 0, and the high end, to everywhere, of the interval."""
        x, y = [0.0, *ends], [*ends, math.inf]
        points = [
            at._replace(interval=(low, high)) if low < high else None
            for low, high in itertools.product(x, y)
        ]
        return self._grid("intervals", x, y, points, at)

    def _grid(
        self,
        what: str,
        x: Sequence[float],
        y: Sequence[float],
        points: Sequence[Point | None],
        at: Point,
    ) -> Grid:
        keys = [json.dumps(point) for point in points]
        wanted = [
            (point, key)
            for point, key in zip(points, keys, strict=True)
            if point is not None and key not in self._memory.points
        ]
        for done, (point, key) in enumerate(wanted):
            self._report(what, done, len(wanted))
            images = self._sample(
                self._averages.at(point.sigma_rel),
                self._guides.at(point.guide_sigma_rel),
                point.weight,
                point.interval,
            )
            self._memory.remember(key, self._measure(images))
        if wanted:
            self._report(what, len(wanted), len(wanted))
        found = [self._memory.points.get(key, math.nan) for key in keys]
        value = np.array(found).reshape(len(x), len(y)).tolist()
        return Grid(list(x), list(y), value, at)


def grids(
    measured: GuidedSweeps,
    kinds: Sequence[str],
    lengths: tuple[Sequence[float], Sequence[float]],
    weights: Sequence[float],
    ends: Sequence[float],
    start: Point,
) -> Iterator[tuple[str, Grid]]:
    """Yields the sweeps of `kinds` by name, each at the best point of those before it."""
    at = start
    if "lengths" in kinds:
        found = measured.lengths(*lengths, at)
        yield "lengths", found
        at = at._replace(sigma_rel=found.best[0], guide_sigma_rel=found.best[1])
    if "weights" in kinds:
        found = measured.weights(weights, at)
        yield "weights", found
        at = at._replace(weight=found.best[0])
    if "interval" in kinds:
        yield "interval", measured.intervals(ends, at)
