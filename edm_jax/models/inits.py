"""Initial values. A module declares how a parameter is drawn, and `build` draws it.

Drawing happens on the host, leaf by leaf, so that nothing is compiled and the numbers are
the same for every device.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.fields import Settings

Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape, int], np.ndarray]  # (rng, shape, fan_in)


def zeros(rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
    """Zeros."""
    del rng, fan_in
    return np.zeros(shape)


def ones(rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
    """Ones."""
    del rng, fan_in
    return np.ones(shape)


def normal(rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
    """N(0, 1), whatever the fan-in (App. B.4)."""
    del fan_in
    return rng.normal(size=shape)


def unit_interval(rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
    """U(0, 1) (Eq. 36)."""
    del fan_in
    return rng.uniform(0, 1, shape)


@dataclasses.dataclass(frozen=True)
class Init(Settings):
    """Base of the entries of INITS, which draw kernels; biases are zero by default.

    A kernel is (..., in, out), and fan_in the number of inputs of each output unit.
    """

    def kernel(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        """The kernel of a layer."""
        raise NotImplementedError

    def label(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        """The kernel of the label layer, whose inputs are one-hot."""
        return self.kernel(rng, shape, fan_in)

    def bias(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        """The bias of a layer."""
        return zeros(rng, shape, fan_in)


@dataclasses.dataclass(frozen=True)
class Uniform(Init):
    """U(-b, b), b = 1 / sqrt(fan_in), biases too (App. B.3)."""

    def kernel(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        bound = 1 / math.sqrt(fan_in)
        return rng.uniform(-bound, bound, shape)

    bias = kernel


@dataclasses.dataclass(frozen=True)
class Adm(Uniform):
    """`uniform`, but N(0, 1) for the label layer (App. B.1)."""

    def label(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        """The kernel of the label layer."""
        return normal(rng, shape, fan_in)


@dataclasses.dataclass(frozen=True)
class Normal(Init):
    """N(0, 1), biases too (App. B.4)."""

    def kernel(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        return normal(rng, shape, fan_in)

    bias = kernel


@dataclasses.dataclass(frozen=True)
class LeCun(Init):
    """N(0, 1 / fan_in): unit-variance inputs give unit-variance outputs."""

    def kernel(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        return rng.normal(size=shape) / math.sqrt(fan_in)


@dataclasses.dataclass(frozen=True)
class He(Init):
    """N(0, 2 / fan_in), for layers after a ReLU (arXiv 1502.01852, Eq. 10)."""

    def kernel(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        return rng.normal(size=shape) * math.sqrt(2 / fan_in)


@dataclasses.dataclass(frozen=True)
class Xavier(Init):
    """U(-b, b), b = sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, Eq. 16)."""

    def kernel(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        fan_out = fan_in // shape[-2] * shape[-1]
        bound = math.sqrt(6 / (fan_in + fan_out))
        return rng.uniform(-bound, bound, shape)


@dataclasses.dataclass(frozen=True)
class Orthogonal(Init):
    """Orthonormal output units, or inputs if there are fewer (arXiv 1312.6120)."""

    def kernel(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> np.ndarray:
        matrix = rng.normal(size=(fan_in, shape[-1]))
        is_wide = matrix.shape[0] < matrix.shape[1]
        q, r = np.linalg.qr(matrix.T if is_wide else matrix)
        # QR's signs are arbitrary; these make the draw uniform over all rotations.
        q = q * np.sign(np.diag(r))
        return (q.T if is_wide else q).reshape(shape)


INITS = {
    "adm": Adm,
    "uniform": Uniform,
    "normal": Normal,
    "lecun": LeCun,
    "he": He,
    "xavier": Xavier,
    "orthogonal": Orthogonal,
}


@flax.struct.dataclass
class Undrawn(nn.meta.AxisMetadata):
    """A parameter's shape, in float32, and how it is drawn."""

    value: Any
    draw: Draw = flax.struct.field(pytree_node=False)
    fan_in: int = flax.struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Undrawn":
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: Any) -> "Undrawn":
        raise NotImplementedError("Parameters are not stacked.")

    def remove_axis(self, index: int, params: Any) -> "Undrawn":
        raise NotImplementedError("Parameters are not stacked.")


def draw_all(undrawn: Any, seed: int) -> Any:
    """Draws a tree of `Undrawn` leaves as float32 NumPy arrays.

    Each leaf has its own random stream, seeded by its name: layers that two networks
    share have the same initial values.
    """

    def draw(path: tuple[Any, ...], leaf: Undrawn) -> np.ndarray:
        name = "/".join(key.key for key in path)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return leaf.draw(rng, leaf.value.shape, leaf.fan_in).astype(np.float32)

    return jax.tree_util.tree_map_with_path(
        draw, undrawn, is_leaf=lambda x: isinstance(x, Undrawn)
    )


def declare(
    module: nn.Module, name: str, draw: Draw, shape: Shape, fan_in: int = 1
) -> Any:
    """The float32 parameter `name` of a module."""

    def init(key: Any) -> Undrawn:
        del key
        return Undrawn(jnp.zeros(shape, jnp.float32), draw, fan_in)

    return module.param(name, init)
