"""What a schedule may depend on, and when it ends."""

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from edm_jax.fields import NotNegative, Range, Settings, Share

Inside = Annotated[float, Range(0, 1, "()", "above 0 and below 1")]
Part = Annotated[float, Range(0, 1, "(]", "in (0, 1]")]


class Run(NamedTuple):
    """What a schedule may depend on besides the images seen."""

    duration_nimg: float
    batch_size: int
    alpha_ref: float = 1.0  # the rate that the factor multiplies


@dataclasses.dataclass(frozen=True)
class Timed(Settings):
    """A schedule that comes to an end."""

    end_mimg: NotNegative = 0.0  # million images; 0: the run's own duration

    def end_nimg(self, run: Run) -> float:
        """Images at the end."""
        return self.end_mimg * 1e6 or run.duration_nimg

    def done(self, nimg: jax.Array, run: Run) -> jax.Array:
        """t = min(nimg / end, 1)."""
        return jnp.minimum(nimg / self.end_nimg(run), 1.0)


@dataclasses.dataclass(frozen=True)
class Ending(Timed):
    """A schedule that reaches a final factor and keeps it."""

    final: Share = 0.0  # fraction of alpha_ref at the end
