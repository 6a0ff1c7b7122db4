"""Learning-rate schedules as functions of the images seen (paper Eq. 67, App. D)."""

from collections.abc import Callable

import jax.numpy as jnp


def inverse_sqrt(
    alpha_ref: float, t_ref_nimg: float, rampup_nimg: float
) -> Callable[..., jnp.ndarray]:
    """alpha_ref / sqrt(max(nimg / t_ref, 1)) * min(nimg / rampup, 1) (Eq. 67).

    Counts images seen before the step, so a ramp's first step has rate 0; batch size,
    device count and accumulation do not matter. t_ref = inf is the constant rate,
    rampup = 0 no ramp.
    """

    def schedule(nimg) -> jnp.ndarray:
        decay = jnp.maximum(nimg / t_ref_nimg, 1.0)
        ramp = jnp.minimum(nimg / rampup_nimg, 1.0) if rampup_nimg > 0 else 1.0
        return alpha_ref * ramp / jnp.sqrt(decay)

    return schedule


def per_step(schedule: Callable, batch_size: int) -> Callable:
    """The same schedule as a function of Optax's step count.

    The product is taken in float32: 2^31 images do not fit an int32.
    """
    return lambda count: schedule(jnp.asarray(count, jnp.float32) * batch_size)
