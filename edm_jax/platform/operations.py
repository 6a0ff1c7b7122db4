"""Operations with one meaning and a form for each platform, chosen on lowering.

Each is a linear JAX primitive, and its gradient is again one of them.
benchmarks/RESULTS.md lists the gains on a CPU.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from edm_jax.platform import cpu
from edm_jax.platform.options import compiler_options

Array = jax.Array
Function = TypeVar("Function", bound=Callable[..., Any])


def alone(function: Function) -> Function:
    """Keeps a CPU from fusing a function of arrays with its neighbours.

    XLA's CPU compiler fuses elementwise functions into the transpositions before a
    convolution, where it computes them with strides, and again for each use. A barrier
    around the function and its gradient prevents that.
    """

    @functools.wraps(function)
    def separate(*args: Any, **kwargs: Any) -> Any:
        inputs = (_apart.bind(x) if isinstance(x, Array) else x for x in args)
        return _apart.bind(function(*inputs, **kwargs))

    return separate  # type: ignore[return-value]


def total(x: Array, axes: tuple[int, ...] | None = None) -> Array:
    """Sums over `axes`, by default all; a CPU does so in two stages (`cpu.total`)."""
    axes = tuple(range(x.ndim)) if axes is None else axes
    return _total.bind(x, axes=tuple(sorted(axis % x.ndim for axis in axes)))


def broadcast_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Broadcasts axes of size 1 to `shape`, of equal rank; its gradient is a `total`."""
    return _broadcast_to.bind(x, shape=tuple(shape))


def _plain_total(x: Array, axes: tuple[int, ...]) -> Array:
    return jax.lax.reduce_sum(x, axes)


def _plain_broadcast_to(x: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(x, shape)


def _primitive(
    name: str, plain: Callable[..., Array], on_cpu: Callable[..., Array]
) -> Primitive:
    """A primitive that lowers to `on_cpu` for a CPU and to `plain` elsewhere."""
    primitive = Primitive(name)
    # Outside jit it is compiled on its own; its parameters are axes and shapes.
    compiled = jax.jit(primitive.bind, static_argnames=("axes", "shape"))
    primitive.def_impl(compiled)

    def abstract(x: Any, **params: Any) -> Any:
        out = jax.eval_shape(
            functools.partial(plain, **params), jax.ShapeDtypeStruct(x.shape, x.dtype)
        )
        return x.update(shape=out.shape, dtype=out.dtype, weak_type=False)

    def cpu_form(x: Array, **params: Any) -> Array:
        # Without the matching compiler options these forms are slow.
        tuned = compiler_options("cpu") is not None
        return (on_cpu if tuned else plain)(x, **params)

    primitive.def_abstract_eval(abstract)
    lower = functools.partial(mlir.lower_fun, multiple_results=False)
    mlir.register_lowering(primitive, lower(plain))
    mlir.register_lowering(primitive, lower(cpu_form), platform="cpu")
    return primitive


_apart = _primitive("apart", lambda x: x, jax.lax.optimization_barrier)
_total = _primitive("total", _plain_total, cpu.total)
_broadcast_to = _primitive("broadcast_to", _plain_broadcast_to, cpu.broadcast_to)


def _transpose_total(ct: Array, x: Any, axes: tuple[int, ...]) -> list[Array]:
    return [broadcast_to(jnp.expand_dims(ct, axes), x.aval.shape)]


def _transpose_broadcast_to(ct: Array, x: Any, shape: tuple[int, ...]) -> list[Array]:
    axes = tuple(i for i, size in enumerate(x.aval.shape) if size < shape[i])
    return [jnp.expand_dims(total(ct, axes), axes)]


def _batch_apart(args: Any, dims: Any) -> tuple[Array, int]:
    return _apart.bind(args[0]), dims[0]


def _batch_total(args: Any, dims: Any, axes: tuple[int, ...]) -> tuple[Array, int]:
    x = jnp.moveaxis(args[0], dims[0], 0)
    return total(x, tuple(axis + 1 for axis in axes)), 0


def _batch_broadcast_to(
    args: Any, dims: Any, shape: tuple[int, ...]
) -> tuple[Array, int]:
    x = jnp.moveaxis(args[0], dims[0], 0)
    return broadcast_to(x, (len(x), *shape)), 0


ad.deflinear2(_apart, lambda ct, x: [_apart.bind(ct)])
ad.deflinear2(_total, _transpose_total)
ad.deflinear2(_broadcast_to, _transpose_broadcast_to)
batching.primitive_batchers[_apart] = _batch_apart
batching.primitive_batchers[_total] = _batch_total
batching.primitive_batchers[_broadcast_to] = _batch_broadcast_to
