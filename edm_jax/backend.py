"""What makes XLA fast on the device at hand; benchmarks/ print what it gains."""

import ctypes
import functools
import math
import os
import platform

import jax
import jax.numpy as jnp

_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    "xla_cpu_prefer_vector_width": 512,
    # This pass would drop the barriers of `apart` before anything is fused.
    "xla_disable_hlo_passes": "cse_barrier_expander",
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


def apart(x: jax.Array) -> jax.Array:
    """x, and on a CPU a barrier: XLA fuses nothing across it, its gradient's neither.

    XLA's CPU compiler fuses elementwise functions into the transpositions before a
    convolution, where they are computed with strides, and again for each use.
    """
    return jax.lax.optimization_barrier(x) if compiler_options() else x


def sum_leading(x: jax.Array, axes: int) -> jax.Array:
    """Sum over the first axes; on a CPU in two stages, to spare XLA window reductions.

    Those are slow. Elsewhere a weight that is sharded is not to be reshaped.
    """
    rows, shape = math.prod(x.shape[:axes]), x.shape[axes:]
    if not compiler_options() or rows % 32:
        return jnp.sum(x, axis=tuple(range(axes)))
    return jnp.sum(apart(jnp.sum(x.reshape(32, -1, *shape), axis=0)), axis=0)
