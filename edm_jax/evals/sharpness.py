"""Sharpness: the largest eigenvalue of the Hessian of the loss, by Lanczos.

Gradient descent of rate eta stays stable up to 2 / eta, and training tends to that edge
(Cohen et al., arXiv 2103.00065). With Adam the edge is that of the Hessian divided by
Adam's own scale, `optim.stability.edge`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from edm_jax import diffusion
from edm_jax.models.unet import Params

Loss = Callable[[Params], jax.Array]


class Sharpness:
    """The top eigenvalue of a training loss on one batch, with its noise held fixed."""

    def __init__(
        self, loss: Callable[..., Any], batch: dict[str, Any], iterations: int
    ):
        """Takes a loss of `diffusion.make_loss` and a batch of images and labels."""
        key, index = jax.random.PRNGKey(0), jnp.arange(len(batch["image"]))
        keys = diffusion.example_keys(key, jnp.int32(0), index)
        self.iterations = iterations
        self._product = hessian_product(lambda params: loss(params, batch, keys)[0])

    def __call__(self, params: Params, scale: Params | None = None) -> float:
        """The eigenvalue at these weights; of P^-1 H, P the diagonal of `scale`."""
        flat, unravel = ravel_pytree(params)
        root = 1.0 if scale is None else np.sqrt(np.asarray(ravel_pytree(scale)[0]))

        # P^-1/2 H P^-1/2 has the same eigenvalues, and is symmetric.
        def product(vector: np.ndarray) -> np.ndarray:
            tangent = unravel(jnp.asarray(vector / root, flat.dtype))
            return np.asarray(ravel_pytree(self._product(params, tangent))[0]) / root

        return top_eigenvalue(product, flat.size, self.iterations)


def hessian_product(loss: Loss) -> Callable[[Params, Params], Params]:
    """(params, v) -> H v, compiled: forward over reverse, of a loss of the params."""

    @jax.jit
    def product(params: Params, tangent: Params) -> Params:
        return jax.jvp(jax.grad(loss), (params,), (tangent,))[1]

    return product


def top_eigenvalue(
    product: Callable[[np.ndarray], np.ndarray], size: int, iterations: int = 20
) -> float:
    """The largest eigenvalue of a symmetric operator on vectors (size,).

    Lanczos from a random start, orthogonalized against all vectors before, in float64:
    the largest Ritz value, which approaches the eigenvalue from below.
    """
    vector = np.random.default_rng(0).standard_normal(size)
    basis = [vector / np.linalg.norm(vector)]
    diagonal, beside = [], []
    for _ in range(min(iterations, size)):
        image = np.asarray(product(basis[-1]), np.float64)
        diagonal.append(float(image @ basis[-1]))
        for _ in range(2):  # twice is enough for float64
            for other in basis:
                image -= (image @ other) * other
        norm = float(np.linalg.norm(image))
        if not norm > 1e-10 * max(1e-300, *np.abs(diagonal)):
            break  # the space is exhausted, or the loss is not finite
        beside.append(norm)
        basis.append(image / norm)
    if not np.isfinite(diagonal).all():
        return float("nan")
    off = beside[: len(diagonal) - 1]
    ritz = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
    return float(np.linalg.eigvalsh(ritz)[-1])
