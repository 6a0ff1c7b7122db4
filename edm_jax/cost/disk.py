"""What a run will store, and whether it fits: asked before the first step."""

import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath

from edm_jax.cost import averages
from edm_jax.ema import container, snapshots
from edm_jax.files import human
from edm_jax.train import trainer
from edm_jax.train.config import RunConfig, TrainingConfig

_BLOCK = 4096  # bytes; a file takes whole blocks of the disk


class Estimate(NamedTuple):
    """Bytes on disk of one snapshot and one checkpoint, how many there are at most at
    one time, and the bytes of all other files together."""

    snapshot_bytes: int
    snapshots: int
    checkpoint_bytes: int
    checkpoints: int
    other_bytes: int

    @property
    def snapshots_total(self) -> int:
        return self.snapshot_bytes * self.snapshots

    @property
    def checkpoints_total(self) -> int:
        return self.checkpoint_bytes * self.checkpoints

    @property
    def total(self) -> int:
        """The peak, which is reached while the last checkpoint is written."""
        return self.snapshots_total + self.checkpoints_total + self.other_bytes

    def __str__(self) -> str:
        def several(count: int, what: str, size: int) -> str:
            return f"{count} {what}{'s' * (count != 1)} of {human(size)}"

        return (
            f"up to {human(self.total)} of disk "
            f"({several(self.snapshots, 'snapshot', self.snapshot_bytes)}, "
            f"{several(self.checkpoints, 'checkpoint', self.checkpoint_bytes)}, "
            f"{human(self.other_bytes)} of logs)"
        )


def estimate(config: RunConfig, stored_checkpoints: int = 0) -> Estimate:
    """What the run of a config stores at its peak; allocates nothing.

    Args:
        config: The run's config.
        stored_checkpoints: How many there are already, of a run that resumes.
    """
    params = snapshots.flatten(config.model.shapes)
    nimg = config.total_steps * config.optimizer.batch_size
    training, state = config.training, trainer.abstract_state(config)
    times = averages.most_times(config)
    if training.patience_mimg < math.inf:  # every probe may be the best so far
        times += math.ceil(nimg / (training.probe_mimg * 1e6))
    return Estimate(
        snapshot_bytes=_snapshot_bytes(params, config.ema.snapshot_dtype),
        snapshots=times * len(config.ema.profiles()),
        checkpoint_bytes=_checkpoint_bytes(jax.tree.leaves(state)),
        checkpoints=_checkpoints(training, nimg, stored_checkpoints),
        other_bytes=_other_bytes(config, nimg),
    )


def _snapshot_bytes(params: dict[str, Any], dtype: str) -> int:
    """A snapshot's weights, and its header: a line for every array, and checksums."""
    weights = sum(math.prod(x.shape) for x in params.values())
    header = 1500 + sum(len(name) + 75 for name in params)
    header += 20 * (weights // snapshots.CHUNK + 1)
    return _blocks(weights * snapshots.DTYPES[dtype].itemsize + header)


def _checkpoint_bytes(leaves: list[Any]) -> int:
    """A bound on what Orbax writes for a state, measured on states of 0.2 to 700 MB.

    Compression makes random weights 7% smaller. Orbax describes every array in 600 bytes
    of JSON. Its key-value store keeps arrays of up to 1 kB inside its index, and how
    often it rewrites that index depends on timing: about once in 90 arrays.
    """
    sizes = [math.prod(x.shape) * x.dtype.itemsize for x in leaves]
    count = len(sizes)
    index = 40 * count + 0.95 * sum(size for size in sizes if size <= 1024)
    files = 24 * _BLOCK
    return round(0.95 * sum(sizes) + 600 * count + index * count / 90 + files)


def _checkpoints(training: TrainingConfig, nimg: int, stored: int) -> int:
    """At most: those that are kept, and one being written before the oldest goes."""
    spaced = int(nimg // (training.keep_checkpoint_mimg * 1e6))
    written = math.ceil(nimg / (training.checkpoint_mimg * 1e6))
    return min(training.keep_checkpoints + spaced + 1, stored + written)


def _other_bytes(config: RunConfig, nimg: int) -> int:
    """metrics.jsonl, whose records have numbers for each part of the network, and what
    describes the run: config, provenance, status, evaluation, samples, log."""
    parts = 2 * len(config.network.channel_mult)
    lines = nimg / (config.training.log_mimg * 1e6)
    probes = nimg / (config.training.probe_mimg * 1e6) + 1
    records = lines * (1000 + 40 * parts) + probes * (200 + 150 * parts)
    return _blocks(records) + 12 * _BLOCK


def check(config: RunConfig, checkpoints: Path, snapshot_dir: epath.Path) -> str:
    """A sentence on what the run will store and what is free there.

    Counts what is there already, of a run that resumes. Raises ValueError if it cannot
    fit.
    """
    run = checkpoints.parent
    wanted = estimate(config, len(list(_entries(checkpoints))))
    totals = {run: wanted.checkpoints_total + wanted.other_bytes}
    stored = {run: _stored(checkpoints) + sum(map(_allocated, _entries(run)))}
    if container.is_local(snapshot_dir):
        place = Path(snapshot_dir)
        totals[place], stored[place] = wanted.snapshots_total, _stored(place)
    needed: dict[int, int] = {}  # by disk
    for place, total in totals.items():
        disk = _disk_of(place)
        needed[disk] = needed.get(disk, 0) + max(0, total - stored[place])
    free = {place: shutil.disk_usage(_existing(place)).free for place in totals}
    for place in totals:
        if needed[_disk_of(place)] > free[place]:
            raise ValueError(
                f"This run needs {wanted}, and {human(free[place])} are free at "
                f"{place}: make room, put the run or training.snapshot_dir elsewhere, "
                "raise training.snapshot_mimg, or set ema.snapshot_dtype=float16."
            )
    return f"Needs {wanted}; {human(min(free.values()))} are free."


def _blocks(count: float) -> int:
    return math.ceil(count / _BLOCK) * _BLOCK


def _entries(directory: Path) -> Iterable[Path]:
    return directory.iterdir() if directory.is_dir() else ()


def _stored(directory: Path) -> int:
    return sum(
        _allocated(Path(root, name))
        for root, folders, names in os.walk(directory)
        for name in (*folders, *names)
    )


def _allocated(path: Path) -> int:
    """Bytes of the disk that a file takes; of a directory, without what is in it."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:  # gone meanwhile
        return 0


def _disk_of(path: Path) -> int:
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())
