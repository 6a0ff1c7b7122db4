"""The devices that share a batch; each holds the whole weights."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from edm_jax import platform


class Devices:
    """Devices of this process, all local ones by default."""

    def __init__(self, devices: Sequence[Any] | None = None):
        devices = devices or jax.local_devices()
        mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
        self._whole = NamedSharding(mesh, PartitionSpec())
        self.rows = NamedSharding(mesh, PartitionSpec("data"))
        self.platform: str = devices[0].platform
        platform.warn_if_idle(self.platform)

    def batch_size(self, at_least: int) -> int:
        """The next multiple of the number of devices."""
        return -(-at_least // self.rows.mesh.size) * self.rows.mesh.size

    def place(self, tree: Any) -> Any:
        """Puts weights and numbers on all devices; moves nothing that is there
        already."""
        return jax.device_put(tree, self._whole)

    def spread(self, *rows: Any) -> Any:
        """Gives each device its share of the rows of a batch's arrays (N, ...)."""
        return jax.device_put(rows, self.rows)
