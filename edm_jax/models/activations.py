"""Activation functions, and their magnitude-preserving forms (App. B.7)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.fields import Finite, NotNegative, Positive, Settings
from edm_jax.platform import alone

Array = jax.Array


@runtime_checkable
class Activation(Protocol):
    """An entry of ACTIVATIONS."""

    def apply(self, x: Array) -> Array:
        """The function, elementwise, in the dtype of x."""
        ...


@dataclasses.dataclass(frozen=True)
class SiLU(Settings):
    """x sigmoid(x), the paper's choice (App. B.1)."""

    def apply(self, x: Array) -> Array:
        return jax.nn.silu(x)


@dataclasses.dataclass(frozen=True)
class Swish(Settings):
    """x sigmoid(beta x) (arXiv 1710.05941); SiLU at beta = 1."""

    beta: Finite = 1.0

    def apply(self, x: Array) -> Array:
        return x * jax.nn.sigmoid(self.beta * x)


@dataclasses.dataclass(frozen=True)
class ReLU(Settings):
    """max(x, 0)."""

    def apply(self, x: Array) -> Array:
        return jax.nn.relu(x)


@dataclasses.dataclass(frozen=True)
class LeakyReLU(Settings):
    """x for x > 0, slope x otherwise."""

    slope: NotNegative = 0.01

    def apply(self, x: Array) -> Array:
        return jax.nn.leaky_relu(x, self.slope)


@dataclasses.dataclass(frozen=True)
class ELU(Settings):
    """x for x > 0, alpha (e^x - 1) otherwise (arXiv 1511.07289)."""

    alpha: Positive = 1.0

    def apply(self, x: Array) -> Array:
        return jax.nn.elu(x, self.alpha)


@dataclasses.dataclass(frozen=True)
class GELU(Settings):
    """x Phi(x), Phi the normal distribution function (arXiv 1606.08415)."""

    def apply(self, x: Array) -> Array:
        return jax.nn.gelu(x, approximate=False)


@dataclasses.dataclass(frozen=True)
class Mish(Settings):
    """x tanh(ln(1 + e^x)) (arXiv 1908.08681)."""

    def apply(self, x: Array) -> Array:
        return jax.nn.mish(x)


ACTIVATIONS = {
    "silu": SiLU,
    "swish": Swish,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "gelu": GELU,
    "mish": Mish,
}


@functools.cache
def magnitude(activation: Activation) -> float:
    """sqrt(E[f(x)^2]) for x ~ N(0, 1), to the paper's three decimals: .596 for SiLU.

    By Gauss-Legendre quadrature in float64 on either side of 0, where some functions have
    a kink. The tails beyond 12 standard deviations are negligible.
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = np.concatenate([6 * nodes - 6, 6 * nodes + 6])
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    # Evaluate it even during tracing, when JAX would otherwise only record it.
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        y = np.asarray(activation.apply(jnp.asarray(x)))
    mean_square = np.sum(6 * np.tile(weights, 2) * density * y**2)
    return round(float(np.sqrt(mean_square)), 3)


def resolve(activation: Activation, preserving: bool) -> Callable[[Array], Array]:
    """The function that a network applies.

    Args:
        activation: an entry of ACTIVATIONS.
        preserving: whether to divide by `magnitude`, so that inputs of unit magnitude
            give outputs of unit magnitude (Eq. 81).
    """
    if not preserving:
        return alone(activation.apply)
    scale = 1 / magnitude(activation)
    return alone(lambda x: activation.apply(x) * scale)
