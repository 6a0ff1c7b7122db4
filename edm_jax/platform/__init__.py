"""How the mathematics is compiled: the one place that knows about platforms.

The layers say what is computed. The operations of this room mean exactly what their
plain counterparts mean, and have a second form for XLA's CPU compiler. Lowering chooses
between the two, so the platform that a program is compiled for decides, not the one it
is traced on.
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
