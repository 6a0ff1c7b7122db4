"""Points in the plane whose density is known: two classes, each a fractal of Gaussians.

After the two-dimensional example of the autoguidance paper (arXiv 2406.02507, Sec. 3):
branches that fork again and again, so that most of the plane is empty, and what
is not is thin. The trees are this project's own.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ON_A_BRANCH = 6  # Gaussians


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians in the plane, with noise of any level added: p(x; sigma).

    Attributes:
        weight: (K,), of sum 1.
        mean: (K, 2).
        along: (K, 2), the unit vector of each Gaussian's first axis.
        std: (K, 2), along that axis and across it.
    """

    weight: np.ndarray
    mean: np.ndarray
    along: np.ndarray
    std: np.ndarray

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws points (count, 2), float64."""
        part = rng.choice(len(self.weight), count, p=self.weight)
        local = rng.standard_normal((count, 2)) * self.std[part]
        along = self.along[part]
        across = np.stack([-along[:, 1], along[:, 0]], axis=1)
        return self.mean[part] + local[:, :1] * along + local[:, 1:] * across

    @functools.partial(jax.jit, static_argnums=0)
    def log_density(self, x: jax.Array, sigma: jax.Array | float = 0.0) -> jax.Array:
        """ln p(x; sigma) of points (N, 2), (N,) float32."""
        return jax.nn.logsumexp(self._parts(x, jnp.asarray(sigma))[0], axis=1)

    def denoise(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """D(x; sigma) = E[y | x] of points (N, 1, 1, 2) at levels (N,), exactly."""
        log, steps = self._parts(x.reshape(len(x), 2), sigma[:, None])
        share = jax.nn.softmax(log, axis=1)
        expect = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        found = expect(share, jnp.asarray(self.mean, x.dtype))
        for axis, step in zip(self._axes, steps, strict=True):
            found += expect(share * step, jnp.asarray(axis, x.dtype))
        return found.reshape(x.shape)

    @property
    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        return self.along, np.stack([-self.along[:, 1], self.along[:, 0]], axis=1)

    def _parts(
        self, x: jax.Array, sigma: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """ln(w_k N(x; k)) (N, K), and for each axis, how far E[y | x, k] is along it."""
        log, steps = jnp.log(jnp.float32(self.weight))[None], []
        for axis, std in zip(self._axes, self.std.T, strict=True):
            # No matrix product, which devices round.
            place = x[:, :1] * jnp.float32(axis[None, :, 0])
            place += x[:, 1:] * jnp.float32(axis[None, :, 1])
            place -= jnp.float32(np.sum(self.mean * axis, axis=1)[None])
            variance = jnp.float32(std[None] ** 2)
            noisy = variance + sigma**2
            log = log - (place**2 / noisy + jnp.log(2 * np.pi * noisy)) / 2
            steps.append(variance / noisy * place)
        return log, steps


@functools.cache
def fractal(depth: int) -> tuple[Mixture, Mixture]:
    """The density of each class; both together have mean 0 and variance 1 per channel.

    Args:
        depth: how often the branches fork.
    """
    rng = np.random.default_rng(7)
    trees = [
        np.array(_branches(np.zeros(2), turn * np.pi, 1.0, depth, rng))
        for turn in (0.22, 0.58)
    ]
    # Columns: mean x, y, angle, std along, across, weight.
    both = np.concatenate(trees)
    share = both[:, 5] / both[:, 5].sum()
    centre = share @ both[:, :2]
    inner = (both[:, 3] ** 2 + both[:, 4] ** 2) / 2
    spread = np.mean(share @ (both[:, :2] - centre) ** 2) + share @ inner
    scale = 1 / np.sqrt(spread)
    made = [
        Mixture(
            tree[:, 5] / tree[:, 5].sum(),
            (tree[:, :2] - centre) * scale,
            np.stack([np.cos(tree[:, 2]), np.sin(tree[:, 2])], axis=1),
            tree[:, 3:5] * scale,
        )
        for tree in trees
    ]
    return made[0], made[1]


def together(mixtures: Sequence[Mixture]) -> Mixture:
    """The density of points of all classes, each as frequent."""
    fields = (
        np.concatenate([getattr(each, field.name) for each in mixtures])
        for field in dataclasses.fields(Mixture)
    )
    weight, *others = fields
    return Mixture(weight / len(mixtures), *others)


def _branches(
    start: np.ndarray, angle: float, length: float, depth: int, rng: Any
) -> list[tuple[float, ...]]:
    """The Gaussians of a branch and of those that fork from its end."""
    found = []
    bend, end = rng.uniform(-0.5, 0.5), start
    for i in range(_ON_A_BRANCH):
        turned = angle + bend * (i + 0.5) / _ON_A_BRANCH
        step = length / _ON_A_BRANCH * np.array([np.cos(turned), np.sin(turned)])
        thin = 0.04 * length * (1.1 - 0.6 * i / _ON_A_BRANCH)
        found.append((*(end + step / 2), turned, np.hypot(*step) / 2, thin, length))
        end = end + step
    if depth:
        for side in (-1, 1):
            fork = angle + bend + side * rng.uniform(0.35, 0.75)
            shorter = length * rng.uniform(0.62, 0.78)
            found += _branches(end, fork, shorter, depth - 1, rng)
    return found
