"""The averages that a run tracks and stores: a config's `ema` fields."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated

from edm_jax import menu
from edm_jax.ema.keep import KEEPS, Keep
from edm_jax.ema.meta import DTYPES
from edm_jax.ema.profiles import PowerProfile, TraditionalProfile
from edm_jax.fields import Count, NotNegative, OneOf, Positive, Settings


@dataclasses.dataclass(frozen=True)
class EmaConfig(Settings):
    """A config's `ema` fields."""

    sigma_rels: tuple[float, ...]
    halflives_mimg: tuple[Positive, ...]
    halflife_rampup: NotNegative  # half-life <= this fraction of the images seen
    update_every: Count  # steps
    snapshot_dtype: Annotated[str, OneOf(DTYPES)]
    keep: Annotated[Keep, menu.Entry(KEEPS)]

    def faults(self) -> Iterator[str]:
        if not self.sigma_rels:
            yield "sigma_rels is empty, so nothing could be rebuilt: give at least one."
        yield from length_faults("sigma_rels", self.sigma_rels)
        yield from _twice("halflives_mimg", self.halflives_mimg)
        try:
            self.profiles()
        except ValueError as error:
            yield f"halflife_rampup: {error}"

    def profiles(self) -> dict[str, PowerProfile | TraditionalProfile]:
        """The averages that a run tracks, by name."""
        power = {f"power_{s:g}": PowerProfile(s) for s in self.sigma_rels}
        traditional = {
            f"traditional_{h:g}": TraditionalProfile(h, self.halflife_rampup)
            for h in self.halflives_mimg
        }
        return power | traditional


def length_faults(field: str, sigma_rels: Sequence[float]) -> Iterator[str]:
    """Yields a sentence for each relative length that is invalid or given twice."""
    for sigma_rel in sigma_rels:
        try:
            PowerProfile(sigma_rel)
        except ValueError as error:
            yield f"{field}: {error}"
    yield from _twice(field, sigma_rels)


def _twice(field: str, lengths: Sequence[float]) -> Iterator[str]:
    # The name of an average keeps six significant digits of its length.
    names = [f"{length:g}" for length in lengths]
    if twice := [name for name in names if names.count(name) > 1]:
        yield f"{field}={tuple(lengths)} has {twice[0]} twice: give each length once."
