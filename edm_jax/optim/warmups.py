"""Warm-ups: factors that rise to 1 over `rampup_mimg` million images and stay there.

`p` is min(nimg / rampup, 1). The first step of a run has p = 0 and so the value `start`; if
that is 0, the step changes nothing. torch's LinearLR starts at 1/3 by default. timm's
cosine counts from the start of training and jumps when the warm-up ends; a product cannot.
"""

import dataclasses
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from edm_jax.fields import Fraction, Positive, Settings
from edm_jax.optim.timing import Inside, Run


@runtime_checkable
class Warmup(Protocol):
    """An entry of WARMUPS. An optional `misfits(run)` yields what does not fit the run."""

    def factor(self, nimg: jax.Array) -> jax.Array:
        """The factor of alpha_ref after `nimg` images."""
        ...


@dataclasses.dataclass(frozen=True)
class NoWarmup(Settings):
    """1 throughout."""

    def factor(self, nimg: jax.Array) -> jax.Array:
        del nimg
        return jnp.ones(())


@dataclasses.dataclass(frozen=True)
class _Ramp(Settings):
    rampup_mimg: Positive = 10.0  # million images

    def done(self, nimg: jax.Array) -> jax.Array:
        """p = min(nimg / rampup, 1)."""
        return jnp.minimum(nimg / (self.rampup_mimg * 1e6), 1.0)

    def misfits(self, run: Run) -> Iterator[str]:
        """Refuses a warm-up that the run never completes."""
        duration = run.duration_nimg / 1e6
        if self.rampup_mimg > duration * (1 + 1e-9):
            yield (
                f"rampup_mimg={self.rampup_mimg:g} is longer than the run of {duration:g} "
                "million images, so the rate would never reach alpha_ref: shorten it, or "
                "choose --config.optimizer.warmup.name=none."
            )


@dataclasses.dataclass(frozen=True)
class LinearWarmup(_Ramp):
    """start + (1 - start) p (App. D, with start = 0)."""

    start: Fraction = 0.0

    def factor(self, nimg: jax.Array) -> jax.Array:
        p = self.done(nimg)
        return self.start + (1 - self.start) * p if self.start else p


@dataclasses.dataclass(frozen=True)
class CosineWarmup(_Ramp):
    """start + (1 - start) (1 - cos(pi p)) / 2."""

    start: Fraction = 0.0

    def factor(self, nimg: jax.Array) -> jax.Array:
        shape = (1 - jnp.cos(jnp.pi * self.done(nimg))) / 2
        return self.start + (1 - self.start) * shape


@dataclasses.dataclass(frozen=True)
class ExponentialWarmup(_Ramp):
    """start^(1 - p): grows by equal factors over equal numbers of images."""

    start: Inside = 0.01

    def factor(self, nimg: jax.Array) -> jax.Array:
        return self.start ** (1 - self.done(nimg))


WARMUPS = {
    "none": NoWarmup,
    "linear": LinearWarmup,
    "cosine": CosineWarmup,
    "exponential": ExponentialWarmup,
}
