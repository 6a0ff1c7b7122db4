"""What watches a run while it trains: alerts, and when to stop early."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

# Weight of a step in the running mean of the loss, which starts as a plain mean.
_NEWEST = 0.01
_STEPS_BEFORE_ALERTS = 20


@dataclasses.dataclass
class Monitor:
    """Bounds, and what has been seen so far, which a checkpoint carries.

    Bounds: a step's loss above `loss_factor` times its running mean, magnitudes above
    `growth` times those of the first probe, and a held-out loss that has not fallen for
    more than `patience_nimg` images; inf turns each off.
    """

    loss_factor: float
    growth: float
    patience_nimg: float
    steps: int = 0
    mean_loss: float = 0.0
    spiking: bool = False
    first_magnitudes: dict[str, float] = dataclasses.field(default_factory=dict)
    grown: list[str] = dataclasses.field(default_factory=list)
    best_loss: float = math.inf
    best_nimg: int = 0
    nonfinite: int = 0
    failing: bool = False  # the last step had gradients that are not finite

    def state(self) -> dict[str, Any]:
        """What has been seen, for JSON."""
        seen = dataclasses.asdict(self)
        for bound in ("loss_factor", "growth", "patience_nimg"):
            del seen[bound]
        return seen | {
            "best_loss": None if seen["best_loss"] == math.inf else seen["best_loss"]
        }

    def restore(self, seen: Mapping[str, Any]) -> None:
        """Takes up what another monitor had seen."""
        for name, value in seen.items():
            setattr(self, name, math.inf if value is None else value)

    def after_step(self, loss: float) -> str | None:
        """An alert where the loss leaps, once until it is back."""
        if not math.isfinite(loss):
            return None  # counted by its gradient
        spiking = (
            self.steps >= _STEPS_BEFORE_ALERTS
            and 0 < self.loss_factor * self.mean_loss < loss
        )
        began, self.spiking = spiking and not self.spiking, spiking
        mean = self.mean_loss
        self.steps += 1
        # However high, a spike raises the mean no more than a loss at the bound does.
        step = min(loss, self.loss_factor * mean) if mean else loss
        self.mean_loss += (step - mean) * max(_NEWEST, 1 / self.steps)
        if began:
            return f"loss per element {loss:.3g}, {loss / mean:.1f} times its mean"
        return None

    def after_probe(self, magnitudes: Mapping[str, float]) -> Iterator[str]:
        """Alerts for places that have grown beyond the bound, once for each.

        magnitudes: by what and where, such as 'activations enc_8x8'.
        """
        if not self.first_magnitudes:
            self.first_magnitudes = dict(magnitudes)
        if self.growth == math.inf:
            return  # not even where one is not a number
        for place, value in magnitudes.items():
            ratio = value / max(self.first_magnitudes.get(place, value), 1e-12)
            if not ratio <= self.growth and place not in self.grown:
                self.grown.append(place)
                yield f"magnitude of {place} is {value:.3g}, {ratio:.1f} times its first"

    def has_converged(self, heldout_loss: float, nimg: int) -> bool:
        """Notes a held-out loss; whether none for long enough was better."""
        if heldout_loss < self.best_loss:
            self.best_loss, self.best_nimg = heldout_loss, nimg
        return nimg - self.best_nimg > self.patience_nimg

    def new_nonfinite(self, total: int) -> tuple[int, bool]:
        """How many gradient elements that are not finite the running count gained, and
        whether they begin a stretch of bad steps.

        total: int32, which a network of some size that fails for long wraps around.
        """
        new, self.nonfinite = (total - self.nonfinite) % 2**32, total
        began, self.failing = new > 0 and not self.failing, new > 0
        return new, began
