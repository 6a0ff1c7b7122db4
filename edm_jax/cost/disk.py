"""What a run will store, and whether it fits: asked before the first step."""

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from edm_jax.ema import container, snapshots
from edm_jax.models import ops, unet
from edm_jax.train import trainer


class Estimate(NamedTuple):
    """Bytes of one snapshot and one checkpoint, and how many of each at most."""

    snapshot_bytes: int
    snapshots: int
    checkpoint_bytes: int
    checkpoints: int

    @property
    def snapshots_total(self) -> int:
        return self.snapshot_bytes * self.snapshots

    @property
    def checkpoints_total(self) -> int:
        return self.checkpoint_bytes * self.checkpoints

    def __str__(self) -> str:
        return (
            f"{self.snapshots} snapshots of {human(self.snapshot_bytes)} "
            f"({human(self.snapshots_total)} in all) and {self.checkpoints} checkpoints "
            f"of {human(self.checkpoint_bytes)}"
        )


def estimate(config: Any) -> Estimate:
    """What the run of a config stores; allocates nothing."""
    params = unet.abstract_params(ops.resolve_network(config))
    profiles = trainer.tracked_profiles(config.ema)
    state = trainer.abstract_state(config)
    nimg = trainer.total_steps(config) * config.optimizer.batch_size
    times = math.ceil(nimg / (config.training.snapshot_mimg * 1e6))
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    itemsize = snapshots.DTYPES[config.ema.snapshot_dtype].itemsize
    return Estimate(
        snapshot_bytes=weights * itemsize,
        snapshots=times * len(profiles),
        checkpoint_bytes=sum(
            math.prod(x.shape) * jnp.dtype(x.dtype).itemsize
            for x in jax.tree.leaves(state)
        ),
        checkpoints=_checkpoints(config, nimg),
    )


def _checkpoints(config: Any, nimg: int) -> int:
    """At most: those that are kept, and one being written."""
    training = config.training
    spaced = nimg // (training.keep_checkpoint_mimg * 1e6)
    written = math.ceil(nimg / (training.checkpoint_mimg * 1e6))
    return 1 + min(training.keep_checkpoints + int(spaced), written)


def check(config: Any, checkpoints: Path, snapshot_dir: epath.Path) -> str:
    """A sentence on what the run will store and what is free there.

    Counts what is there already, of a run that goes on. Raises ValueError where it
    cannot fit.
    """
    wanted = estimate(config)
    totals = {checkpoints: wanted.checkpoints_total}
    if container.is_local(snapshot_dir):
        totals[Path(snapshot_dir)] = wanted.snapshots_total
    needed: dict[int, int] = {}  # by disk
    for place, total in totals.items():
        disk = _disk_of(place)
        needed[disk] = needed.get(disk, 0) + total - _stored(place)
    free = {place: shutil.disk_usage(_existing(place)).free for place in totals}
    for place in totals:
        if needed[_disk_of(place)] > free[place]:
            raise ValueError(
                f"This run stores {wanted}, and {human(free[place])} are free at "
                f"{place}: make room, put the run or training.snapshot_dir elsewhere, "
                "raise training.snapshot_mimg, or set ema.snapshot_dtype=float16."
            )
    return f"Stores {wanted}; {human(min(free.values()))} are free."


def human(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _stored(directory: Path) -> int:
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


def _disk_of(path: Path) -> int:
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())
