"""What a run will store, and whether it fits: asked before the first step."""

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from edm_jax import networks, optim, resolve, train_step, trainer
from edm_jax.ema import container, snapshots

CHECKPOINTS = 3  # two that are kept, one being written


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
    params = networks.abstract_params(resolve.resolve_network(config))
    profiles = trainer.tracked_profiles(config.ema)
    state = jax.eval_shape(
        lambda p: train_step.init_state(
            p, optim.make_optimizer(config.optimizer), profiles, 0
        ),
        params,
    )
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
        checkpoints=CHECKPOINTS,
    )


def check(config: Any, checkpoints: Path, snapshot_dir: epath.Path) -> str:
    """A sentence on what the run will store and what is free there.

    Counts what is there already, of a run that goes on. Raises ValueError where it
    cannot fit.
    """
    wanted = estimate(config)
    local = container.is_local(snapshot_dir)
    needed = wanted.checkpoints_total + local * wanted.snapshots_total
    stored = _stored(checkpoints) + (_stored(Path(snapshot_dir)) if local else 0)
    free = shutil.disk_usage(_existing(checkpoints)).free
    if needed - stored > free:
        raise ValueError(
            f"This run stores {wanted}, and {human(free)} are free at {checkpoints}: "
            "make room, put the run or training.snapshot_dir elsewhere, raise "
            "training.snapshot_mimg, or set ema.snapshot_dtype=float16."
        )
    return f"Stores {wanted}; {human(free)} are free."


def human(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _stored(directory: Path) -> int:
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())
