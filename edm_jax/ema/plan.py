"""What stored averages will be able to express, known before a run is trained.

A plan is a list of lengths, of times and a number format. The errors of the averages that
can be made of it follow from the profiles alone; NumPy float64 only.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edm_jax.ema import quadrature, solver
from edm_jax.ema.meta import DTYPES, unit_roundoff
from edm_jax.ema.optional import one_blas_thread
from edm_jax.ema.profiles import PowerProfile
from edm_jax.ema.solver import Solution, Stored

SPACINGS = ("uniform", "geometric")
LENGTHS = (0.05, 0.10, 0.03, 0.15, 0.20)  # that `propose` combines
_MOST_STORED = 512  # averages that `propose` considers
_FIRST = 1 / 64  # of the run: the first snapshot with geometric spacing


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run stores.

    Attributes:
        sigma_rels: the lengths that are tracked.
        times: when they are stored, in images, rising.
        dtype: the number format of the files.
        update_interval: images between two updates of the averages.
        batch_size: images between two sets of weights.

    Raises:
        ValueError: a length, a time or an interval is impossible.
    """

    sigma_rels: tuple[float, ...]
    times: tuple[float, ...]
    dtype: str = "float32"
    update_interval: float = 1.0
    batch_size: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigma_rels or len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise ValueError(
                f"sigma_rels = {self.sigma_rels}: give one or more lengths, each once."
            )
        for sigma_rel in self.sigma_rels:
            PowerProfile(sigma_rel)
        times = np.array(self.times, np.float64)
        rising = len(times) and times[0] > 0 and (np.diff(times) > 0).all()
        if not (rising and np.isfinite(times).all()):
            raise ValueError("The times of a plan must rise, from above 0.")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"dtype = {self.dtype!r}: choose one of {', '.join(DTYPES)}."
            )
        if not 0 < self.batch_size <= self.update_interval < math.inf:
            raise ValueError(
                f"update_interval = {self.update_interval:g} images: choose a batch, "
                f"{self.batch_size:g}, or more."
            )

    @property
    def end(self) -> float:
        return self.times[-1]

    def disk_bytes(self, weights: int) -> int:
        """The bytes of all snapshots of a network with this many weights."""
        each = weights * DTYPES[self.dtype].itemsize
        return len(self.times) * len(self.sigma_rels) * each

    def stored(self, nimg: float) -> list[Stored]:
        """The averages stored up to a time."""
        profiles = [PowerProfile(s) for s in self.sigma_rels]
        return [(t, p) for t in self.times if t <= nimg for p in profiles]


@dataclasses.dataclass(frozen=True)
class Predicted:
    """The errors of one power function, as the run will find them.

    Attributes:
        sigma_rel: its length.
        fit_error: ‖p − p̂‖/‖p‖: the relative error of weights that are white noise.
        walk_error: the RMS error of weights that walk at random, relative to the distance
            that they go in the images so far: √(∫(F − F̂)² dτ / t), F the profile's mass
            up to τ. Averages that are updated every k batches see F̂ only then.
        rounding_error: as `Solution.rounding_error`.
        sum_abs: Σ|x|.
    """

    sigma_rel: float
    fit_error: float
    walk_error: float
    rounding_error: float
    sum_abs: float

    @property
    def error(self) -> float:
        """Fit and rounding error together: what `reconstruct` compares with max_error."""
        return math.hypot(self.fit_error, self.rounding_error)


def uniform(end: float, count: int) -> tuple[float, ...]:
    """`count` times at equal distances, the last at `end`."""
    return tuple(end * (i + 1) / count for i in range(count))


def geometric(end: float, count: int, first: float = _FIRST) -> tuple[float, ...]:
    """`count` times in equal ratios, from end·first to `end`."""
    return tuple(end * first ** (1 - i / (count - 1)) for i in range(count))


def spaced(spacing: str, end: float, count: int) -> tuple[float, ...]:
    """The times of a spacing, 'uniform' or 'geometric'; raises ValueError."""
    if spacing not in SPACINGS:
        raise ValueError(
            f"spacing = {spacing!r}: choose {' or '.join(map(repr, SPACINGS))}."
        )
    return uniform(end, count) if spacing == "uniform" else geometric(end, count)


def thinned(plan: Plan, most: int) -> Plan:
    """A plan with every k-th of its times, counted from the end, and at most `most`."""
    every = -(-len(plan.times) // most)
    return dataclasses.replace(plan, times=plan.times[::-1][::every][::-1])


def predict(
    plan: Plan, sigma_rels: Sequence[float], nimg: float | None = None
) -> list[Predicted]:
    """The errors of averages of these lengths at a time, by default the end.

    Raises:
        ValueError: a length is impossible, or nothing is stored by then.
    """
    nimg = plan.end if nimg is None else nimg
    stored = plan.stored(nimg)
    if not stored:
        raise ValueError(
            f"Nothing is stored up to nimg = {nimg:.0f}: the first time is "
            f"{plan.times[0]:.0f}."
        )
    profiles = [PowerProfile(s) for s in sigma_rels]
    with one_thread():
        solutions = _solve(plan, sigma_rels, nimg)
        x = np.array([each.coefficients for each in solutions]).T
        walks = list(_walk_errors(plan, stored, profiles, nimg, x))
    return [
        Predicted(
            sigma_rel,
            solution.fit_error,
            walk,
            solution.rounding_error,
            solution.sum_abs,
        )
        for sigma_rel, solution, walk in zip(sigma_rels, solutions, walks, strict=True)
    ]


def reach(
    plan: Plan, max_error: float, nimg: float | None = None
) -> tuple[float, float] | None:
    """The shortest and longest σ_rel within max_error at a time; None for none."""
    nimg = plan.end if nimg is None else nimg
    stored, target = plan.stored(nimg), (nimg, PowerProfile(0.1))
    if not stored:
        return None
    with one_thread():
        return solver.expressible_range(
            stored, target, unit_roundoff(DTYPES[plan.dtype]), max_error
        )


def propose(
    end: float,
    low: float,
    high: float,
    max_error: float,
    dtypes: Sequence[str] = tuple(DTYPES),
    since: float = 1.0,
    max_rounding: float = 1e-3,
    spacings: Sequence[str] = SPACINGS,
    lengths: Sequence[float] = LENGTHS,
) -> Plan | None:
    """The plan of least disk that keeps every σ_rel in [low, high] within max_error.

    Tries two, three and one lengths; among equals the first. None if more than
    512 averages would be needed.

    Args:
        end: images of the run.
        low: the shortest length wanted.
        high: the longest.
        max_error: of fit and rounding together.
        dtypes: number formats to choose from.
        since: from this fraction of the run on; 1 is at the end alone.
        max_rounding: of rounding alone, which all weights have, however smooth.
        spacings: 'uniform', 'geometric' or both.
        lengths: to choose from.

    Raises:
        ValueError: the range, the error or the fraction is impossible.
    """
    if not (PowerProfile(low).sigma_rel <= PowerProfile(high).sigma_rel):
        raise ValueError(f"The range from {low:g} to {high:g} is empty.")
    if not max_error > 0:
        raise ValueError(f"max_error = {max_error:g}: choose a number above 0.")
    if not 0 < since <= 1:
        raise ValueError(f"since = {since:g}: choose a fraction above 0 and up to 1.")
    wanted = np.geomspace(low, high, 7)
    times = np.unique([since * end, math.sqrt(since) * end, end])[::-1]

    def is_good(plan: Plan) -> bool:
        return bool(plan.stored(times[-1])) and all(
            each.error <= max_error and each.rounding_error <= max_rounding
            for t in times
            for each in _solve(plan, wanted.tolist(), t)
        )

    with one_thread():
        return _cheapest(end, low, dtypes, spacings, lengths, is_good)


def _cheapest(
    end: float,
    low: float,
    dtypes: Sequence[str],
    spacings: Sequence[str],
    lengths: Sequence[float],
    is_good: Callable[[Plan], bool],
) -> Plan | None:
    # Two lengths are the usual choice: found first, they bound the others.
    sets = [s for n in (2, 3, 1) for s in itertools.combinations(lengths, n)]
    sizes = sorted({name: DTYPES[name].itemsize for name in dtypes}.items(), key=_size)
    widest = sizes[-1]
    best, cost = None, math.inf
    for chosen, spacing in itertools.product(sets, spacings):
        if min(chosen) > 6 * low:  # coefficients of thousands
            continue

        def planned(count: int, dtype: str, chosen=chosen, spacing=spacing) -> Plan:
            return Plan(tuple(sorted(chosen)), spaced(spacing, end, count), dtype)

        limit = _MOST_STORED // len(chosen)
        if best is not None:
            limit = min(limit, math.ceil(cost / sizes[0][1] / len(chosen)) - 1)
        count = _least(lambda n, make=planned: is_good(make(n, widest[0])), limit)
        if count is None:
            continue
        for dtype, size in sizes:
            taken = count * len(chosen) * size
            if taken < cost and (dtype == widest[0] or is_good(planned(count, dtype))):
                best, cost = planned(count, dtype), taken
                break
    return best


def one_thread() -> contextlib.AbstractContextManager[object]:
    """Keeps BLAS to one thread: more would only wait for one another in small matrices."""
    return one_blas_thread()


def _solve(plan: Plan, sigma_rels: Sequence[float], nimg: float) -> list[Solution]:
    targets = [(nimg, PowerProfile(float(s))) for s in sigma_rels]
    return solver.solve(plan.stored(nimg), targets, unit_roundoff(DTYPES[plan.dtype]))


def _size(each: tuple[str, int]) -> int:
    return each[1]


def _least(good: Callable[[int], bool], limit: int) -> int | None:
    """The least count from 2 to limit that is good, within a few percent above 32."""
    low, high = 1, 4
    if limit < 2:
        return None
    while not good(min(high, limit)):
        if high >= limit:
            return None
        low, high = high, 2 * high
    high = min(high, limit)
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high


def _walk_errors(
    plan: Plan,
    stored: Sequence[Stored],
    targets: Sequence[PowerProfile],
    nimg: float,
    x: np.ndarray,
) -> Iterator[float]:
    """√(∫(F − F̂)² dτ / nimg) of targets at nimg made with coefficients x (stored, k).

    An update every k batches sees a moment 0 … k − 1 batches late: F̂(τ − δ) with
    δ of mean B(k − 1)/2 and mean square B²(k − 1)(2k − 1)/6.
    """
    every = plan.update_interval / plan.batch_size
    late = plan.batch_size * (every - 1) / 2
    late2 = plan.batch_size**2 * (every - 1) * (2 * every - 1) / 6
    t = np.array([end for end, _ in stored])
    steepest = max(p.gamma for p in (*targets, *(p for _, p in stored)))
    marks = np.unique([t.min() * 1e-6, *t, nimg])
    counts = np.ceil(np.diff(np.log(marks)) * steepest / quadrature.GROWTH).astype(int)
    parts = [
        np.geomspace(low, high, min(count, 64), endpoint=False)
        for low, high, count in zip(marks[:-1], marks[1:], counts, strict=True)
    ]
    tau, weight = quadrature.nodes(np.concatenate([[0.0], *parts, [nimg]]))
    mass, density = np.zeros((2, len(tau), x.shape[1]))
    for i, (end, profile) in enumerate(stored):
        share = np.minimum(tau / end, 1.0) ** (profile.gamma + 1)
        mass += share[:, None] * x[i]
        density += profile.density(tau, end)[:, None] * x[i]
    for k, target in enumerate(targets):
        off = (tau / nimg) ** (target.gamma + 1) - mass[:, k]
        square = off**2 + 2 * late * off * density[:, k] + late2 * density[:, k] ** 2
        yield math.sqrt(max(weight @ square, 0.0) / nimg)
