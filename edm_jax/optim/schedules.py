"""Learning-rate schedules as functions of the images seen (paper Eq. 67, App. D)."""

from collections.abc import Callable

import jax.numpy as jnp

Schedule = Callable[..., jnp.ndarray]  # images seen before a step -> its rate


def inverse_sqrt(alpha_ref: float, t_ref_nimg: float, rampup_nimg: float) -> Schedule:
    """alpha_ref / sqrt(max(nimg / t_ref, 1)) * min(nimg / rampup, 1) (Eq. 67).

    Counts images seen before the step, so a ramp's first step has rate 0; batch size,
    device count and accumulation do not matter. t_ref = inf is the constant rate,
    rampup = 0 no ramp.
    """

    def decay(nimg) -> jnp.ndarray:
        return 1 / jnp.sqrt(jnp.maximum(nimg / t_ref_nimg, 1.0))

    return _ramped(alpha_ref, decay, rampup_nimg)


def cosine(alpha_ref: float, end_nimg: float, rampup_nimg: float) -> Schedule:
    """alpha_ref * (1 + cos(pi min(nimg / end, 1))) / 2, ramped as above."""

    def decay(nimg) -> jnp.ndarray:
        return (1 + jnp.cos(jnp.pi * jnp.minimum(nimg / end_nimg, 1.0))) / 2

    return _ramped(alpha_ref, decay, rampup_nimg)


def linear(alpha_ref: float, end_nimg: float, rampup_nimg: float) -> Schedule:
    """alpha_ref * (1 - min(nimg / end, 1)), ramped as above."""

    def decay(nimg) -> jnp.ndarray:
        return 1 - jnp.minimum(nimg / end_nimg, 1.0)

    return _ramped(alpha_ref, decay, rampup_nimg)


def _ramped(alpha_ref: float, decay: Schedule, rampup_nimg: float) -> Schedule:
    def schedule(nimg) -> jnp.ndarray:
        ramp = jnp.minimum(nimg / rampup_nimg, 1.0) if rampup_nimg > 0 else 1.0
        return alpha_ref * ramp * decay(nimg)

    return schedule


def per_step(schedule: Callable, batch_size: int) -> Callable:
    """The same schedule as a function of Optax's step count.

    The product is taken in float32: 2^31 images do not fit an int32.
    """
    return lambda count: schedule(jnp.asarray(count, jnp.float32) * batch_size)
