"""Which data a run is trained on: a config's `data` fields."""

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Annotated

from edm_jax import menu
from edm_jax.data.augment import AUGMENTS, Augment, NoAugment
from edm_jax.data.order import SAMPLINGS, Sampling, Uniform
from edm_jax.data.readers import READERS, Reader, Tfds
from edm_jax.fields import Finite, Index, OneOf, Positive, Settings

_TFDS, _NO_AUGMENT, _UNIFORM = Tfds(), NoAugment(), Uniform()
# Data sets whose mirror images are not of their kind.
_SIGNS = ("digits", "mnist", "emnist", "kmnist", "svhn_cropped")


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """A config's `data` fields: which data set, where it is, its statistics.

    `name` is a TFDS name ('digits', 'mnist:3.0.1') or the directory of a prepared data
    set, for other readers a file or folder; `data_dir` '' means TFDS's own default, which honours TFDS_DATA_DIR; the splits
    may be slices ('train[:10%]'); `raw_mean` and `raw_std` hold one number per channel,
    in the units of the stored images. A bad example (`on_bad`) stops the run, or is
    skipped: the next good one takes its place. `num_workers` processes read examples; 0
    are threads of this one. The numbers of a run do not depend on them.

    Of `classes` alone examples are used, in every split; () are all. At most `max_size`
    examples are trained on, a random subset that is the same for every seed and part of
    every larger one; 0 are all. `sampling` says how often each of them is. None of these
    changes the network: classes keep their numbers.
    """

    name: str
    data_dir: str
    train_split: str
    heldout_split: str
    raw_mean: tuple[Finite, ...]
    raw_std: tuple[Positive, ...]
    reader: Annotated[Reader, menu.Entry(READERS)] = _TFDS
    on_bad: Annotated[str, OneOf(("stop", "skip"))] = "stop"
    num_workers: Index = 0
    augment: Annotated[Augment, menu.Entry(AUGMENTS)] = _NO_AUGMENT
    classes: tuple[Index, ...] = ()
    max_size: Index = 0
    sampling: Annotated[Sampling, menu.Entry(SAMPLINGS)] = _UNIFORM

    @property
    def path(self) -> str:
        """The file or folder `name`, in `data_dir` where that is set."""
        inside = os.path.join(self.data_dir, os.path.expanduser(self.name))
        return os.path.expanduser(inside)

    def misfits(self) -> Iterator[str]:
        """What of the choices does not suit the data set: sentences."""
        mirrors = getattr(self.augment, "mirrors", False)
        if mirrors and re.split("[:/]", self.name)[0] in _SIGNS:
            yield (
                f"data.augment mirrors images, and those of {self.name!r} are no longer "
                "digits or letters then; set data.augment.name to 'edm_unflipped' or "
                "'none'."
            )
