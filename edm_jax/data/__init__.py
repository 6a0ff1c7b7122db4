"""The data room: a reader's rows in, NumPy batches of {image, label, index} out."""

from typing import Any

from edm_jax.data.config import DataConfig
from edm_jax.data.pipeline import denormalize, load_split, normalize, train_batches

__all__ = [
    "DataConfig",
    "denormalize",
    "fingerprint",
    "load_split",
    "normalize",
    "prepare",
    "train_batches",
]


def prepare(data: DataConfig) -> None:
    """Builds the data set where `data.data_dir` says, unless it is there.

    Raises:
        ValueError: the reader knows no such data set.
        FileNotFoundError: it is not there and could not be built.
    """
    data.reader.prepare(data)


def fingerprint(data: DataConfig) -> dict[str, Any]:
    """What tells one data set from another."""
    return data.reader.fingerprint(data)
