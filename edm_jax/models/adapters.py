"""Adapters: small trained changes of a network whose own weights stay as they are.

An adapter changes kernels of the parameter tree, so the network does not know of it. A
kernel W (..., in, out) is a matrix (fan_in, out), fan_in = k k in for a convolution, and
w is one of its output units, a column. Low-rank changes are

    D = s A B,   s = alpha / rank,   A (..., in, rank), B (rank, out),

which is the same as a second path beside the layer: a convolution to `rank` channels
with the kernel A, then a 1x1 convolution with s B (arXiv 2106.09685). Every adapter
starts at the base itself, to the bit.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import menu, tree
from edm_jax.fields import Count, Fraction, Positive, Settings
from edm_jax.models.build import Model
from edm_jax.models.inits import INITS, Draw, Undrawn, normal, zeros
from edm_jax.models.layers import Array, normalize_units
from edm_jax.models.places import select
from edm_jax.models.unet import Params

# Apart from the keys of a step's examples.
_DROPOUT_SALT = 0x10A
_TINY = 1e-30  # keeps quotients and square roots of an all-zero unit finite
Leaves = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Adapter(Settings):
    """Base of the entries of ADAPTERS."""


@dataclasses.dataclass(frozen=True)
class NoAdapter(Adapter):
    """The network's own weights are trained."""


@dataclasses.dataclass(frozen=True)
class Lora(Adapter):
    """W + D; the layer may normalize the sum (arXiv 2106.09685).

    A starts uniform(+-1 / sqrt(fan_in)), which is Kaiming's with a = sqrt(5), and B at
    zero. On a magnitude-preserving layer the network uses normalize(W + D), so only the
    part of D that is orthogonal to each unit w has an effect, |D| / |W| is the angle, and
    the angle depends on the length of W.

    Attributes:
        rank: of the change; at most fan_in in a layer.
        alpha: s = alpha / rank.
        rank_stabilized: s = alpha / sqrt(rank), rsLoRA (arXiv 2312.03732, Eq. 3).
        rate_ratio: the learning rate of B over that of A, LoRA+ (arXiv 2402.12354): B is
            this times what is trained. That is the ratio for rules that ignore the scale
            of a gradient, such as Adam, and its square for SGD.
        dropout: the share of the `rank` components that a training step leaves out.
        init: how A is drawn, one of `describe.py --menu=init`.
        targets: the layers that are adapted, as a pattern of optimizer.groups, such as
            decoder,!attention or unet/dec_*/conv0/*; '' is all of them.
    """

    rank: Count = 8
    alpha: Positive = 8.0
    rank_stabilized: bool = False
    rate_ratio: Positive = 1.0
    dropout: Fraction = 0.0
    init: Annotated[str, menu.Word(INITS, "init")] = "uniform"
    targets: str = ""

    @property
    def scale(self) -> float:
        """s, and the ratio of B to what is trained."""
        rank = math.sqrt(self.rank) if self.rank_stabilized else self.rank
        return self.rate_ratio * self.alpha / rank

    def leaves(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """The parameters of a layer whose kernel has this shape, undrawn."""
        fan_in, out = math.prod(shape[:-1]), shape[-1]
        rank = min(self.rank, fan_in)
        draw = menu.build(INITS, "adapter.init", self.init).kernel
        return {
            "down": _leaf(draw, (*shape[:-1], rank), fan_in),
            "up": _leaf(zeros, (rank, out)),
        }

    def kernel(
        self, w: Array, leaves: Leaves, strength: Any = 1.0, keep: Array | None = None
    ) -> Array:
        """The kernel in place of W.

        Args:
            w: W, (..., in, out).
            leaves: the parameters of this layer.
            strength: a factor of D.
            keep: (rank,) factors of the components, 1 without dropout.
        """
        units = _matrix(w)
        change = self._change(units, leaves, strength, keep)
        return self._changed(units, change, leaves, strength).reshape(w.shape)

    def _change(
        self, units: Array, leaves: Leaves, strength: Any, keep: Array | None
    ) -> Array:
        """D, (fan_in, out)."""
        del units
        up = leaves["up"] * (self.scale * strength)
        return _product(leaves["down"], up, keep)

    def _changed(
        self, units: Array, change: Array, leaves: Leaves, strength: Any
    ) -> Array:
        """The units (fan_in, out) in place of W's."""
        del leaves, strength
        return units + change


@dataclasses.dataclass(frozen=True)
class Dora(Lora):
    """(1 + m) (w + d) |w| / |w + d|: length and direction apart (arXiv 2402.09353, Eq. 5).

    The paper trains the length itself; here m, which starts at zero, is relative to |w|.
    The gradient goes through |w + d|. A layer that normalizes its weights ignores the
    length, so there this is `lora`. A unit w = 0 has no length to keep, and stays zero.
    """

    def leaves(self, shape: tuple[int, ...]) -> dict[str, Any]:
        return super().leaves(shape) | {"length": _leaf(zeros, shape[-1:])}

    def _changed(
        self, units: Array, change: Array, leaves: Leaves, strength: Any
    ) -> Array:
        w, d = units, change
        # |w + d|^2 / |w|^2 - 1, which is exactly zero at d = 0.
        more = (2 * _dot(w, d) + _dot(d, d)) / jnp.maximum(_dot(w, w), _TINY)
        ratio = jnp.sqrt(jnp.maximum(1 + more, _TINY))
        return (1 + strength * leaves["length"][None]) / ratio * (w + d)


@dataclasses.dataclass(frozen=True)
class Sphere(Lora):
    """cos(theta) w + sin(theta) |w| t / |t|, t = d - w (w.d) / |w|^2, theta = |t| / |w|.

    A step along the geodesic: each unit turns by the angle theta within the plane of w
    and d, and keeps its length, whatever the layer does with it. Of d, the part along w
    is left out. A `strength` of 0.5 turns by half the angle.
    """

    def _changed(
        self, units: Array, change: Array, leaves: Leaves, strength: Any
    ) -> Array:
        w, d = units, change
        square = jnp.maximum(_dot(w, w), _TINY)
        t = d - w * (_dot(w, d) / square)
        theta = jnp.sqrt(_dot(t, t) / square + _TINY)
        return jnp.cos(theta) * w + jnp.sin(theta) / theta * t


@dataclasses.dataclass(frozen=True)
class Normalized(Lora):
    """w + g rms(W) A^ b^ / sqrt(rank), A^ and b^ = normalize(A), normalize(b): MP LoRA.

    A and B are layers of EDM2 themselves (Eq. 47, 66): each of their units has RMS 1 in
    the product, and forced weight normalization, if it is on, keeps them there, so their
    effective learning rate is controlled as that of the base was. The RMS of the change
    is then about |g| times that of W. g, one per output unit, starts at zero, as gains
    do (App. B.7), and A and B with N(0, 1); the first step therefore moves g alone.
    `rate_ratio` is that of g; `alpha`, `rank_stabilized` and `init` have no effect.
    """

    def leaves(self, shape: tuple[int, ...]) -> dict[str, Any]:
        rank = min(self.rank, math.prod(shape[:-1]))
        return {
            "down": {"kernel": _leaf(normal, (*shape[:-1], rank))},
            "up": {"kernel": _leaf(normal, (rank, shape[-1]))},
            "gain": _leaf(zeros, shape[-1:]),
        }

    def _change(
        self, units: Array, leaves: Leaves, strength: Any, keep: Array | None
    ) -> Array:
        down, up = (normalize_units(leaves[name]["kernel"]) for name in ("down", "up"))
        rms = jnp.sqrt(jnp.mean(jnp.square(units)))
        gain = strength * self.rate_ratio * rms / math.sqrt(len(up)) * leaves["gain"]
        return _product(down, up * gain[None], keep)


@dataclasses.dataclass(frozen=True)
class Rotation(Lora):
    """R W, R = (I + Q)(I - Q)^-1, Q = s (U V' - V U'): one rotation of all units.

    Cayley's form of an orthogonal matrix (arXiv 2306.07280, Eq. 5) with a skew Q of rank
    2 rank, so that (I - Q)^-1 is a solve of that size (Woodbury). Lengths, and the angles
    between units, do not change. U (fan_in, rank) is drawn as A is, and V starts at zero.
    """

    def leaves(self, shape: tuple[int, ...]) -> dict[str, Any]:
        down = super().leaves(shape)["down"]
        return {"down": down, "up": _leaf(zeros, down.value.shape)}

    def _change(
        self, units: Array, leaves: Leaves, strength: Any, keep: Array | None
    ) -> Array:
        u, v = _matrix(leaves["down"]), _matrix(leaves["up"]) * (self.scale * strength)
        u = u if keep is None else u * keep[None]
        # Q = left right', so R - I = 2 left (I - right' left)^-1 right'.
        left = jnp.concatenate([u, -v], axis=1)
        right = jnp.concatenate([v, u], axis=1)
        small = jnp.eye(left.shape[1]) - _matmul(right.T, left)
        turned = jnp.linalg.solve(small, _matmul(right.T, units))
        return 2 * _matmul(left, turned)


class Part(NamedTuple):
    """An adapter with its parameters, and how much of it counts."""

    adapter: Any
    params: Params
    strength: float = 1.0


def merge(base: Params, parts: Sequence[Part], key: Array | None = None) -> Params:
    """The parameters of the network with the changes of all parts.

    A kernel becomes W + sum_i (W_i - W), W_i that of part i alone with its strength.

    Args:
        base: the network's own parameters.
        parts: what changes them.
        key: of the dropout in this training step; None for none.
    """
    total, *others = (_merged(base, part, part.params, key) for part in parts)
    for other in others:
        total = jax.tree.map(lambda t, o, w: t + (o - w), total, other, base)
    return total


@functools.partial(jax.jit, static_argnums=0)
def _merge_one(adapter: Any, base: Params, params: Params) -> Params:
    return merge(base, [Part(adapter, params)])


def _merged(
    base: Params, part: Part, leaves: Params, key: Array | None, path: str = ""
) -> Params:
    def changed(name: str, each: Any) -> Any:
        if isinstance(each, dict):
            return _merged(each, part, leaves.get(name, {}), key, f"{path}{name}/")
        if name != "kernel" or not leaves:
            return each
        keep = None if key is None else _keep(part.adapter, each.shape, key, path)
        return part.adapter.kernel(jnp.asarray(each), leaves, part.strength, keep)

    return {name: changed(name, each) for name, each in base.items()}


def _keep(adapter: Any, shape: tuple[int, ...], key: Array, path: str) -> Array:
    """Which components of a layer's change count in a step, over their expectation."""
    share = 1 - adapter.dropout
    key = jax.random.fold_in(key, zlib.crc32(path.encode()) & 0x7FFFFFFF)
    rank = min(adapter.rank, math.prod(shape[:-1]))
    return jax.random.bernoulli(key, share, (rank,)) / share


def no_base() -> Params:
    """The base of a network whose config alone is known; raises ValueError."""
    raise ValueError("The adapter's base is not known: open it with its run.")


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted(Model):
    """A network of which an adapter alone is trained: its parameters are the adapter's.

    Attributes:
        adapter: an entry of ADAPTERS.
        base: returns the network's own parameters.
        key: of the dropout in a training step.
    """

    adapter: Any
    base: Callable[[], Params] = no_base
    key: Array | None = None

    def __eq__(self, other: object) -> bool:
        return self is other  # weights are not compared

    def __hash__(self) -> int:
        return id(self)

    @property
    def network(self) -> Model:
        """The network without the adapter."""
        return self._network

    @functools.cached_property
    def _network(self) -> Model:
        return Model(self.spec)

    @property
    def is_unbound(self) -> bool:
        """Whether the base is not known, as that of a config alone."""
        return self.base is no_base

    def in_step(self, base: Params, key: Array) -> "Adapted":
        """The same in a training step, which takes the base as an argument.

        key: of this step, for the dropout.
        """
        own = jax.random.fold_in(key, _DROPOUT_SALT) if self.adapter.dropout else None
        return dataclasses.replace(self, base=lambda: base, key=own)

    def apply(
        self, params: Params, *inputs: Any, statistics: bool = False
    ) -> tuple[Array, Array, Params]:
        """`Model.apply` of the merged weights."""
        weights = merge(self.base(), [Part(self.adapter, params)], self.key)
        return self.network.apply(weights, *inputs, statistics=statistics)

    def weights(self, params: Params) -> Params:
        """The network's parameters with the adapter merged into them."""
        return _merge_one(self.adapter, self.base(), params)

    def change(self, updates: Params, before: Params) -> tuple[Params, Params]:
        """What `updates` of the adapter do to the network's parameters, and those."""
        after, merged = jax.tree.map(jnp.add, before, updates), self.weights(before)
        return jax.tree.map(jnp.subtract, self.weights(after), merged), merged

    def forward_order(self) -> list[str]:
        """Names of the adapter's parameters, in the order of the layers' use."""
        flat, order = tree.flatten(self.shapes), self.network.forward_order()
        layers = [name.rpartition("/")[0] + "/" for name in order]
        return sorted(flat, key=lambda name: _first(layers, name))

    def keeping_activations(self) -> "Adapted":
        """`Model.keeping_activations`."""
        spec = self.network.keeping_activations().spec
        return dataclasses.replace(self, spec=spec)

    @functools.cached_property
    def _undrawn(self) -> Params:
        shapes = tree.flatten(self.network.shapes)
        kernels = [name for name in shapes if name.endswith("/kernel")]
        targets = select(kernels, self.adapter.targets, "adapter.targets")
        return tree.unflatten(
            {
                name.removesuffix("/kernel"): self.adapter.leaves(shapes[name].shape)
                for name in targets
            }
        )


def _first(layers: list[str], name: str) -> int:
    return next(i for i, layer in enumerate(layers) if name.startswith(layer))


def _leaf(draw: Draw, shape: tuple[int, ...], fan_in: int = 1) -> Undrawn:
    return Undrawn(jax.ShapeDtypeStruct(shape, np.float32), draw, fan_in)


def _matrix(kernel: Array) -> Array:
    """(..., in, out) -> (fan_in, out)."""
    return kernel.reshape(-1, kernel.shape[-1])


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _product(down: Array, up: Array, keep: Array | None) -> Array:
    """A diag(keep) B, (fan_in, out)."""
    return _matmul(_matrix(down), up if keep is None else keep[:, None] * up)


def _dot(a: Array, b: Array) -> Array:
    """The inner products (1, out) of the units of two matrices (fan_in, out)."""
    return jnp.sum(a * b, axis=0, keepdims=True)


ADAPTERS = {
    "none": NoAdapter,
    "lora": Lora,
    "dora": Dora,
    "sphere": Sphere,
    "normalized": Normalized,
    "rotation": Rotation,
}
