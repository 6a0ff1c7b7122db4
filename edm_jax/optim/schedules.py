"""Learning-rate schedules as functions of the images seen (App. D).

The learning rate is alpha_ref times a schedule's factor times a warm-up's factor.
Counting images rather than optimizer calls keeps it the same for any batch size, number
of devices or gradient accumulation, and when a run resumes.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from edm_jax.fields import Settings
from edm_jax.optim import optax_calls
from edm_jax.optim.cycles import CosineRestarts, Cyclical, OneCycle
from edm_jax.optim.decays import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    InverseSqrtCooldown,
    Linear,
    Polynomial,
    Step,
    WarmupStableDecay,
)
from edm_jax.optim.lora_schedules import LORA_SCHEDULES
from edm_jax.optim.plateau import Plateau
from edm_jax.optim.timing import Run

Rate = Callable[..., jax.Array]  # images seen before a step -> its learning rate


@runtime_checkable
class Schedule(Protocol):
    """An entry of SCHEDULES.

    It may have more methods: `misfits(run)` yields sentences, which begin with a field's
    name, on what does not fit the run; `momentum(nimg, run)` is the method's beta1.
    """

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        """The factor of alpha_ref after `nimg` images."""
        ...


@dataclasses.dataclass(frozen=True)
class OptaxSchedule(Settings):
    """An Optax schedule that counts images as steps; its value is a fraction of alpha_ref.

    Such as call='exponential_decay(init_value=1.0, transition_steps=20000,
    decay_rate=0.5)'.
    """

    call: str = "constant_schedule(value=1.0)"

    def faults(self) -> Iterator[str]:
        """Refuses a call that Optax does not accept."""
        try:
            function, settings = self._parsed()
            float(function(**settings)(0.0))
        except (TypeError, ValueError) as error:
            yield f"call={self.call!r} does not make a schedule: {error}"

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        del run
        function, settings = self._parsed()
        return jnp.asarray(function(**settings)(nimg), jnp.float32)

    def _parsed(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        known = {
            name: function
            for name, function in optax_calls.functions(optax).items()
            if name.endswith(("_schedule", "exponential_decay"))
        }
        return optax_calls.parse(self.call, known)


SCHEDULES = {
    "constant": Constant,
    "inverse_sqrt": InverseSqrt,
    "inverse_sqrt_cooldown": InverseSqrtCooldown,
    "cosine": Cosine,
    "cosine_restarts": CosineRestarts,
    "linear": Linear,
    "polynomial": Polynomial,
    "step": Step,
    "exponential": Exponential,
    "warmup_stable_decay": WarmupStableDecay,
    "cyclical": Cyclical,
    "one_cycle": OneCycle,
    "plateau": Plateau,
    "optax": OptaxSchedule,
    **LORA_SCHEDULES,
}


def per_step(rate: Rate, batch_size: int) -> Rate:
    """Turns a function of images into one of Optax's step count.

    The product is in float32, because 2^31 images do not fit into an int32.
    """
    return lambda count: rate(jnp.asarray(count, jnp.float32) * batch_size)
