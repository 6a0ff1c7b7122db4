"""Forms of operations that are fast on XLA's CPU back-end, and settings for them."""

import ctypes
import math
import os
import platform
from collections.abc import Callable

import jax
import jax.numpy as jnp

from edm_jax.platform import accelerators

Array = jax.Array


def prepare() -> None:
    """Keeps a CPU's large buffers mapped between steps; call it before using JAX.

    XLA allocates its buffers again at each step. glibc reuses freed memory in the main
    thread once it is told to keep it, but gives fresh pages, which must be zeroed, to the
    threads from which JAX would dispatch. With an accelerator nothing changes, so that
    memory freed after each snapshot returns to the system.
    """
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if accelerators.uses_cpu_only() and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)  # never


def total(x: Array, axes: tuple[int, ...]) -> Array:
    """Sums over adjacent axes in two stages, each of which XLA vectorizes."""
    stages = _two_stages(x.shape, axes)
    if stages is None:
        return jax.lax.reduce_sum(x, axes)
    first = axes[0]
    partial = jax.lax.reduce_sum(x.reshape(stages), (first,))
    return jax.lax.reduce_sum(jax.lax.optimization_barrier(partial), (first,))


def broadcast_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The transpose of `total`, in the same two stages."""
    axes = tuple(i for i, size in enumerate(x.shape) if size < shape[i])
    stages = _two_stages(shape, axes)
    if stages is None:
        return jnp.broadcast_to(x, shape)
    first, last = axes[0], axes[-1] + 1
    x = x.reshape(*x.shape[:first], 1, 1, *x.shape[last:])
    second = *stages[:first], 1, *stages[first + 1 :]
    x = jax.lax.optimization_barrier(jnp.broadcast_to(x, second))
    return jnp.broadcast_to(x, stages).reshape(shape)


def _two_stages(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[int, ...] | None:
    """`shape` with two axes in place of `axes`; None if XLA's own sum is best."""
    rows = math.prod(shape[axis] for axis in axes)
    parts = math.gcd(rows, 32)
    if parts < 8:
        return None
    first, last = axes[0], axes[-1] + 1
    is_inner = first > 0 and last == len(shape)
    if is_inner or axes != tuple(range(first, last)):
        return None
    return *shape[:first], parts, rows // parts, *shape[last:]


Convolve = Callable[..., Array]  # (x, kernel, padding=...)


def convolve_upsampled(
    x: Array, kernel: Array, convolve: Convolve, upsample: Callable[[Array], Array]
) -> Array:
    """convolve(upsample(x), kernel) with 3x3 taps; a CPU computes 4/9 of the products.

    Args:
      x: (N, H, W, C).
      kernel: (3, 3, C, out).
      convolve: takes (x, kernel), and optionally padding as
        ((top, bottom), (left, right)) instead of "SAME".
      upsample: repeats each pixel as a 2x2 square.

    Returns:
      (N, 2H, 2W, out).
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: merged_taps(x, kernel, convolve),
        default=lambda x, kernel: convolve(upsample(x), kernel),
    )


def merged_taps(x: Array, kernel: Array, convolve: Convolve) -> Array:
    """A 3x3 convolution of upsampled x as four 2x2 convolutions of x.

    An output pixel depends on 2x2 pixels of x, chosen by its parity. Taps that multiply
    the same pixel are added first.
    """

    def merged(taps: Array, axis: int, parity: int) -> Array:
        first, middle, last = jnp.split(taps, 3, axis)
        pair = [first + middle, last] if parity else [first, middle + last]
        return jnp.concatenate(pair, axis)

    def pixels(i: int, j: int) -> Array:  # of row parity i and column parity j
        taps = merged(merged(kernel, 0, i), 1, j)
        return convolve(x, taps, padding=((1 - i, i), (1 - j, j)))

    rows = [jnp.stack([pixels(i, 0), pixels(i, 1)], axis=3) for i in (0, 1)]
    n, h, w, _ = x.shape
    return jnp.stack(rows, axis=2).reshape(n, 2 * h, 2 * w, -1)
