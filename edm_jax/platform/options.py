"""XLA's options for each platform."""

import functools

import jax

_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    "xla_cpu_prefer_vector_width": 512,
    # The first pass would drop the barriers of `alone` before fusion. The second splits
    # every sum into windows, which is slow; `total` splits only the sums that matter.
    "xla_disable_hlo_passes": "cse_barrier_expander,tree_reduction_rewriter",
}


@functools.cache
def compiler_options(platform: str) -> dict[str, str | int] | None:
    """XLA options for `jax.jit`.

    XLA refuses options that it does not know, so they are tried once.

    Args:
      platform: the platform that the program is compiled for, such as "cpu".

    Returns:
      The `compiler_options` of `jax.jit`; None if XLA's defaults are best.
    """
    if platform != "cpu":
        return None
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except Exception:  # noqa: BLE001  jaxlib's own error type is not public
        return None
    return dict(_CPU_OPTIONS)
