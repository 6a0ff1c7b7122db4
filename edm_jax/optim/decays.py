"""Schedules that stay constant or fall.

`t` is nimg / end in [0, 1]: every decay here starts at 0 images, reaches its last value at
`end` images and keeps it, as in Optax. torch.optim.lr_scheduler counts epochs, and its
CosineAnnealingLR rises again past the end. diffusers measures t from the end of the
warm-up; here t includes the warm-up's images, and the warm-up multiplies the schedule.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from edm_jax.fields import Bound, NotNegative, Positive, Settings, Share
from edm_jax.optim.timing import Ending, Part, Run, Timed


@dataclasses.dataclass(frozen=True)
class Constant(Settings):
    """1 throughout."""

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        del nimg, run
        return jnp.ones(())


@dataclasses.dataclass(frozen=True)
class InverseSqrt(Settings):
    """1 / sqrt(max(t / t_ref, 1)), t in steps (Eq. 67).

    First value 1; at the end of a run of T steps, sqrt(t_ref / T).
    """

    t_ref: Bound = 70_000.0  # steps

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        return 1 / jnp.sqrt(jnp.maximum(nimg / (self.t_ref * run.batch_size), 1.0))


@dataclasses.dataclass(frozen=True)
class InverseSqrtCooldown(InverseSqrt, Timed):
    """inverse_sqrt times min((1 - t) / cooldown, 1) (arXiv 2106.04560, Sec. 3.5).

    First value 1, last value 0.
    """

    cooldown: Part = 0.2  # the last part of the run

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        left = 1 - self.done(nimg, run)
        return super().factor(nimg, run) * jnp.minimum(left / self.cooldown, 1.0)


@dataclasses.dataclass(frozen=True)
class Cosine(Ending):
    """final + (1 - final) (1 + cos(pi t)) / 2, t = nimg / end (arXiv 1608.03983, Eq. 5).

    First value 1, last value `final`.
    """

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        shape = (1 + jnp.cos(jnp.pi * self.done(nimg, run))) / 2
        return self.final + (1 - self.final) * shape


@dataclasses.dataclass(frozen=True)
class Linear(Ending):
    """final + (1 - final) (1 - t), t = nimg / end.

    First value 1, last value `final`.
    """

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        return self.final + (1 - self.final) * (1 - self.done(nimg, run))


@dataclasses.dataclass(frozen=True)
class Polynomial(Ending):
    """final + (1 - final) (1 - t)^power: `optax.polynomial_schedule`.

    First value 1, last value `final`. diffusers ends at a rate of 1e-7 rather than at a
    fraction, and divides by zero where the warm-up is as long as the run.
    """

    power: Positive = 2.0

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        end: Any = self.end_nimg(run)  # Optax declares int but accepts any number
        shape = optax.polynomial_schedule(1.0, self.final, self.power, end)
        return jnp.asarray(shape(nimg))


@dataclasses.dataclass(frozen=True)
class Step(Settings):
    """multiplier^k, k = the number of boundaries passed, listed or `every_mimg` apart.

    `optax.piecewise_constant_schedule` and a staircase `optax.exponential_decay`: the rate
    drops at the boundary itself. First value 1. torch's MultiStepLR and StepLR are the
    same with epochs for images.
    """

    boundaries_mimg: tuple[Positive, ...] = ()  # million images, ascending
    every_mimg: NotNegative = 0.0  # without boundaries; 0: a third of the run
    multiplier: Positive = 0.1  # at each boundary

    def faults(self) -> Iterator[str]:
        """Refuses boundaries out of order, or both kinds of boundaries."""
        listed = self.boundaries_mimg
        if any(a >= b for a, b in itertools.pairwise(listed)):
            yield f"boundaries_mimg={listed}, but must ascend: sort them."
        if listed and self.every_mimg:
            yield (
                f"every_mimg={self.every_mimg:g} cannot be combined with boundaries_mimg="
                f"{listed}: leave every_mimg at 0, or boundaries_mimg at ()."
            )

    def misfits(self, run: Run) -> Iterator[str]:
        """Refuses a boundary that the run never reaches."""
        duration = run.duration_nimg / 1e6
        for boundary in self.boundaries_mimg:
            if boundary >= duration:
                yield (
                    f"boundaries_mimg has {boundary:g}, which is not inside the run of "
                    f"{duration:g} million images: remove it, or train longer."
                )

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        if self.boundaries_mimg:
            scales: Any = {mimg * 1e6: self.multiplier for mimg in self.boundaries_mimg}
            return jnp.asarray(optax.piecewise_constant_schedule(1.0, scales)(nimg))
        every = self.every_mimg * 1e6 or run.duration_nimg / 3
        return _exponential(nimg, every, self.multiplier, staircase=True)


@dataclasses.dataclass(frozen=True)
class Exponential(Settings):
    """max(multiplier^(nimg / every), final), the exponent rounded down for a staircase.

    `optax.exponential_decay`. First value 1; after `every` images, `multiplier`. torch's
    ExponentialLR is the same with epochs for images.
    """

    multiplier: Positive = 0.01  # over every_mimg
    every_mimg: NotNegative = 0.0  # million images; 0: the run's own duration
    staircase: bool = False
    final: Share = 0.0

    def faults(self) -> Iterator[str]:
        """Refuses an exponential that grows."""
        if self.multiplier > 1:
            yield f"multiplier={self.multiplier:g}, but must be at most 1: it decays."

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        every = self.every_mimg * 1e6 or run.duration_nimg
        shape = _exponential(nimg, every, self.multiplier, self.staircase)
        return jnp.maximum(shape, self.final)


def _exponential(
    nimg: jax.Array, every: Any, multiplier: float, staircase: bool
) -> jax.Array:
    decay = optax.exponential_decay(1.0, every, multiplier, staircase=staircase)
    return jnp.asarray(decay(nimg))


TAILS = {
    "linear": lambda p: 1 - p,
    "cosine": lambda p: (1 + jnp.cos(jnp.pi * p)) / 2,
    "sqrt": lambda p: 1 - jnp.sqrt(p),
}


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(Ending):
    """1, then final + (1 - final) tail(p) over the last part of the run.

    p goes from 0 to 1 over the last `decay` of the images; tail(p) is 1 - p (linear),
    (1 + cos(pi p)) / 2 (cosine) or 1 - sqrt(p) (sqrt; arXiv 2405.18392, Eq. 1). First
    value 1, last value `final`. The warm-up is the config's own.
    """

    decay: Part = 0.2  # the last part of the run
    tail: Literal["linear", "cosine", "sqrt"] = "sqrt"

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        p = jnp.maximum(1 - (1 - self.done(nimg, run)) / self.decay, 0.0)
        return self.final + (1 - self.final) * TAILS[self.tail](p)
