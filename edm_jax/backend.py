"""What makes XLA fast on the device at hand; benchmarks/ print what it gains."""

import contextlib
import contextvars
import ctypes
import functools
import math
import os
import platform
from collections.abc import Iterator

import jax
import jax.numpy as jnp

_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    "xla_cpu_prefer_vector_width": 512,
    # The first would drop the barriers of `apart` before anything is fused; the second
    # cuts every sum into windows, which is slow: `sum_over` does it where it matters.
    "xla_disable_hlo_passes": "cse_barrier_expander,tree_reduction_rewriter",
}


def prepare() -> None:
    """Makes a CPU's large buffers stay mapped from step to step; call it before JAX.

    XLA asks for its buffers anew at each step. From the main thread glibc then gives
    the same memory again, once told to keep what is freed; to the threads that JAX
    would dispatch from it gives fresh pages, of which each must be zeroed.
    """
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)  # never


@functools.cache
def compiler_options() -> dict[str, str | int] | None:
    """XLA options for `jax.jit` on the default backend; None where it takes none.

    An XLA that does not know an option refuses it, so they are tried first.
    """
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except Exception:  # noqa: BLE001  jaxlib's own error type is not public
        return None
    return dict(_CPU_OPTIONS)


_untuned = contextvars.ContextVar("untuned", default=False)


@contextlib.contextmanager
def untuned() -> Iterator[None]:
    """Within it functions are traced as they are written in the paper."""
    token = _untuned.set(True)
    try:
        yield
    finally:
        _untuned.reset(token)


def is_tuned() -> bool:
    """Whether functions are to be traced as XLA's CPU compiler likes them."""
    return compiler_options() is not None and not _untuned.get()


def apart(x: jax.Array) -> jax.Array:
    """x, and on a CPU a barrier: XLA fuses nothing across it, its gradient's neither.

    XLA's CPU compiler fuses elementwise functions into the transpositions before a
    convolution, where they are computed with strides, and again for each use.
    """
    return jax.lax.optimization_barrier(x) if is_tuned() else x


def sum_over(x: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
    """Sum over neighbouring axes, or all; on a CPU in two stages, which XLA vectorizes.

    Elsewhere a weight that is sharded is not to be reshaped.
    """
    axes = tuple(range(x.ndim)) if axes is None else axes
    stages = _two_stages(x.shape, axes)
    if stages is None:
        return jnp.sum(x, axis=axes)
    first = axes[0]
    return jnp.sum(apart(jnp.sum(x.reshape(stages), axis=first)), axis=first)


def spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x, with axes of size 1, broadcast to `shape`; its gradient is a `sum_over` them."""
    axes = tuple(i for i, size in enumerate(x.shape) if size < shape[i])
    stages = _two_stages(shape, axes)
    if stages is None:
        return jnp.broadcast_to(x, shape)
    first, last = axes[0], axes[-1] + 1
    x = x.reshape(*x.shape[:first], 1, 1, *x.shape[last:])
    second = *stages[:first], 1, *stages[first + 1 :]
    x = apart(jnp.broadcast_to(x, second))
    return jnp.broadcast_to(x, stages).reshape(shape)


def _two_stages(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[int, ...] | None:
    """`shape` with two axes for `axes`; None where the sum is best left to XLA."""
    rows = math.prod(shape[axis] for axis in axes)
    parts = math.gcd(rows, 32)
    if not is_tuned() or parts < 8:
        return None
    first, last = axes[0], axes[-1] + 1
    is_inner = first > 0 and last == len(shape)
    if first < 0 or is_inner or axes != tuple(range(first, last)):
        return None
    return *shape[:first], parts, rows // parts, *shape[last:]
