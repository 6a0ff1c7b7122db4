"""Schedules that rise and fall; some move beta1 inversely to the rate."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.fields import Fraction, NotNegative, Range, Settings, Share
from edm_jax.optim.timing import Ending, Part, Run, Timed

AtLeast1 = Annotated[float, Range(1, np.inf, "[)", "at least 1 and finite")]


@dataclasses.dataclass(frozen=True)
class CosineRestarts(Ending):
    """Cycle i: final + (decay^i - final) (1 + cos(pi p)) / 2 (arXiv 1608.03983, Eq. 5).

    p goes from 0 to 1 over cycle i, which has cycle * multiplier^i images. First value 1;
    each cycle ends at `final`, and the next starts at its peak (at least `final`).
    From `end` on the value is `final`. `optax.sgdr_schedule` takes a list of cycles;
    diffusers has equal cycles only, and measures them from the end of the warm-up.
    """

    cycle_mimg: NotNegative = 0.0  # length of the first cycle; 0: a quarter of the run
    multiplier: AtLeast1 = 1.0  # a cycle's length over that of the one before
    decay: Part = 1.0  # a cycle's peak over that of the one before

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        starts = self._starts(run)
        begun = jnp.sum(nimg >= jnp.asarray(starts[1:-1], jnp.float32))
        start, stop = jnp.asarray(starts[:-1])[begun], jnp.asarray(starts[1:])[begun]
        p = jnp.clip((nimg - start) / (stop - start), 0.0, 1.0)
        peak = jnp.maximum(self.decay ** begun.astype(jnp.float32), self.final)
        shape = self.final + (peak - self.final) * (1 + jnp.cos(jnp.pi * p)) / 2
        return jnp.where(nimg < self.end_nimg(run), shape, self.final)

    def misfits(self, run: Run) -> Iterator[str]:
        """Cycles shorter than a step."""
        length = self.cycle_mimg * 1e6
        if 0 < length < run.batch_size:
            yield f"cycle_mimg={self.cycle_mimg:g} is less than one batch: lengthen it."

    def _starts(self, run: Run) -> np.ndarray:
        """(cycles + 1,) images where cycles begin, up to the end of the last."""
        end = self.end_nimg(run)
        length, starts = self.cycle_mimg * 1e6 or end / 4, [0.0]
        # The tolerance keeps rounding from adding a cycle.
        while starts[-1] < end * (1 - 1e-9):
            starts.append(starts[-1] + length)
            length *= self.multiplier
        return np.asarray(starts, np.float32)


@dataclasses.dataclass(frozen=True)
class Cycled(Settings):
    """A schedule that may move the method's beta1 (or momentum) inversely to the rate."""

    # (lowest, highest) beta1; () keeps the method's own.
    beta1: tuple[Fraction, ...] = ()

    def faults(self) -> Iterator[str]:
        """Refuses anything but an ascending pair, or ()."""
        if self.beta1 and (len(self.beta1) != 2 or self.beta1[0] > self.beta1[1]):
            yield (
                f"beta1={self.beta1}, but must be the lowest and the highest, such as "
                "0.85,0.95, or () for the method's own."
            )

    def momentum(self, nimg: jax.Array, run: Run) -> jax.Array | None:
        """The method's beta1 after `nimg` images; None keeps its own."""
        if not self.beta1:
            return None
        low, high = self.beta1
        return high - (high - low) * self.height(nimg, run)

    def height(self, nimg: jax.Array, run: Run) -> jax.Array:
        """0 where the rate is lowest and beta1 highest; 1 where it is the reverse."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Cyclical(Cycled):
    """low + (1 - low) s max(0, 1 - |nimg / half - 2 c + 1|), c = floor(1 + nimg / (2 half)).

    arXiv 1506.01186, Sec. 3.2. s is 1 (triangular), 2^(1 - c) (triangular2) or
    gamma^(nimg / (2 half)) (exp_range). First value `low`; the last value depends on the
    cycles. gamma is per cycle; in torch's CyclicLR and the paper it is per iteration.
    beta1 follows the unscaled triangle; torch scales its swing by s, too.
    """

    low: Share = 0.1  # fraction of alpha_ref between the peaks
    half_mimg: NotNegative = 0.0  # from low to peak; 0: an eighth of the run
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: Part = 0.5  # of exp_range

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        cycles = nimg / (2 * self._half(run))
        scale = {
            "triangular": jnp.ones_like(cycles),
            "triangular2": 0.5 ** jnp.floor(cycles),
            "exp_range": self.gamma**cycles,
        }[self.mode]
        return self.low + (1 - self.low) * scale * self.height(nimg, run)

    def height(self, nimg: jax.Array, run: Run) -> jax.Array:
        """The triangle, 0 to 1."""
        x = nimg / self._half(run)
        cycle = jnp.floor(1 + x / 2)
        return jnp.maximum(1 - jnp.abs(x - 2 * cycle + 1), 0.0)

    def _half(self, run: Run) -> float:
        return self.half_mimg * 1e6 or run.duration_nimg / 8


@dataclasses.dataclass(frozen=True)
class OneCycle(Cycled, Timed):
    """From 1 / initial_div up to 1 at `rise`, then down to 1 / (initial_div final_div).

    arXiv 1708.07120. Each phase is a cosine or a line. With three phases the rate falls
    back to 1 / initial_div at 2 rise, and from there to its last value. beta1 moves
    inversely: from its highest to its lowest at the peak and back, over the first two
    phases. First value 1 / initial_div, last value 1 / (initial_div final_div) at `end`.
    torch's OneCycleLR has the peak at step rise T - 1 and the last value at T - 1;
    fastai's last value is 1e-5; `optax.cosine_onecycle_schedule` equals this one.
    A warm-up would multiply this schedule: choose none.
    """

    beta1: tuple[Fraction, ...] = (0.85, 0.95)
    rise: Part = 0.3  # part of the images
    initial_div: AtLeast1 = 25.0
    final_div: AtLeast1 = 1e4
    shape: Literal["cosine", "linear"] = "cosine"
    three_phase: bool = False

    def faults(self) -> Iterator[str]:
        """Refuses phases that do not fit into the run."""
        yield from super().faults()
        limit = 0.5 if self.three_phase else 1.0
        if self.rise >= limit:
            yield f"rise={self.rise:g}, but must be less than {limit:g}."

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        low = 1 / self.initial_div
        last = low / self.final_div
        return self._through([low, 1.0, *([low] * self.three_phase), last], nimg, run)

    def height(self, nimg: jax.Array, run: Run) -> jax.Array:
        """0 at the first image, 1 at the peak, 0 when the rate is back."""
        return self._through([0.0, 1.0, *([0.0] * self.three_phase), 0.0], nimg, run)

    def _through(self, values: list[float], nimg: jax.Array, run: Run) -> jax.Array:
        t = self.done(nimg, run)
        knots = [0.0, self.rise, *([2 * self.rise] * self.three_phase), 1.0]
        found = jnp.full_like(t, values[0])
        for a, b, start, stop in zip(
            knots, knots[1:], values, values[1:], strict=False
        ):
            p = jnp.clip((t - a) / (b - a), 0.0, 1.0)
            if self.shape == "cosine":
                p = (1 - jnp.cos(jnp.pi * p)) / 2
            found = jnp.where(t >= a, start + (stop - start) * p, found)
        return found
