"""How operations are compiled: the only place that depends on the platform.

The layers say what to compute. The operations here compute the same as their plain
counterparts, but have a second form for XLA's CPU compiler. The choice is made on
lowering, so it depends on the platform that a program is compiled for, not on the one
where it is traced.
"""

from edm_jax.platform.accelerators import (
    INSTALL,
    keep_plugin_errors,
    plugin_error,
    warn_if_idle,
)
from edm_jax.platform.cpu import convolve_upsampled, prepare
from edm_jax.platform.operations import alone, broadcast_to, total
from edm_jax.platform.options import compiler_options

__all__ = [
    "INSTALL",
    "alone",
    "broadcast_to",
    "compiler_options",
    "convolve_upsampled",
    "keep_plugin_errors",
    "plugin_error",
    "prepare",
    "total",
    "warn_if_idle",
]
