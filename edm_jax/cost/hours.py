"""Chip-hours of a run, by its arithmetic and what chips reach of their peak."""

import functools

from edm_jax.cost.chips import CHIPS
from edm_jax.diffusion import flops
from edm_jax.fields import one_of
from edm_jax.models.build import build
from edm_jax.train.config import RunConfig

# By the names that back-ends and users call them, as JAX does.
_KINDS = {
    "v4": "TPU v4",
    "v5e": "TPU v5e",
    "v5p": "TPU v5p",
    "v6e": "TPU v6e",
    "tpu7x": "TPU7x",
    "V100": "Tesla V100-SXM2-16GB",
    "A10G": "A10G",
    "A100": "A100-SXM4-80GB",
    "L4": "L4",
    "L40S": "L40S",
    "H100": "H100 80GB HBM3",
    "H200": "H200",
    "B200": "B200",
}


def check_chip(name: str) -> None:
    """Raises ValueError for a name that is none."""
    if name not in _KINDS:
        raise ValueError(f"--chip={name!r}, {one_of(name, _KINDS)}")


def known(name: str) -> str:
    """The name, or '' for a chip whose peak is not known here."""
    return name if name in _KINDS else ""


def utilization(chip: str) -> float:
    """Share of the peak that a step in half precision is assumed to reach.

    An H100 reached 0.40 at XS and 0.42 at S; of TPUs it is a guess.
    """
    return 0.5 if chip in CHIPS else 0.4


def chip_hours(config: RunConfig, chip: str) -> float | None:
    """Hours of one chip for a whole run; None where its peak is not stated.

    As of a step that fills the chip: small networks and batches take longer.
    """
    peak = flops.peak_flops(_KINDS[chip], config.network.compute_dtype)
    if peak is None:
        return None
    peak *= 2 if chip == "tpu7x" else 1  # JAX counts two devices there
    nimg = config.total_steps * config.optimizer.batch_size
    net, told = config.network, config.data.augment.labels
    each = _train_flops(net, config.loss.uncertainty, told)
    return nimg * each / (utilization(chip) * peak) / 3600


@functools.cache
def _train_flops(*network) -> float:
    net, uncertainty, told = network
    return flops.train_flops(build(net, uncertainty, augment_labels=told))
