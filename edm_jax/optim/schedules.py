"""Learning-rate schedules and warm-ups as functions of the images seen (App. D).

The learning rate is alpha_ref times the factor of a schedule and that of a warm-up.
Counting images rather than optimizer calls keeps it the same for any batch size, number
of devices, accumulation and resumption.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from edm_jax.fields import Bound, NotNegative, Positive, Settings, Share

Rate = Callable[..., jax.Array]  # images seen before a step -> its learning rate


class Run(NamedTuple):
    """What a schedule may depend on besides the images seen."""

    duration_nimg: float
    batch_size: int


@runtime_checkable
class Schedule(Protocol):
    """An entry of SCHEDULES."""

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        """The factor of alpha_ref after `nimg` images."""
        ...


@runtime_checkable
class Warmup(Protocol):
    """An entry of WARMUPS."""

    def factor(self, nimg: jax.Array) -> jax.Array:
        """The factor of alpha_ref after `nimg` images."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant(Settings):
    """1 throughout."""

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        """The factor after `nimg` images."""
        del nimg, run
        return jnp.ones(())


@dataclasses.dataclass(frozen=True)
class InverseSqrt(Settings):
    """1 / sqrt(max(t / t_ref, 1)), t in steps (Eq. 67)."""

    t_ref: Bound = 70_000.0  # steps

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        """The factor after `nimg` images."""
        return 1 / jnp.sqrt(jnp.maximum(nimg / (self.t_ref * run.batch_size), 1.0))


@dataclasses.dataclass(frozen=True)
class _Ending(Settings):
    """A decay to a final factor, which then stays."""

    final: Share = 0.0  # fraction of alpha_ref at the end
    end_mimg: NotNegative = 0.0  # million images; 0: the run's own duration

    def _done(self, nimg: jax.Array, run: Run) -> jax.Array:
        """t = min(nimg / end, 1)."""
        return jnp.minimum(nimg / (self.end_mimg * 1e6 or run.duration_nimg), 1.0)


@dataclasses.dataclass(frozen=True)
class Cosine(_Ending):
    """final + (1 - final) (1 + cos(pi t)) / 2, t = nimg / end (arXiv 1608.03983, Eq. 5)."""

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        """The factor after `nimg` images."""
        shape = (1 + jnp.cos(jnp.pi * self._done(nimg, run))) / 2
        return self.final + (1 - self.final) * shape


@dataclasses.dataclass(frozen=True)
class Linear(_Ending):
    """final + (1 - final) (1 - t), t = nimg / end."""

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        """The factor after `nimg` images."""
        return self.final + (1 - self.final) * (1 - self._done(nimg, run))


@dataclasses.dataclass(frozen=True)
class NoWarmup(Settings):
    """1 throughout."""

    def factor(self, nimg: jax.Array) -> jax.Array:
        """The factor after `nimg` images."""
        del nimg
        return jnp.ones(())


@dataclasses.dataclass(frozen=True)
class LinearWarmup(Settings):
    """min(nimg / rampup, 1) (App. D): the first step of a run has rate 0."""

    rampup_mimg: Positive = 10.0  # million images

    def factor(self, nimg: jax.Array) -> jax.Array:
        """The factor after `nimg` images."""
        return jnp.minimum(nimg / (self.rampup_mimg * 1e6), 1.0)


SCHEDULES = {
    "constant": Constant,
    "inverse_sqrt": InverseSqrt,
    "cosine": Cosine,
    "linear": Linear,
}
WARMUPS = {"none": NoWarmup, "linear": LinearWarmup}


def per_step(rate: Rate, batch_size: int) -> Rate:
    """A rate as a function of Optax's step count.

    The product is taken in float32: 2^31 images do not fit an int32.
    """
    return lambda count: rate(jnp.asarray(count, jnp.float32) * batch_size)
