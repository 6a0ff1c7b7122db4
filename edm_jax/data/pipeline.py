"""From a data set to normalised NumPy batches that any step can start from.

TFDS and Grain are imported when first used, so that this module can be imported where
they are not installed.
"""

import concurrent.futures
import functools
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from absl import flags

from edm_jax.data import selection
from edm_jax.data.config import DataConfig
from edm_jax.data.order import batch_rows
from edm_jax.data.selection import PART, Selection

_log = logging.getLogger(__name__)

# The standard deviation that the network's preconditioning expects of its data.
SIGMA_DATA = 0.5
# A split that decodes to less than this is decoded once and served from memory:
# decoding costs about 100 µs per example, a row in memory about 1 µs.
MEMORY_LIMIT_BYTES = 256 * 2**20
# Batches made ahead of the training loop, which bounds the memory they take.
PREFETCH_BATCHES = 4


def normalize(data: DataConfig, raw: np.ndarray) -> np.ndarray:
    """Returns `raw` (..., C) as float32 of mean 0 and standard deviation sigma_data.

    sigma_data = 0.5, per channel: the scale that the preconditioning (Eq. 4-8) assumes.
    """
    mean, std = _statistics(data, raw.shape[-1])
    return (raw.astype(np.float32) - mean) * (SIGMA_DATA / std)


def denormalize(data: DataConfig, image: np.ndarray) -> np.ndarray:
    """Returns `image` (..., C) in the units of the stored data, as float32.

    The inverse of `normalize`; values are neither rounded nor clipped.
    """
    mean, std = _statistics(data, image.shape[-1])
    return image.astype(np.float32) * (std / SIGMA_DATA) + mean


def train_batches(
    data: DataConfig,
    *,
    batch_size: int,
    seed: int,
    num_classes: int | None = None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> "Batches":
    """Returns this process's share of the endless training batches from `start_step`.

    Every epoch visits every example once, or as often as `data.sampling` says, in an
    order of its own drawn from `seed`; batches run across the ends of epochs. The batch
    of a step depends on the step, `seed` and `batch_size` only: no earlier batch is
    replayed to resume, and the processes' shares always make up the same global batch.

    Args:
      data: the config's data section.
      batch_size: images of the global batch.
      seed: of the order.
      num_classes: of the network; labels are below it. 0 reads none and gives zeros.
      start_step: the steps already taken.
      process_index: which share of the batch.
      process_count: into how many the batch is divided.

    Returns: dicts of 'image' (n, H, W, C) float32, normalised; 'label' (n,) int32;
      'index' (n,) int32, the example's place in the global batch, where
      n = batch_size / process_count. What was skipped is in their `skipped`.

    Raises:
      ValueError: batch_size is no multiple of process_count, or the data do not suit.
      FileNotFoundError: the data set has not been prepared.
    """
    if batch_size % process_count:
        raise ValueError(
            f"a global batch of {batch_size} images cannot be shared equally by "
            f"{process_count} processes; choose a multiple of {process_count}."
        )
    import grain

    source = _Source(data, data.train_split, num_classes, training=True)
    share = np.arange(process_index, batch_size, process_count, dtype=np.int32)
    make_batch = functools.partial(_make_batch, source, share, batch_size, seed)
    # One element of this data set is a whole batch: Grain's shuffle and batch spend
    # 60 µs on each example, which small images cannot afford.
    options = grain.ReadOptions(
        num_threads=PREFETCH_BATCHES, prefetch_buffer_size=PREFETCH_BATCHES
    )
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    batches = steps.map(make_batch).to_iter_dataset(options)
    if data.num_workers:
        flags.FLAGS.mark_as_parsed()  # Grain asks for its own, which no one here sets
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(data.num_workers, per_worker_buffer_size=2)
        )
    return Batches(iter(batches))


def _make_batch(
    source: "_Source", share: np.ndarray, batch_size: int, seed: int, step: int
) -> dict[str, Any]:
    """This process's share of a step's batch, and what the source has skipped so far."""
    rows = batch_rows(step, batch_size, seed, len(source), source.strata)
    uses = step * batch_size + share.astype(np.uint64)
    keys = np.stack([np.full_like(uses, seed), uses], axis=1)
    batch = source.read(rows[share], keys)
    return {**batch, "index": share.copy(), "skipped": dict(source.skipped)}


class Batches:
    """Batches one after another.

    `skipped`: {row: why} of the bad examples met so far, each logged when it was.
    """

    def __init__(self, batches: Iterator[dict[str, Any]]):
        self._batches = batches
        self.skipped: dict[int, str] = {}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        for row, reason in batch.pop("skipped").items():
            if row not in self.skipped:
                self.skipped[row] = reason
                _log.warning("Skipped a bad example: %s", reason)
        return batch


def load_split(
    data: DataConfig,
    split: str,
    limit: int | None = None,
    num_classes: int | None = None,
) -> dict[str, np.ndarray]:
    """Returns a whole split, or `limit` of its examples, always in the same order.

    Those are the first; of data that lie in order, such as class by class, they are
    spread evenly.

    Args:
      data: the config's data section.
      split: the split's name, or a slice of it.
      limit: how many examples at most.
      num_classes: as in `train_batches`.

    Returns: 'image' (N, H, W, C) float32, normalised, and 'label' (N,) int32.

    Raises:
      ValueError: the data do not suit.
      FileNotFoundError: the data set has not been prepared.
    """
    source = _Source(data, split, num_classes)
    size = len(source) if limit is None else min(limit, len(source))
    rows = np.arange(size)
    if source.is_sorted:
        rows = rows * len(source) // max(size, 1)
    found = source.read(rows)
    good = [row not in source.skipped for row in rows.tolist()]
    return {name: array[good] for name, array in found.items()}


class _Source:
    """A split, normalised; decoded once where it fits in memory."""

    def __init__(
        self,
        data: DataConfig,
        split: str,
        num_classes: int | None,
        training: bool = False,
        selected: Selection | None = None,
    ):
        self._data = data
        self._split, selected = selection.open_rows(
            data, split, num_classes, training, selected
        )
        self.strata = selected.strata
        self._opened_as = data, split, num_classes, training, selected
        _statistics(data, self._split.shape[-1])
        # {row: why} of examples that another takes the place of; -1: of those that are
        # no rows at all.
        self.skipped = dict.fromkeys(
            [-1], "; ".join(getattr(self._split, "skipped", []))
        )
        if not self.skipped[-1]:
            self.skipped.clear()
        self._instead: dict[int, int] = {}
        self._decoded = None
        fits = len(self) * self._split.image_bytes <= MEMORY_LIMIT_BYTES
        if fits and not getattr(self._split, "draws", False):
            self._decoded = self._read_all()

    def __reduce__(self) -> tuple:
        # Another process opens the data itself, and reads no labels again.
        return _Source, self._opened_as

    def __len__(self) -> int:
        return len(self._split)

    @property
    def is_sorted(self) -> bool:
        """Whether the first examples may be of some classes only."""
        return getattr(self._split, "is_sorted", False)

    def read(
        self, rows: np.ndarray, keys: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Returns images (n, H, W, C), normalised, and labels (n,) of `rows` (n,)."""
        if self._decoded is None:
            raw, label = self._read(rows, keys)
        else:
            raw, label = (array[rows] for array in self._decoded)
        return {"image": normalize(self._data, raw), "label": label}

    def _read_all(self) -> list[np.ndarray]:
        parts = np.split(np.arange(len(self)), range(PART, len(self), PART))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            found = threads.map(lambda rows: self._read(rows, None), parts)
            return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]

    def _read(
        self, rows: np.ndarray, keys: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._instead:
            rows = np.array([self._instead.get(row, row) for row in rows.tolist()])
        try:
            return self._split.read(rows, keys)
        except ValueError:
            if self._data.on_bad == "stop":
                raise
        found = [
            self._read_good(row, None if keys is None else keys[i : i + 1])
            for i, row in enumerate(rows.tolist())
        ]
        raw, label = zip(*found, strict=True)
        return np.concatenate(raw), np.concatenate(label)

    def _read_good(
        self, row: int, key: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """A row, or the next good one: the same whoever reads it."""
        for place in range(row, row + len(self)):
            tried = place % len(self)
            if tried in self.skipped:
                continue
            try:
                found = self._split.read(np.array([tried]), key)
            except ValueError as error:
                self.skipped[tried] = str(error)
            else:
                self._instead[row] = tried
                return found
        raise ValueError(f"No example is good; the last: {self.skipped[row]}")


def _statistics(data: DataConfig, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and standard deviation (channels,) of the stored images."""
    mean = np.asarray(data.raw_mean, dtype=np.float32)
    std = np.asarray(data.raw_std, dtype=np.float32)
    if mean.shape != (channels,) or std.shape != (channels,):
        raise ValueError(
            f"data.raw_mean {data.raw_mean} and data.raw_std {data.raw_std} must give "
            f"one number for each of the images' {channels} channels."
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError(
            f"data.raw_mean {data.raw_mean} must be finite, and data.raw_std "
            f"{data.raw_std} finite and positive."
        )
    return mean, std
