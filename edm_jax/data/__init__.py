"""The data room: any TFDS data set in, NumPy batches of {image, label, index} out."""

from edm_jax.data.pipeline import (
    DataConfig,
    denormalize,
    fingerprint,
    load_split,
    normalize,
    prepare,
    train_batches,
)

__all__ = [
    "DataConfig",
    "denormalize",
    "fingerprint",
    "load_split",
    "normalize",
    "prepare",
    "train_batches",
]
