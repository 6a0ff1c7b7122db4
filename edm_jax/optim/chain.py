"""The optimizer chain: what a config's `optimizer` fields mean, in one place."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import jax
import optax

from edm_jax import menu
from edm_jax.fields import Count, Positive, Settings
from edm_jax.optim.nonfinite import POLICIES
from edm_jax.optim.optimizers import OPTIMIZERS, Optimizer
from edm_jax.optim.schedules import SCHEDULES, Rate, Schedule, per_step
from edm_jax.optim.timing import Run
from edm_jax.optim.warmups import WARMUPS, Warmup
from edm_jax.optim.weight_norm import forced_weight_norm


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Settings):
    """A config's `optimizer` fields."""

    batch_size: Count
    alpha_ref: Positive
    schedule: Annotated[Schedule, menu.Entry(SCHEDULES)]
    warmup: Annotated[Warmup, menu.Entry(WARMUPS)]
    method: Annotated[Optimizer, menu.Entry(OPTIMIZERS, "optimizer")]
    loss_scale: Positive  # for float16; divided out of the gradient again
    forced_weight_norm: bool
    nonfinite: Annotated[str, menu.Word(POLICIES)]


def misfits(opt: OptimizerConfig, duration_mimg: float) -> Iterator[str]:
    """What of the schedule and the warm-up does not fit a run: sentences."""
    run = Run(duration_mimg * 1e6, opt.batch_size)
    for field in ("schedule", "warmup"):
        found = getattr(getattr(opt, field), "misfits", None)
        for sentence in found(run) if found else ():
            yield f"optimizer.{field}.{sentence}"


def learning_rate(opt: OptimizerConfig, duration_mimg: float) -> Rate:
    """The learning rate as a function of the images seen before a step.

    Args:
        opt: the config's `optimizer` fields.
        duration_mimg: of the whole run, in million images.
    """
    run = Run(duration_mimg * 1e6, opt.batch_size)

    def rate(nimg: jax.Array) -> jax.Array:
        warm = opt.alpha_ref * opt.warmup.factor(nimg)
        return warm * opt.schedule.factor(nimg, run)

    return rate


def make_optimizer(
    opt: OptimizerConfig, duration_mimg: float
) -> optax.GradientTransformation:
    """The chain: loss scale, guarded update rule, rate in images, projection.

    Args:
        opt: the config's `optimizer` fields.
        duration_mimg: of the whole run, in million images.
    """
    policy = menu.build(POLICIES, "optimizer.nonfinite", opt.nonfinite)
    rate = learning_rate(opt, duration_mimg)
    links = [
        optax.scale(1 / opt.loss_scale),
        policy.guard(opt.method.rule()),
        optax.scale_by_learning_rate(per_step(rate, opt.batch_size)),
    ]
    if opt.forced_weight_norm:
        links.append(forced_weight_norm())
    return optax.chain(*links)
