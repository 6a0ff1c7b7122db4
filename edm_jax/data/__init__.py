"""The data room: any TFDS data set in, NumPy batches of {image, label, index} out."""

from edm_jax.data.pipeline import denormalize, load_split, normalize, train_batches
from edm_jax.data.store import DataConfig, fingerprint, prepare

__all__ = [
    "DataConfig",
    "denormalize",
    "fingerprint",
    "load_split",
    "normalize",
    "prepare",
    "train_batches",
]
