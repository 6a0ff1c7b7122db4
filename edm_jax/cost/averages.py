"""Which averages a run's snapshots will express: asked before the first step."""

import functools
import math

from edm_jax.ema import MAX_ERROR, plan
from edm_jax.ema.plan import Plan
from edm_jax.train.config import RunConfig

_MOST_SOLVED = 512  # stored averages: more would take minutes


def plan_of(config: RunConfig) -> Plan:
    """The plan that a config's `ema` and `training.snapshot_mimg` make."""
    batch = config.optimizer.batch_size
    end, interval = config.total_steps * batch, config.training.snapshot_mimg * 1e6
    whole = range(1, math.floor(end / interval) + 1)
    # Stored with the first step that reaches a multiple of the interval.
    times = {min(end, math.ceil(i * interval / batch) * batch) for i in whole} | {end}
    return Plan(
        tuple(config.ema.sigma_rels),
        tuple(sorted(map(float, times))),
        config.ema.snapshot_dtype,
        config.ema.update_every * batch,
        batch,
    )


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
