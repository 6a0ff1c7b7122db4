"""From a TFDS data set to normalised NumPy batches that any step can start from.

TFDS and Grain are imported when first used, so that this module can be imported where
they are not installed. Nothing here needs TensorFlow.
"""

import functools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

# The standard deviation that the network's preconditioning expects of its data.
SIGMA_DATA = 0.5
# A split that decodes to less than this is decoded once and served from memory:
# decoding costs about 100 µs per example, a row in memory about 1 µs.
MEMORY_LIMIT_BYTES = 256 * 2**20
# Batches made ahead of the training loop, which bounds the memory they take.
PREFETCH_BATCHES = 4


class DataConfig(Protocol):
    """The `data` section of a config: which data set, where it lies, its statistics.

    `name` is TFDS's ('digits', 'mnist:3.0.1'); `data_dir` '' means TFDS's own default,
    which honours TFDS_DATA_DIR; the splits may be slices ('train[:10%]'); `raw_mean`
    and `raw_std` hold one number per channel, in the units of the stored images.
    """

    name: str
    data_dir: str
    train_split: str
    heldout_split: str
    raw_mean: Sequence[float]
    raw_std: Sequence[float]


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


def prepare(data: DataConfig) -> None:
    """Builds the data set where `data.data_dir` says, unless it is already there.

    TFDS writes to a directory of its own and renames it at the end, so several
    processes may call this at once: all but the first to finish discard their copy.

    Raises:
      ValueError: TFDS knows no data set of that name.
      FileNotFoundError: the data set is not there and could not be built.
    """
    builder = _builder(data)
    if builder.data_path.exists():
        return
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    # Google's bucket holds TFRecord files only, which need TensorFlow.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(file_format="array_record", download_config=config)
    # Whatever the builder of an arbitrary data set raises, and the rename's own error.
    except Exception as error:
        if builder.data_path.exists():
            return
        raise FileNotFoundError(
            f"data set {data.name!r} is not at {builder.data_path} and could not be "
            f"built here ({type(error).__name__}: {error}); run TFDS's "
            "download_and_prepare(file_format='array_record') where it can be, and "
            "set data_dir to the result."
        ) from error


def fingerprint(data: DataConfig) -> dict[str, Any]:
    """What tells one prepared data set from another: version, sizes, bytes."""
    info = _builder(data).info
    sizes = {name: split.num_examples for name, split in sorted(info.splits.items())}
    return {"name": info.full_name, "examples": sizes, "bytes": info.dataset_size}


def train_batches(
    data: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns this process's share of the endless training batches from `start_step`.

    Every epoch visits every example once, in an order of its own drawn from `seed`;
    batches run across the ends of epochs. The batch of a step depends on the step,
    `seed` and `batch_size` only: no earlier batch is replayed to resume, and the
    processes' shares always make up the same global batch.

    Returns: dicts of 'image' (n, H, W, C) float32, normalised; 'label' (n,) int32;
      'index' (n,) int32, the example's place in the global batch, where
      n = batch_size / process_count.

    Raises:
      ValueError: batch_size does not divide by process_count, or the data set has no
        such split or no images of one size with labels.
      FileNotFoundError: the data set has not been prepared.
    """
    if batch_size % process_count:
        raise ValueError(
            f"a global batch of {batch_size} images cannot be shared equally by "
            f"{process_count} processes; choose a multiple of {process_count}."
        )
    import grain

    source = _Split(data, data.train_split)
    share = np.arange(process_index, batch_size, process_count, dtype=np.int32)

    def make_batch(step: int) -> dict[str, np.ndarray]:
        rows = _batch_rows(step, batch_size, seed, len(source))
        return {**source.read(rows[share]), "index": share.copy()}

    # One element of this data set is a whole batch: Grain's shuffle and batch spend
    # 60 µs on each example, which small images cannot afford.
    options = grain.ReadOptions(
        num_threads=PREFETCH_BATCHES, prefetch_buffer_size=PREFETCH_BATCHES
    )
    steps = grain.MapDataset.range(start_step, sys.maxsize)
    return iter(steps.map(make_batch).to_iter_dataset(options))


def load_split(
    data: DataConfig, split: str, limit: int | None = None
) -> dict[str, np.ndarray]:
    """Returns a whole split, or its first `limit` examples, always in the same order.

    Returns: 'image' (N, H, W, C) float32, normalised, and 'label' (N,) int32.

    Raises:
      ValueError: the data set has no such split or no images of one size with labels.
      FileNotFoundError: the data set has not been prepared.
    """
    source = _Split(data, split)
    size = len(source) if limit is None else min(limit, len(source))
    return source.read(np.arange(size))


class _Split:
    """One split of a prepared data set, read by row."""

    def __init__(self, data: DataConfig, split: str):
        self._data = data
        self._source, bytes_per_image = _open(data, split)
        self._decoded = None
        if len(self) * bytes_per_image <= MEMORY_LIMIT_BYTES:
            self._decoded = self._decode(np.arange(len(self)))

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns images (n, H, W, C), normalised, and labels (n,) of `rows` (n,)."""
        if self._decoded is None:
            raw, label = self._decode(rows)
        else:
            raw, label = (array[rows] for array in self._decoded)
        return {"image": normalize(self._data, raw), "label": label}

    def _decode(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            examples = self._source.__getitems__(rows.tolist())
        except Exception as error:  # whatever a reader makes of a file that is gone
            raise OSError(
                f"data set {self._data.name!r} can no longer be read "
                f"({type(error).__name__}: {error}); put it back, and the same command "
                "goes on."
            ) from error
        raw = np.stack([example["image"] for example in examples])
        label = np.array([example["label"] for example in examples], dtype=np.int32)
        return raw, label


def _batch_rows(step: int, batch_size: int, seed: int, size: int) -> np.ndarray:
    """Returns the rows (batch_size,) of the global batch that `step` trains on."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(places, size)
    return np.concatenate(
        [
            _epoch_order(seed, epoch, size)[places[epochs == epoch]]
            for epoch in np.unique(epochs).tolist()
        ]
    )


# A pure function, remembered because consecutive batches share an epoch.
@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns the order (size,) in which `epoch` visits the rows."""
    # NumPy promises the stream of a bit generator for ever, that of shuffle it does
    # not: a resumed run must find its order again under a later NumPy.
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch)))
    return np.argsort(bits.random_raw(size), kind="stable")


def _builder(data: DataConfig) -> Any:
    """Returns the TFDS builder of the data set, prepared or not."""
    import tensorflow_datasets as tfds

    from edm_jax.data import digits, photos  # noqa: F401  (registers them with TFDS)

    try:
        return tfds.builder(data.name, data_dir=data.data_dir or None)
    except tfds.core.DatasetNotFoundError:
        # TFDS's own message lists all of its several hundred data sets.
        raise ValueError(
            f"TFDS knows no data set {data.name!r} and none is prepared in "
            f"{data.data_dir or 'its default directory'}; check data.name and "
            "data.data_dir."
        ) from None


def _open(data: DataConfig, split: str) -> tuple[Any, int]:
    """Returns a prepared split as TFDS's data source, and its bytes per image."""
    builder = _builder(data)
    if not builder.data_path.exists():
        raise FileNotFoundError(
            f"data set {data.name!r} is not at {builder.data_path}; call "
            "edm_jax.data.prepare, or run TFDS's download_and_prepare("
            "file_format='array_record'), or set data_dir to where it is."
        )
    features = builder.info.features
    shape = features["image"].shape if {"image", "label"} <= set(features) else ()
    if len(shape) != 3 or None in shape:
        raise ValueError(
            f"data set {data.name!r} must have the features 'image', of one size "
            f"(height, width, channels), and 'label'; it has {dict(features)}."
        )
    _statistics(data, shape[-1])
    try:
        source = builder.as_data_source(split)
    except NotImplementedError:
        raise ValueError(
            f"data set {data.name!r} at {builder.data_path} is stored as "
            f"{builder.info.file_format.value}, which cannot be read by row; prepare "
            "it in another data_dir with file_format='array_record'."
        ) from None
    except ValueError:
        raise ValueError(
            f"data set {data.name!r} has no split {split!r}; it has "
            f"{', '.join(sorted(builder.info.splits))}, and slices of them."
        ) from None
    return source, math.prod(shape) * np.dtype(features["image"].np_dtype).itemsize


def _statistics(data: DataConfig, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and standard deviation (channels,) of the stored images."""
    mean = np.asarray(data.raw_mean, dtype=np.float32)
    std = np.asarray(data.raw_std, dtype=np.float32)
    if mean.shape != (channels,) or std.shape != (channels,):
        raise ValueError(
            f"data.raw_mean {data.raw_mean} and data.raw_std {data.raw_std} must give "
            f"one number for each of the images' channels, of which there are "
            f"{channels}."
        )
    return mean, std
