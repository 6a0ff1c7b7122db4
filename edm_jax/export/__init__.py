"""Averaged weights for use elsewhere: as plain safetensors, in PyTorch, as StableHLO.

And back: `read` and `restore` make a snapshot with the bits of the exported one.
"""

from edm_jax.export.bundle import (
    Bundle,
    Restored,
    bundle,
    read,
    restore,
    write_state_dict,
    write_weights,
)
from edm_jax.export.pytorch import module, write_pytorch
from edm_jax.export.stablehlo import PLATFORMS, exported, write_stablehlo

__all__ = [
    "PLATFORMS",
    "Bundle",
    "Restored",
    "bundle",
    "exported",
    "module",
    "read",
    "restore",
    "write_pytorch",
    "write_stablehlo",
    "write_state_dict",
    "write_weights",
]
