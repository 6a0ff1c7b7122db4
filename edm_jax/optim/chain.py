"""The optimizer chain: what a config's `optimizer` fields mean, in one place."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from edm_jax.optim import schedules
from edm_jax.optim.nonfinite import guard_nonfinite
from edm_jax.optim.weight_norm import forced_weight_norm


def learning_rate(opt: Any, duration_mimg: float) -> Callable[..., jax.Array]:
    """Learning rate by images seen, of a config's `optimizer` fields.

    A decay with an end reaches it at `opt.decay_end_mimg`, or with the run where that
    is 0: after `duration_mimg` million images.
    """
    rampup_nimg = opt.rampup_mimg * 1e6
    end_nimg = (opt.decay_end_mimg or duration_mimg) * 1e6
    if opt.decay == "cosine":
        return schedules.cosine(opt.alpha_ref, end_nimg, rampup_nimg)
    if opt.decay == "linear":
        return schedules.linear(opt.alpha_ref, end_nimg, rampup_nimg)
    t_ref_nimg = opt.t_ref * opt.batch_size
    return schedules.inverse_sqrt(opt.alpha_ref, t_ref_nimg, rampup_nimg)


def make_optimizer(opt: Any, duration_mimg: float) -> optax.GradientTransformation:
    """The chain of a config's `optimizer` fields: Adam, rate in images, projection.

    `opt.nonfinite`: 'zero' zeroes gradient elements that are not finite, as the paper's
    code does; 'skip' and 'stop' leave out the whole update.
    """
    schedule = learning_rate(opt, duration_mimg)
    adam = optax.scale_by_adam(b1=opt.beta1, b2=opt.beta2, eps=opt.eps)
    links = [
        optax.scale(1 / opt.loss_scale),
        # A run that stops there keeps what it had before.
        guard_nonfinite(adam, skip=opt.nonfinite != "zero"),
        optax.scale_by_learning_rate(schedules.per_step(schedule, opt.batch_size)),
    ]
    if opt.forced_weight_norm:
        links.append(forced_weight_norm())
    return optax.chain(*links)
