"""Clipping and normalization: bounds on the gradients before the update rule.

They act after the loss scale is divided out and non-finite elements are replaced.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from edm_jax.fields import Count, Fraction, Positive, Settings
from edm_jax.models.unet import Params
from edm_jax.optim import leaves
from edm_jax.optim.links import NoLink


@dataclasses.dataclass(frozen=True)
class ByValue(Settings):
    """min(max(g, -limit), limit), by element."""

    limit: Positive = 1.0

    def link(self) -> optax.GradientTransformation | None:
        """Clips every element."""
        return optax.clip(self.limit)


@dataclasses.dataclass(frozen=True)
class GlobalNorm(Settings):
    """g min(1, limit / |g|), |g| the norm of all gradients (arXiv 1211.5063, Alg. 1)."""

    limit: Positive = 1.0

    def link(self) -> optax.GradientTransformation | None:
        """Clips all gradients by the same factor."""
        return optax.clip_by_global_norm(self.limit)


@dataclasses.dataclass(frozen=True)
class BlockRms(Settings):
    """g min(1, limit / RMS(g)) for each array of parameters (arXiv 1804.04235, Sec. 6)."""

    limit: Positive = 1.0

    def link(self) -> optax.GradientTransformation | None:
        """Clips each array by itself."""
        return optax.clip_by_block_rms(self.limit)


@dataclasses.dataclass(frozen=True)
class Adaptive(Settings):
    """g min(1, ratio max(|w|, eps) / |g|) for each output unit: AGC (arXiv 2102.06171).

    A unit is an output channel of a kernel, or a whole bias. The last layer is not
    clipped (Sec. 4.1), and neither are gains, which start at 0 and could not leave it.
    """

    ratio: Positive = 0.01
    eps: Positive = 1e-3

    def link(self) -> optax.GradientTransformation | None:
        """Clips by unit. Optax's version treats a kernel with one row as a single unit."""

        def clip(g: Any, w: Any) -> jax.Array:
            if w is None:
                raise ValueError("AGC compares gradients with weights: pass params.")
            allowed = self.ratio * jnp.maximum(_unit_norm(w), self.eps)
            return g * jnp.minimum(allowed / jnp.maximum(_unit_norm(g), 1e-30), 1.0)

        def mask(params: Params) -> Params:
            def clipped(path: tuple[Any, ...], _: jax.Array) -> bool:
                exempt = leaves.kind(path) in ("gains", "frozen")
                return not exempt and not leaves.in_last_layer(path)

            return jax.tree_util.tree_map_with_path(clipped, params)

        return optax.masked(optax.stateless_with_tree_map(clip), mask)


def _unit_norm(x: jax.Array) -> jax.Array:
    """The norm of each output channel of a kernel, (1, ..., out), or of a vector, (1,)."""
    axes = tuple(range(max(x.ndim - 1, 1)))
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


@dataclasses.dataclass(frozen=True)
class UnitNorm(Settings):
    """g / |g|, |g| the norm of all gradients: normalizes rather than clips."""

    def link(self) -> optax.GradientTransformation | None:
        """Divides by the norm."""
        return optax.normalize_by_update_norm(eps=1e-12)


class ZClipState(NamedTuple):
    """Updates seen, and the running mean and variance of the gradient's norm."""

    updates: jax.Array
    mean: jax.Array
    variance: jax.Array


@dataclasses.dataclass(frozen=True)
class ZClip(Settings):
    """Cuts |g| to mean + (threshold^2 / z) std where z > threshold (arXiv 2504.02507).

    z = (|g| - mean) / std. Mean and variance of the norm are exponential averages:
    mean' = decay mean + (1 - decay) |g|, then variance' = decay variance + (1 - decay)
    (|g| - mean')^2, |g| after clipping. The first `warmup` updates are not clipped; their
    norms give the initial mean and variance.
    """

    threshold: Positive = 2.5
    decay: Fraction = 0.97
    warmup: Count = 25  # updates

    def link(self) -> optax.GradientTransformation | None:
        """Clips spikes."""

        def init(params: Params) -> ZClipState:
            del params
            return ZClipState(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

        def update(updates: Params, state: Any, params: Params | None = None):
            del params
            norm = optax.tree.norm(updates)
            std = jnp.sqrt(state.variance)
            excess = norm - state.mean
            is_spike = (state.updates >= self.warmup) & (excess > self.threshold * std)
            # threshold^2 / z std, without a division by a std of 0.
            allowed = state.mean + self.threshold**2 * state.variance / excess
            clipped = jnp.where(is_spike, allowed, norm)
            scale = jnp.where(is_spike, allowed / norm, 1.0)
            updates = jax.tree.map(lambda g: g * scale, updates)
            return updates, self._follow(state, clipped)

        return optax.GradientTransformation(init, update)

    def _follow(self, state: ZClipState, norm: jax.Array) -> ZClipState:
        seen = state.updates + 1
        # During the warm-up, the plain mean and variance by Welford's recursion.
        kept = jnp.where(state.updates < self.warmup, 1 - 1 / seen, self.decay)
        mean = kept * state.mean + (1 - kept) * norm
        after = (norm - mean) ** 2
        before = (norm - state.mean) * (norm - mean)
        spread = jnp.where(state.updates < self.warmup, before, after)
        variance = kept * state.variance + (1 - kept) * spread
        return ZClipState(seen, mean, variance)


CLIPS = {
    "none": NoLink,
    "value": ByValue,
    "global_norm": GlobalNorm,
    "block_rms": BlockRms,
    "agc": Adaptive,
    "zclip": ZClip,
    "unit_norm": UnitNorm,
}
