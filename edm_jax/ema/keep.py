"""Which snapshots a run keeps: all, or those that the averages it promises need most."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from edm_jax.ema import plan, solver
from edm_jax.ema.power import SIGMA_REL_LIMIT, SIGMA_REL_SHORTEST
from edm_jax.ema.profiles import PowerProfile
from edm_jax.ema.solver import Stored
from edm_jax.fields import Positive, Settings, Several

_PROMISED = 7  # lengths of the range that are checked


@runtime_checkable
class Keep(Protocol):
    """An entry of KEEPS."""

    def dropped(
        self, stored: Sequence[Stored], unit_roundoff: float, needed: Collection[float]
    ) -> list[float]:
        """The times to drop.

        Args:
            stored: (nimg, profile) of the power functions stored so far.
            unit_roundoff: of their format.
            needed: times that must stay.
        """
        ...


@dataclasses.dataclass(frozen=True)
class All(Settings):
    """Every snapshot."""

    def dropped(
        self, stored: Sequence[Stored], unit_roundoff: float, needed: Collection[float]
    ) -> list[float]:
        """None."""
        del stored, unit_roundoff, needed
        return []


@dataclasses.dataclass(frozen=True)
class Thinned(Settings):
    """Those of `count` times, dropped with the least loss to the lengths promised.

    Averages of σ_rel from `shortest` to `longest`, at the time of the last snapshot,
    stay within max_error: where dropping one more would break that, more than `count`
    times are kept. Averages at earlier times lose accuracy. The last time always stays.
    """

    count: Several = 64
    shortest: Positive = 0.015
    longest: Positive = 0.25
    max_error: Positive = 0.1

    def faults(self) -> Iterator[str]:
        if not SIGMA_REL_SHORTEST <= self.shortest <= self.longest < SIGMA_REL_LIMIT:
            yield (
                f"shortest={self.shortest:g} and longest={self.longest:g}: choose two "
                f"lengths from {SIGMA_REL_SHORTEST:g} to below {SIGMA_REL_LIMIT:.5f}, the "
                "shorter first."
            )

    def dropped(
        self, stored: Sequence[Stored], unit_roundoff: float, needed: Collection[float]
    ) -> list[float]:
        """Drops one time after the other, each where the worst length loses least."""
        kept, dropped = list(stored), []
        times = sorted({t for t, _ in stored})
        with plan.one_thread():
            while len(times) > self.count:
                worst = self._next(kept, times, unit_roundoff, needed)
                if worst is None:
                    break
                dropped.append(worst)
                times.remove(worst)
                kept = [each for each in kept if each[0] != worst]
        return dropped

    def _next(
        self,
        kept: Sequence[Stored],
        times: Sequence[float],
        unit_roundoff: float,
        needed: Collection[float],
    ) -> float | None:
        """The time to drop next, or None if the promise allows none."""
        free = [t for t in times[:-1] if t not in needed]
        lengths = np.geomspace(self.shortest, self.longest, _PROMISED)
        targets = [(times[-1], PowerProfile(float(s))) for s in lengths]
        groups = [[i for i, (t, _) in enumerate(kept) if t == time] for time in free]
        losses = solver.losses(kept, targets, groups, unit_roundoff)
        for k in np.argsort(losses.max(axis=1), kind="stable"):
            rest = [each for each in kept if each[0] != free[k]]
            solved = solver.solve(rest, targets, unit_roundoff)
            if max(each.error for each in solved) <= self.max_error:
                return free[k]
            if losses[k].max() > self.max_error:
                return None  # all others lose more
        return None


KEEPS = {"all": All, "thinned": Thinned}
