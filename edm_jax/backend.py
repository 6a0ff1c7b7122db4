"""What makes XLA fast on the device at hand."""

import ctypes
import functools
import platform

import jax

# What they gain is printed by benchmarks/train_step.py.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    "xla_cpu_prefer_vector_width": 512,
}


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


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory: XLA's large CPU buffers are then not re-faulted."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
