"""From noise to images: ways to follow a denoiser down a list of noise levels.

A denoiser is a function (x (N, H, W, C), sigma (N,)) -> D(x; sigma). A sampler starts
from x = sigma_0 n, n white noise, and follows dx/dsigma = (x - D(x; sigma)) / sigma
(EDM, arXiv 2206.00364, Eq. 1) or an equation with noise that has the same marginals. Each
is one `lax.scan` over the steps, so the network is compiled once for all of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.fields import NotNegative, Positive, Settings, Share
from edm_jax.models.layers import Array

Denoise = Callable[[Array, Array], Array]


@runtime_checkable
class Sampler(Protocol):
    """An entry of SAMPLERS."""

    def sample(
        self, denoise: Denoise, x: Array, sigmas: np.ndarray, keys: Array
    ) -> Array:
        """Follows `denoise` from x at sigmas[0] down to sigmas[-1].

        Args:
            denoise: D(x; sigma).
            x: (N, H, W, C), noise of standard deviation sigmas[0].
            sigmas: decreasing levels; the last may be 0.
            keys: (N,) random keys, one for each image.

        Returns:
            (N, H, W, C).
        """
        ...


@dataclasses.dataclass(frozen=True)
class Euler(Settings):
    """x' = x + (s' - s) d, d = (x - D(x; s)) / s; first order (arXiv 2206.00364, Eq. 1)."""

    def sample(
        self, denoise: Denoise, x: Array, sigmas: np.ndarray, keys: Array
    ) -> Array:
        """Follows `denoise` from x at sigmas[0] down to sigmas[-1]."""
        del keys

        def step(x: Array, now: Array, then: Array) -> Array:
            return x + (then - now) * _slope(denoise, x, now)

        return _scan(step, x, sigmas[:-1], sigmas[1:])


@dataclasses.dataclass(frozen=True)
class Heun(Settings):
    """Euler's step, then d' at its end: x' = x + (s' - s) (d + d') / 2 (EDM Alg. 1).

    Second order; a step to 0 is Euler's. n steps take 2n - 1 evaluations.
    """

    def sample(
        self, denoise: Denoise, x: Array, sigmas: np.ndarray, keys: Array
    ) -> Array:
        """Follows `denoise` from x at sigmas[0] down to sigmas[-1]."""
        del keys
        return _heun(denoise, x, sigmas[:-1], sigmas[1:])


@dataclasses.dataclass(frozen=True)
class StochasticHeun(Settings):
    """Noise is added up to s (1 + gamma) before each of Heun's steps (EDM Alg. 2).

    gamma = min(s_churn / n, sqrt(2) - 1) where s_min <= s <= s_max, else 0. The defaults
    are EDM's for ImageNet-64 (Table 5), for 256 steps.
    """

    s_churn: NotNegative = 40.0
    s_min: NotNegative = 0.05
    s_max: Positive = 50.0
    s_noise: Positive = 1.003  # standard deviation of what is added

    def sample(
        self, denoise: Denoise, x: Array, sigmas: np.ndarray, keys: Array
    ) -> Array:
        """Follows `denoise` from x at sigmas[0] down to sigmas[-1]."""
        now, then = sigmas[:-1], sigmas[1:]
        gamma = min(self.s_churn / len(now), 2**0.5 - 1)
        raised = now * np.where((self.s_min <= now) & (now <= self.s_max), 1 + gamma, 1)
        added = self.s_noise * np.sqrt(raised**2 - now**2)

        def churn(x: Array, i: Array, added: Array) -> Array:
            return x + added * fresh_noise(keys, i, x)

        return _heun(denoise, x, raised, then, churn, np.arange(len(now)), added)


@dataclasses.dataclass(frozen=True)
class DPMSolver2M(Settings):
    """x' = (s'/s) x + (1 - s'/s) (D + (D - D_before) h / (2 h_before)), h = ln(s / s').

    DPM-Solver++(2M) (arXiv 2211.01095, Alg. 2), second order with one evaluation a step.
    The first step, and one to 0, take D alone.
    """

    def sample(
        self, denoise: Denoise, x: Array, sigmas: np.ndarray, keys: Array
    ) -> Array:
        """Follows `denoise` from x at sigmas[0] down to sigmas[-1]."""
        del keys
        now, then = sigmas[:-1], sigmas[1:]
        with np.errstate(divide="ignore"):
            h = np.log(now) - np.log(then)
        extrapolate = np.zeros(len(now))
        extrapolate[1:] = h[1:] / (2 * h[:-1])
        extrapolate[then == 0] = 0.0

        def step(carry: Any, now: Array, ratio: Array, weight: Array) -> Any:
            x, before = carry
            d = denoise(x, jnp.full(len(x), now))
            target = d + weight * (d - before)
            return ratio * x + (1 - ratio) * target, d

        return _scan(step, (x, x), now, then / now, extrapolate)[0]


@dataclasses.dataclass(frozen=True)
class AncestralEuler(Settings):
    """Euler's step to s_down, then noise of standard deviation s_up is added.

    s_up = eta s' sqrt(1 - (s'/s)^2), s_down^2 + s_up^2 = s'^2 (arXiv 2010.02502, Eq. 16).
    eta = 1 is DDPM's ancestral sampling, 0 is Euler's method.
    """

    eta: Share = 1.0

    def sample(
        self, denoise: Denoise, x: Array, sigmas: np.ndarray, keys: Array
    ) -> Array:
        """Follows `denoise` from x at sigmas[0] down to sigmas[-1]."""
        now, then = sigmas[:-1], sigmas[1:]
        up = self.eta * then * np.sqrt(1 - (then / now) ** 2)
        down = np.sqrt(then**2 - up**2)

        def step(x: Array, i: Array, now: Array, down: Array, up: Array) -> Array:
            x = x + (down - now) * _slope(denoise, x, now)
            return x + up * fresh_noise(keys, i, x)

        return _scan(step, x, np.arange(len(now)), now, down, up)


SAMPLERS = {
    "heun": Heun,
    "euler": Euler,
    "stochastic_heun": StochasticHeun,
    "dpm_solver_2m": DPMSolver2M,
    "ancestral_euler": AncestralEuler,
}


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """(N, *shape) float32, each image from its own seed, whatever the batch."""
    draws = [np.random.default_rng(seed).standard_normal(shape) for seed in seeds]
    return np.stack(draws).astype(np.float32)


def seed_keys(seeds: Sequence[int] | Array) -> Array:
    """(N,) random keys of the images' seeds, for the noise that a sampler adds."""
    return jax.vmap(jax.random.PRNGKey)(jnp.asarray(seeds, jnp.uint32))


def fresh_noise(keys: Array, step: Array, like: Array) -> Array:
    """White noise of a step, for each image its own."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:]))(keys)


def _heun(
    denoise: Denoise,
    x: Array,
    now: np.ndarray,
    then: np.ndarray,
    before: Callable[..., Array] = lambda x: x,
    *tables: np.ndarray,
) -> Array:
    """Heun's steps from each level `now` to `then`; x = before(x, *row) at their start.

    The scan is over evaluations, so that it holds the network once: one at the start of
    a step, which predicts, and one at what it predicts, which corrects. None at 0.
    """
    level = np.stack([now, then], axis=1).ravel()
    change, *others = (np.repeat(t, 2) for t in (then - now, *tables))
    corrects = np.tile([False, True], len(now))
    accepts = corrects | (np.repeat(then, 2) == 0)

    def evaluate(
        carry: Any, level: Any, change: Any, corrects: Any, accepts: Any, *row: Any
    ):
        x, probe, d_start = carry
        x, probe = (jnp.where(corrects, v, before(v, *row)) for v in (x, probe))
        d = _slope(denoise, probe, level)
        moved = x + change * jnp.where(corrects, (d_start + d) / 2, d)
        return jnp.where(accepts, moved, x), moved, d

    rows = (t[level > 0] for t in (level, change, corrects, accepts, *others))
    return _scan(evaluate, (x, x, x), *rows)[0]


def _slope(denoise: Denoise, x: Array, sigma: Array) -> Array:
    """dx/dsigma of the probability flow."""
    return (x - denoise(x, jnp.full(len(x), sigma))) / sigma


def _scan(step: Callable[..., Any], carry: Any, *tables: np.ndarray) -> Any:
    """`step(carry, *row)` for each row of the tables; those of levels are float32."""
    rows = [
        jnp.asarray(t, jnp.float32 if t.dtype.kind == "f" else None) for t in tables
    ]
    return jax.lax.scan(lambda c, row: (step(c, *row), None), carry, rows)[0]
