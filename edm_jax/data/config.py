"""Which data a run is trained on: a config's `data` fields."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Annotated

from edm_jax import menu
from edm_jax.data.augment import AUGMENTS, Augment, NoAugment
from edm_jax.data.readers import READERS, Reader, Tfds
from edm_jax.fields import Finite, Positive, Settings

_TFDS, _NO_AUGMENT = Tfds(), NoAugment()
# Data sets whose mirror images are not of their kind.
_SIGNS = ("digits", "mnist", "emnist", "kmnist", "svhn_cropped")


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """A config's `data` fields: which data set, where it is, its statistics.

    `name` is a TFDS name ('digits', 'mnist:3.0.1') or the directory of a prepared data
    set; `data_dir` '' means TFDS's own default, which honours TFDS_DATA_DIR; the splits
    may be slices ('train[:10%]'); `raw_mean` and `raw_std` hold one number per channel,
    in the units of the stored images.
    """

    name: str
    data_dir: str
    train_split: str
    heldout_split: str
    raw_mean: tuple[Finite, ...]
    raw_std: tuple[Positive, ...]
    reader: Annotated[Reader, menu.Entry(READERS)] = _TFDS
    augment: Annotated[Augment, menu.Entry(AUGMENTS)] = _NO_AUGMENT

    def misfits(self) -> Iterator[str]:
        """What of the choices does not suit the data set: sentences."""
        mirrors = getattr(self.augment, "mirrors", False)
        if mirrors and re.split("[:/]", self.name)[0] in _SIGNS:
            yield (
                f"data.augment mirrors images, and those of {self.name!r} are no longer "
                "digits or letters then; set data.augment.name to 'edm_unflipped' or "
                "'none'."
            )
