"""The schedules of LoRA trainers, as diffusers' `get_scheduler` defines them.

They have a prefix because this project's own `linear`, `cosine` and `polynomial` differ:
those measure t from the start of the run and multiply a warm-up; these contain the
warm-up, and measure progress from its end. diffusers counts steps; n, T and w are
images here (so far, of the run, of the warm-up), which gives the same values at the same
steps, whatever the batch size and the number of devices. A run of another code whose
warm-up has 500 steps of 8 images has warmup_mimg=0.004.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from edm_jax.fields import Count, NotNegative, Positive, Settings
from edm_jax.optim.timing import Run


@dataclasses.dataclass(frozen=True)
class LoraConstant(Settings):
    """1 throughout, as diffusers' constant."""

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        del nimg, run
        return jnp.ones(())


@dataclasses.dataclass(frozen=True)
class LoraConstantWithWarmup(Settings):
    """min(n / w, 1), as diffusers' constant_with_warmup."""

    warms_up: ClassVar[bool] = True
    warmup_mimg: NotNegative = 0.0  # million images

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        del run
        return self._ramp(nimg, 1.0)

    def misfits(self, run: Run) -> Iterator[str]:
        """Refuses a warm-up that the run never completes."""
        if self.warmup_mimg * 1e6 > run.duration_nimg * (1 + 1e-9):
            yield (
                f"warmup_mimg={self.warmup_mimg:g} is longer than the run of "
                f"{run.duration_nimg / 1e6:g} million images: shorten it."
            )

    def _ramp(self, nimg: Any, after: Any) -> jax.Array:
        """n / w before the end of the warm-up, `after` from there on."""
        warmup = self.warmup_mimg * 1e6
        return jnp.where(nimg < warmup, nimg / max(warmup, 1.0), after)

    def _progress(self, nimg: Any, run: Run) -> tuple[Any, float]:
        """n - w, and T - w: at least the images of a step."""
        warmup = self.warmup_mimg * 1e6
        return nimg - warmup, max(run.duration_nimg - warmup, float(run.batch_size))


@dataclasses.dataclass(frozen=True)
class LoraLinear(LoraConstantWithWarmup):
    """min(n / w, 1), then 1 - p, p = (n - w) / (T - w), as diffusers' linear.

    First value 0 with a warm-up, else 1; 0 at n = T.
    """

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        done, whole = self._progress(nimg, run)
        return self._ramp(nimg, jnp.maximum(1 - done / whole, 0.0))


@dataclasses.dataclass(frozen=True)
class LoraCosine(LoraConstantWithWarmup):
    """min(n / w, 1), then (1 + cos(pi p)) / 2, p = (n - w) / (T - w), as diffusers' cosine.

    After T it rises again, as there; no run comes so far.
    """

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        done, whole = self._progress(nimg, run)
        return self._ramp(nimg, (1 + jnp.cos(jnp.pi * done / whole)) / 2)


@dataclasses.dataclass(frozen=True)
class LoraCosineWithRestarts(LoraConstantWithWarmup):
    """min(n / w, 1), then (1 + cos(pi ((c p) mod 1))) / 2, as cosine_with_restarts.

    p = (n - w) / (T - w), c = num_cycles; 0 from p = 1 on.
    """

    num_cycles: Count = 1

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        done, whole = self._progress(nimg, run)
        # In images, so that a cycle ends where it does in float64.
        turned = jnp.mod(self.num_cycles * done, whole) / whole
        wave = (1 + jnp.cos(jnp.pi * turned)) / 2
        return self._ramp(nimg, jnp.where(done >= whole, 0.0, wave))


@dataclasses.dataclass(frozen=True)
class LoraPolynomial(LoraConstantWithWarmup):
    """min(n / w, 1), then (1 - e) (1 - p)^power + e, e = lr_end / alpha_ref, as polynomial.

    p = (n - w) / (T - w). Here a warm-up as long as the run is no division by zero.
    """

    power: Positive = 1.0
    lr_end: NotNegative = 1e-7  # a rate, not a factor

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        done, whole = self._progress(nimg, run)
        end = self.lr_end / run.alpha_ref
        left = jnp.clip(1 - done / whole, 0.0, 1.0)
        return self._ramp(nimg, (1 - end) * left**self.power + end)


LORA_SCHEDULES = {
    "lora_constant": LoraConstant,
    "lora_constant_with_warmup": LoraConstantWithWarmup,
    "lora_linear": LoraLinear,
    "lora_cosine": LoraCosine,
    "lora_cosine_with_restarts": LoraCosineWithRestarts,
    "lora_polynomial": LoraPolynomial,
}
