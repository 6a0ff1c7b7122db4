"""What the weights of a run start from: the menu of a config's `training.start`."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from edm_jax.ema.config import length_faults
from edm_jax.fields import NotNegative, Settings


@dataclasses.dataclass(frozen=True)
class Start(Settings):
    """Base of the entries of STARTS."""


@dataclasses.dataclass(frozen=True)
class Scratch(Start):
    """Random weights, drawn by network.init from the run's seed."""


@dataclasses.dataclass(frozen=True)
class Weights(Start):
    """The averaged weights of another run, or of a snapshot: fine-tuning.

    The optimizer's state, the schedules and the run's images start anew.

    source: a run's directory, a snapshot (.safetensors), or snapshots of the original
    code (a .pkl file, a directory of them, or a pattern). sigma_rel: the EMA length,
    rebuilt from the source; 0 takes a snapshot's own, and of a run 0.1, or the only one
    it has. A snapshot with a sigma_rel is rebuilt at its time from those beside it.

    classes: for each class of the run, the class of the source whose label embedding it
    copies; -1 marks a new class. () keeps the numbers, and those that the source lacks
    are new. new_class: the embedding of a new class: `mean`, the mean of all the
    source's, or `fresh`, drawn as at the start of any run.

    ema: the clock of the run's averages. With `restart` they are of the fine-tune alone:
    a power function p(t) ~ t^gamma over (0, t], t counted from its first image. With
    `continue` t counts from the first image of the source, so an average stays as long,
    relative to all images, as the source's: over (0, T + t] for a source of T images,
    p(t) ~ (T + t)^gamma. Each average then starts from the source's average of the same
    profile at T, which its snapshots must express, and is to the end what one run over
    both data sets, with a jump of the weights at T, would have.
    """

    source: str = ""
    sigma_rel: NotNegative = 0.0
    classes: tuple[int, ...] = ()
    new_class: Literal["mean", "fresh"] = "mean"
    ema: Literal["restart", "continue"] = "restart"

    def faults(self) -> Iterator[str]:
        if self.sigma_rel:
            yield from length_faults("sigma_rel", [self.sigma_rel])
        if any(each < -1 for each in self.classes):
            yield (
                f"classes={self.classes}, but each must be a class of the source, from "
                "0, or -1 for a new one."
            )


STARTS = {"scratch": Scratch, "weights": Weights}
