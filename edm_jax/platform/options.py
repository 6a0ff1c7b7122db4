"""XLA's options for each platform."""

import functools

import jax

_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    "xla_cpu_prefer_vector_width": 512,
    # The first would drop the barriers of `alone` before anything is fused; the second
    # splits every sum into windows, which is slow: `total` splits those that matter.
    "xla_disable_hlo_passes": "cse_barrier_expander,tree_reduction_rewriter",
}


@functools.cache
def compiler_options(platform: str) -> dict[str, str | int] | None:
    """XLA options for `jax.jit`.

    An XLA that does not know an option refuses it, so they are tried once.

    Args:
      platform: of the devices that the program is compiled for, such as "cpu".

    Returns:
      What `jax.jit` takes as `compiler_options`; None where XLA's defaults are best.
    """
    if platform != "cpu":
        return None
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except Exception:  # noqa: BLE001  jaxlib's own error type is not public
        return None
    return dict(_CPU_OPTIONS)
