"""The optimizer chain that a config's `optimizer` fields describe.

The order of the links, from the gradient of the scaled loss to the change of the weights:

1. the loss scale is divided out;
2. the guard against gradients that are not finite, around
   a. clipping or normalization,
   b. noise,
   c. L1 and L2 penalties,
   d. the update rule (the method),
   e. decoupled weight decay;
3. the learning rate, a function of the images, with a minus sign;
4. the factor by which plateaus of the held-out loss have reduced the rate;
5. forced weight normalization.

Links that are off are left out and leave no trace in the state. If the schedule moves
beta1 or the method applies the rate itself, link 2 counts images as well; in the latter
case link 3 is part of 2d.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from edm_jax import menu
from edm_jax.fields import Count, Positive, Settings
from edm_jax.models.unet import Params
from edm_jax.optim import plateau, weight_norm
from edm_jax.optim.by_images import by_images
from edm_jax.optim.clipping import CLIPS
from edm_jax.optim.links import Link, links
from edm_jax.optim.noise import NOISES
from edm_jax.optim.nonfinite import POLICIES
from edm_jax.optim.optimizers import OPTIMIZERS, Optimizer
from edm_jax.optim.penalties import PENALTIES, Penalty
from edm_jax.optim.schedules import SCHEDULES, Rate, Schedule, per_step
from edm_jax.optim.timing import Run
from edm_jax.optim.warmups import WARMUPS, Warmup


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Settings):
    """A config's `optimizer` fields."""

    batch_size: Count
    alpha_ref: Positive
    schedule: Annotated[Schedule, menu.Entry(SCHEDULES)]
    warmup: Annotated[Warmup, menu.Entry(WARMUPS)]
    method: Annotated[Optimizer, menu.Entry(OPTIMIZERS, "optimizer")]
    clip: Annotated[Link, menu.Entry(CLIPS)]
    noise: Annotated[Link, menu.Entry(NOISES)]
    penalty: Annotated[Penalty, menu.Entry(PENALTIES)]
    loss_scale: Positive  # for float16; divided out of the gradient again
    forced_weight_norm: bool
    nonfinite: Annotated[str, menu.Word(POLICIES)]

    def faults(self) -> Iterator[str]:
        """Yields choices that contradict one another."""
        chosen = (self.schedule, self.method, self.penalty)
        # A user's own entry is checked once its file is loaded: `misfits`.
        if not any(isinstance(each, menu.Own) for each in chosen):
            yield from _clashes(self)


def _clashes(opt: OptimizerConfig) -> Iterator[str]:
    method, penalty = opt.method, opt.penalty
    name = type(method).__name__
    whole = hasattr(method, "whole")
    if opt.forced_weight_norm and (why := getattr(method, "unforced", "")):
        yield f"forced_weight_norm does not work with {name}, which {why}."
    if _momentum(opt, Run(1.0, 1)) is not None and not hasattr(method, "rule_at"):
        yield (
            f"method is {name}, whose beta1 is fixed, but the schedule changes beta1: "
            "set --config.optimizer.schedule.beta1='()'."
        )
    if whole and isinstance(opt.schedule, plateau.Plateau):
        yield (
            f"method is {name}, which applies the learning rate itself, so a plateau "
            "cannot scale it: choose another schedule."
        )
    if penalty.decoupled and whole:
        yield (
            f"penalty is decoupled from the update, but {name} applies the learning rate "
            "itself: use the method's own weight_decay, or penalty.name=l2."
        )
    if penalty.decoupled and getattr(method, "weight_decay", 0.0):
        yield (
            f"penalty is weight decay, but {name} has method.weight_decay, too: set "
            "penalty.name=none, or method.weight_decay=0."
        )


def misfits(opt: OptimizerConfig, duration_mimg: float) -> Iterator[str]:
    """Yields sentences on choices that do not fit the run or one another."""
    run = Run(duration_mimg * 1e6, opt.batch_size)
    for field in ("schedule", "warmup"):
        found = getattr(getattr(opt, field), "misfits", None)
        for sentence in found(run) if found else ():
            yield f"optimizer.{field}.{sentence}"
    for sentence in _clashes(opt):
        yield f"optimizer.{sentence}"


def note(opt: OptimizerConfig) -> str:
    """A note on a penalty that forced weight normalization undoes; else ''."""
    decays = opt.penalty.link() is not None or getattr(opt.method, "weight_decay", 0)
    if not (opt.forced_weight_norm and decays):
        return ""
    return (
        "Under forced weight normalization a penalty does not shrink the weights. "
        "Decoupled decay shortens them just before they are normalized again, so its only "
        "effect is a slightly larger step along the update; L1 and L2 turn the update, "
        "and their radial part is lost. Gains are penalized only with penalty.gains=True."
    )


def learning_rate(opt: OptimizerConfig, duration_mimg: float) -> Rate:
    """Returns the learning rate as a function of the images seen before a step.

    It does not include reductions on plateaus of the held-out loss: `plateau.rate_scale`.

    Args:
        opt: the config's `optimizer` fields.
        duration_mimg: of the whole run, in million images.
    """
    run = Run(duration_mimg * 1e6, opt.batch_size)

    def rate(nimg: jax.Array) -> jax.Array:
        warm = opt.alpha_ref * opt.warmup.factor(nimg)
        return warm * opt.schedule.factor(nimg, run)

    return rate


def momentum(opt: OptimizerConfig, duration_mimg: float) -> Rate | None:
    """beta1 as a function of the images seen; None if the schedule does not change it."""
    return _momentum(opt, Run(duration_mimg * 1e6, opt.batch_size))


def _momentum(opt: OptimizerConfig, run: Run) -> Rate | None:
    moved = getattr(opt.schedule, "momentum", None)
    if moved is None or moved(jnp.zeros(()), run) is None:
        return None
    return lambda nimg: moved(nimg, run)


def make_optimizer(
    opt: OptimizerConfig, duration_mimg: float
) -> optax.GradientTransformation:
    """Builds the chain.

    Args:
        opt: the config's `optimizer` fields.
        duration_mimg: of the whole run, in million images.
    """
    chain = [
        optax.scale(1 / opt.loss_scale),
        *_rule_and_rate(opt, duration_mimg),
    ]
    if isinstance(opt.schedule, plateau.Plateau):
        chain.append(opt.schedule.link())
    if opt.forced_weight_norm:
        chain.append(weight_norm.forced_weight_norm())
    return optax.chain(*chain)


def _rule_and_rate(
    opt: OptimizerConfig, duration_mimg: float
) -> list[optax.GradientTransformation]:
    rate = per_step(learning_rate(opt, duration_mimg), opt.batch_size)
    times_rate = optax.scale_by_learning_rate(rate)
    method: Any = opt.method
    if hasattr(method, "whole"):
        return [by_images(lambda count: _guarded(opt, method.whole(rate(count))))]
    beta1 = momentum(opt, duration_mimg)
    if beta1 is None:
        return [_guarded(opt, method.rule()), times_rate]
    moving = per_step(beta1, opt.batch_size)
    rule = by_images(lambda count: _guarded(opt, method.rule_at(moving(count))))
    return [rule, times_rate]


def _guarded(
    opt: OptimizerConfig, rule: optax.GradientTransformation
) -> optax.GradientTransformation:
    policy = menu.build(POLICIES, "optimizer.nonfinite", opt.nonfinite)
    penalty = opt.penalty.link()
    before = [opt.clip.link(), opt.noise.link()]
    around = (
        [*before, rule, penalty] if opt.penalty.decoupled else [*before, penalty, rule]
    )
    parts = [each for each in around if each is not None]
    return policy.guard(parts[0] if len(parts) == 1 else optax.chain(*parts))


def averaged(params: Params, opt_state: Any) -> Params:
    """The weights to average: as the rule left them, before the projection.

    For a schedule-free method, its own average x rather than y.
    """
    for link in links(opt_state, contrib.ScheduleFreeState):
        params = contrib.schedule_free_eval_params(link, params)
    return weight_norm.unprojected(params, opt_state)
