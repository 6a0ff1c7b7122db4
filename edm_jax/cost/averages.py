"""Which averages a run's snapshots will express: asked before the first step."""

import dataclasses
import functools
import math

from edm_jax.ema import MAX_ERROR, plan
from edm_jax.ema.keep import All, Keep
from edm_jax.ema.meta import DTYPES, unit_roundoff
from edm_jax.ema.plan import Plan
from edm_jax.train.config import RunConfig

_MOST_SOLVED = 512  # stored averages: more would take minutes


def plan_of(config: RunConfig) -> Plan:
    """The plan that a config's `ema` and `training.snapshot_mimg` make.

    Its times are those that `ema.keep` leaves at the end.
    """
    return _kept(config)[0]


def most_times(config: RunConfig) -> int:
    """The times of which there are snapshots at once, at most."""
    return _kept(config)[1]


def _kept(config: RunConfig) -> tuple[Plan, int]:
    batch, training = config.optimizer.batch_size, config.training
    end = config.total_steps * batch
    whole = Plan(
        tuple(config.ema.sigma_rels),
        _due(training.snapshot_mimg, batch, end),
        config.ema.snapshot_dtype,
        config.ema.update_every * batch,
        batch,
    )
    keep, count = config.ema.keep, len(whole.times)
    if isinstance(keep, All) or count > _most(whole):
        return whole, count
    times, most = _thinned(whole, keep, _due(training.checkpoint_mimg, batch, end))
    return dataclasses.replace(whole, times=times), most


def _due(interval_mimg: float, batch: int, end: int) -> tuple[float, ...]:
    """The first step that reaches each multiple of an interval, and the last, in images."""
    interval = interval_mimg * 1e6
    whole = range(1, math.floor(end / interval) + 1)
    times = {min(end, math.ceil(i * interval / batch) * batch) for i in whole} | {end}
    return tuple(sorted(map(float, times)))


@functools.lru_cache(maxsize=64)
def _thinned(
    whole: Plan, keep: Keep, checkpoints: tuple[float, ...]
) -> tuple[tuple[float, ...], int]:
    """The times that are left, and the most at once, thinned at every checkpoint."""
    kept, most, before = [], 0, 0.0
    for now in checkpoints:
        kept += [t for t in whole.times if before < t <= now]
        before, most = now, max(most, len(kept))
        if kept:
            so_far = dataclasses.replace(whole, times=tuple(kept))
            roundoff = unit_roundoff(DTYPES[whole.dtype])
            dropped = keep.dropped(so_far.stored(now), roundoff, ())
            kept = [t for t in kept if t not in dropped]
    return tuple(kept), most


def line(config: RunConfig) -> str:
    """A sentence on the averages that could be made at the end of the run."""
    planned = plan_of(config)
    lengths = ", ".join(f"{s:g}" for s in planned.sigma_rels)
    found = _reach(planned)
    count = len(planned.times)
    stored = f"{count} snapshot{'s' * (count != 1)} of sigma_rel {lengths}"
    if found is None:
        return f"{stored} express no other average within {MAX_ERROR:g}."
    least = " at least" * (count > _most(planned))
    low, high = found
    return f"{stored} express{least} {low:.3g} to {high:.3g} within {MAX_ERROR:g}."


@functools.lru_cache(maxsize=64)
def _reach(planned: Plan) -> tuple[float, float] | None:
    return plan.reach(plan.thinned(planned, _most(planned)), MAX_ERROR)


def _most(planned: Plan) -> int:
    return max(2, _MOST_SOLVED // len(planned.sigma_rels))
