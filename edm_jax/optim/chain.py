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

With groups of parameters, 2c to 2e and 3 are each group's own; clipping and noise see all
that is trained. Frozen parameters are not seen by any link. A decay of the rates by depth
comes after link 3.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from edm_jax import menu
from edm_jax.fields import Count, Positive, Range, Settings
from edm_jax.models.unet import Params
from edm_jax.optim import groups as groups_of
from edm_jax.optim import plateau, weight_norm
from edm_jax.optim.by_images import by_images
from edm_jax.optim.clipping import CLIPS
from edm_jax.optim.groups import Groups, Named, Trained
from edm_jax.optim.links import Link, links
from edm_jax.optim.noise import NOISES
from edm_jax.optim.nonfinite import POLICIES
from edm_jax.optim.optimizers import OPTIMIZERS, Optimizer
from edm_jax.optim.penalties import PENALTIES, Penalty
from edm_jax.optim.schedules import SCHEDULES, Rate, Schedule, per_step
from edm_jax.optim.timing import Run
from edm_jax.optim.warmups import WARMUPS, NoWarmup, Warmup

_Decay = Annotated[float, Range(0, 1, "(]", "in (0, 1]; 1 turns it off")]


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
    groups: Annotated[Groups, Named()] = ()
    depth_decay: _Decay = 1.0  # of the rates, for each block further from the output

    @property
    def trained(self) -> Trained:
        """The parameters that are not frozen."""
        return Trained(self.groups)

    @property
    def parts(self) -> dict[str, "OptimizerConfig"]:
        """The optimizer of each group that is trained; of '', all, without groups."""
        if not self.groups:
            return {"": self}
        return {
            name: dataclasses.replace(
                self, alpha_ref=self.alpha_ref * group.rate, groups=(), **group.own
            )
            for name, group in self.groups
            if not group.frozen
        }

    def faults(self) -> Iterator[str]:
        """Yields choices that contradict one another."""
        if self.groups and not any(not group.frozen for _, group in self.groups):
            yield (
                "groups are all frozen: leave one to train, such as with "
                f"--config.optimizer.groups.{groups_of.REST}.rate=1 for all others."
            )
            return
        for name, group in self.groups:
            if isinstance(group.schedule, plateau.Plateau):
                yield (
                    f"groups.{name}.schedule is a plateau, which scales the rates of all "
                    "groups: choose it as optimizer.schedule."
                )
        try:
            parts = self.parts
        except ValueError as error:  # a group's choices contradict one another
            yield str(error)
            return
        chosen = (self.schedule, self.method, self.penalty)
        # A user's own entry is checked once its file is loaded: `misfits`.
        if not self.groups and not any(isinstance(each, menu.Own) for each in chosen):
            yield from _clashes(self)
        for name, part in parts.items():
            if self.depth_decay != 1 and hasattr(part.method, "whole"):
                yield (
                    f"depth_decay scales updates, but {type(part.method).__name__} "
                    "applies the learning rate itself: set optimizer.depth_decay=1."
                )


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
    if getattr(opt.schedule, "warms_up", False) and not isinstance(
        opt.warmup, NoWarmup
    ):
        yield (
            "schedule warms up by itself, so optimizer.warmup would do it twice: set "
            "--config.optimizer.warmup.name=none."
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
    for name, part in opt.parts.items():
        prefix = f"optimizer.groups.{name}" if name else "optimizer"
        for field in ("schedule", "warmup"):
            found = getattr(getattr(part, field), "misfits", None)
            for sentence in found(run) if found else ():
                yield f"{prefix}.{field}.{sentence}"
        for sentence in _clashes(part):
            yield f"{prefix}.{sentence}"


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
    run = Run(duration_mimg * 1e6, opt.batch_size, opt.alpha_ref)

    def rate(nimg: jax.Array) -> jax.Array:
        warm = opt.alpha_ref * opt.warmup.factor(nimg)
        return warm * opt.schedule.factor(nimg, run)

    return rate


def group_rates(opt: OptimizerConfig, duration_mimg: float) -> dict[str, Rate]:
    """`learning_rate` of each group that is trained; {} without groups."""
    parts = opt.parts if opt.groups else {}
    return {name: learning_rate(part, duration_mimg) for name, part in parts.items()}


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

    Returns:
        The chain. With frozen groups, its updates are those of the other parameters.
    """
    if opt.groups or opt.depth_decay != 1:
        return groups_of.of_parameters(
            lambda names: _chain(opt, duration_mimg, names), opt.trained
        )
    return _chain(opt, duration_mimg, [])


def _chain(
    opt: OptimizerConfig, duration_mimg: float, names: list[str]
) -> optax.GradientTransformation:
    chain = [
        optax.scale(1 / opt.loss_scale),
        *_rule_and_rate(opt, duration_mimg, names),
    ]
    if opt.depth_decay != 1:
        chain.append(groups_of.depth_decay(opt.depth_decay, names))
    if isinstance(opt.schedule, plateau.Plateau):
        chain.append(opt.schedule.link())
    if opt.forced_weight_norm:
        chain.append(weight_norm.forced_weight_norm())
    return optax.chain(*chain)


def _rule_and_rate(
    opt: OptimizerConfig, duration_mimg: float, names: list[str]
) -> list[optax.GradientTransformation]:
    """The guarded rules of all groups, and their rates."""
    of = groups_of.members(opt.groups, names) if opt.groups else {}
    parts = opt.parts

    def rules(count: Any) -> optax.GradientTransformation:
        links = {n: _links(part, duration_mimg, count) for n, part in parts.items()}
        if not opt.groups:
            return _guarded(opt, links[""])
        whole = {name: _joined(each) for name, each in links.items()}
        return _guarded(opt, [groups_of.by_group(whole, of)])

    counts = any(
        hasattr(part.method, "whole") or momentum(part, duration_mimg)
        for part in parts.values()
    )
    rule = by_images(rules) if counts else rules(None)
    if all(hasattr(part.method, "whole") for part in parts.values()):
        return [rule]
    rates = {n: _times_rate(part, duration_mimg) for n, part in parts.items()}
    return [rule, groups_of.by_group(rates, of) if opt.groups else rates[""]]


def _links(
    opt: OptimizerConfig, duration_mimg: float, count: Any
) -> list[optax.GradientTransformation]:
    """The update rule and its penalty; `count` is the number of steps taken, if known."""
    method: Any = opt.method
    if hasattr(method, "whole"):
        rule = method.whole(_rate(opt, duration_mimg)(count))
    elif (beta1 := momentum(opt, duration_mimg)) is not None:
        rule = method.rule_at(per_step(beta1, opt.batch_size)(count))
    else:
        rule = method.rule()
    penalty = opt.penalty.link()
    if penalty is None:
        return [rule]
    return [rule, penalty] if opt.penalty.decoupled else [penalty, rule]


def _joined(
    links: list[optax.GradientTransformation],
) -> optax.GradientTransformation:
    return links[0] if len(links) == 1 else optax.chain(*links)


def _times_rate(
    opt: OptimizerConfig, duration_mimg: float
) -> optax.GradientTransformation:
    if hasattr(opt.method, "whole"):
        return optax.identity()
    return optax.scale_by_learning_rate(_rate(opt, duration_mimg))


def _rate(opt: OptimizerConfig, duration_mimg: float) -> Rate:
    """The learning rate as a function of the steps taken."""
    return per_step(learning_rate(opt, duration_mimg), opt.batch_size)


def _guarded(
    opt: OptimizerConfig, rule: list[optax.GradientTransformation]
) -> optax.GradientTransformation:
    policy = menu.build(POLICIES, "optimizer.nonfinite", opt.nonfinite)
    before = [each for each in (opt.clip.link(), opt.noise.link()) if each is not None]
    return policy.guard(_joined([*before, *rule]))


def initial(opt: OptimizerConfig, params: Params) -> Params:
    """The weights before the first step: those that are trained on the unit sphere, if
    forced weight normalization keeps them there; NumPy arrays."""
    if not opt.forced_weight_norm:
        return params
    projected = jax.tree.map(np.asarray, weight_norm.project(opt.trained(params)))
    return opt.trained.merged(projected, params)


def averaged(params: Params, opt_state: Any) -> Params:
    """The weights to average: as the rule left them, before the projection.

    For a schedule-free method, its own average x rather than y.
    """
    for link in links(opt_state, contrib.ScheduleFreeState):
        params = contrib.schedule_free_eval_params(link, params)
    return weight_norm.unprojected(params, opt_state)
