"""Watches a run while it trains: alerts, and when to stop early."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

# Weight of a step in the running mean of the loss, which starts as a plain mean.
_NEWEST = 0.01
_STEPS_BEFORE_ALERTS = 20
_WINDOW = 128  # steps whose median and spread the next one is compared with
# The spread of the logarithm counts as at least this [choice].
_LEAST_SPREAD = 0.02
# A unit is dead below this fraction of its layer's median, exploding above the inverse.
_DEAD = 1e-3
_STEPS_BEFORE_U = 500
_BEYOND_EDGE = 2.0  # times the highest curvature at which steps are stable [choice]
_LINES_FAR = 4  # log lines in a row until u(sigma) counts as far from the loss
# {subject of an alert: what to try}
ADVICE = {
    "loss": "If spikes return, lower optimizer.alpha_ref or lengthen the warm-up.",
    "gradient": "If it stays, lower optimizer.alpha_ref or lengthen the warm-up.",
    "magnitudes": "Lower optimizer.alpha_ref, or set optimizer.forced_weight_norm=True "
    "if network.weights is 'mp'.",
    "updates": "Lower optimizer.alpha_ref, or lengthen the warm-up.",
    "units": "Lower optimizer.alpha_ref, or try another network.init.",
    "sharpness": "Lower optimizer.alpha_ref or lengthen the warm-up, unless the loss falls.",
    "uncertainty": "u(sigma) lags behind the loss: try a longer warm-up or more images.",
}


@dataclasses.dataclass
class Monitor:
    """The thresholds, and the history, which checkpoints keep.

    inf turns a threshold off:
    loss_factor: a step's loss over its running mean, and e^u(sigma) over the loss or the
        inverse, in a range of sigma.
    growth: magnitudes over those of the first probe.
    patience_nimg: images since the held-out loss was lowest.
    z: robust deviations of a loss or gradient above earlier steps.
    update: the norm of an update over that of its weights.
    """

    loss_factor: float
    growth: float
    patience_nimg: float
    z: float = math.inf
    update: float = math.inf
    recent: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    far: dict[str, int] = dataclasses.field(default_factory=dict)  # lines in a row
    told: list[str] = dataclasses.field(default_factory=list)  # alerts that still hold
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
        """The history, for JSON."""
        seen = dataclasses.asdict(self)
        for bound in ("loss_factor", "growth", "patience_nimg", "z", "update"):
            del seen[bound]
        return seen | {
            "best_loss": None if seen["best_loss"] == math.inf else seen["best_loss"]
        }

    def restore(self, seen: Mapping[str, Any]) -> None:
        """Takes over another monitor's history."""
        for name, value in seen.items():
            setattr(self, name, math.inf if value is None else value)

    def after_report(self, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Alerts for a step's metrics: pairs of the subject and a sentence."""
        spike = self.after_step(metrics["loss_per_element"])
        leap = self.after_gradient(metrics["grad_rms"])
        yield from (("loss", said) for said in [spike] if said)
        yield from (("gradient", said) for said in [leap] if said)
        for said in self.after_updates(metrics["effective_lr"]):
            yield "updates", said
        # Early on, u lags behind a loss that falls fast.
        if metrics["line"] and self.steps >= _STEPS_BEFORE_U:
            for said in self.after_line(metrics["line"]["sigma"]):
                yield "uncertainty", said

    def after_step(self, loss: float) -> str | None:
        """An alert if the loss spikes; not repeated until it is back to normal."""
        if not math.isfinite(loss):
            return None  # counted with the gradient
        spiking = (
            self.steps >= _STEPS_BEFORE_ALERTS
            and 0 < self.loss_factor * self.mean_loss < loss
        )
        deviations = self._deviations("loss", loss)
        outlier = not spiking and deviations > self.z
        spiking |= outlier
        began, self.spiking = spiking and not self.spiking, spiking
        mean = self.mean_loss
        self.steps += 1
        # A spike raises the mean no more than a loss at the threshold would.
        step = min(loss, self.loss_factor * mean) if mean else loss
        self.mean_loss += (step - mean) * max(_NEWEST, 1 / self.steps)
        if began and outlier:
            return f"loss per element {loss:.3g}, {_beyond(deviations)}"
        if began:
            return f"loss per element {loss:.3g}, {loss / mean:.1f} times its mean"
        return None

    def after_gradient(self, rms: float) -> str | None:
        """An alert if the gradient spikes; not repeated until it is back to normal."""
        if not math.isfinite(rms):
            return None  # counted by element
        deviations = self._deviations("gradient", rms)
        if not self._begins("gradient", deviations > self.z):
            return None
        return f"RMS of the gradient {rms:.3g}, {_beyond(deviations)}"

    def after_updates(self, ratios: Mapping[str, float]) -> Iterator[str]:
        """Alerts for places whose update is large relative to the weights, |dw| / |w|."""
        for place, ratio in ratios.items():
            if self._begins(f"updates of {place}", ratio > self.update):
                yield f"a step changes the weights of {place} by {ratio:.0%} of their norm"

    def after_line(self, sigma: Mapping[str, Sequence[float | None]]) -> Iterator[str]:
        """Alerts for ranges of sigma where e^u is far from the loss (Eq. 21).

        Args:
            sigma: the log's columns; if u(sigma) is 0 everywhere, there is no head.
        """
        if not any(sigma["logvar"]) or self.loss_factor == math.inf:
            return
        low = "0"
        columns = (sigma["below"], sigma["loss_per_element"], sigma["logvar"])
        for high, loss, u in zip(*columns, strict=True):
            name = f"sigma {low} to {high}" if high else f"sigma above {low}"
            low = f"{high}"
            if loss is None or u is None or not 0 < loss < math.inf:
                continue
            times = math.exp(min(u - math.log(loss), 700.0))
            far = not 1 / self.loss_factor <= times <= self.loss_factor
            # The loss of a few images is noisy, and u lags behind a falling loss.
            self.far[name] = self.far.get(name, 0) + 1 if far else 0
            if self._begins(name, self.far[name] >= _LINES_FAR):
                yield f"e^u is {times:.2g} times the loss at {name}"

    def after_units(self, layers: Mapping[str, np.ndarray]) -> Iterator[str]:
        """Alerts for dead and exploding units, once for each layer.

        Args:
            layers: {layer: RMS of each output unit}. Layers that are zero altogether, as
                some are at initialization, are left out.
        """
        if self.growth == math.inf:
            return
        for layer, rms in layers.items():
            finite = rms[np.isfinite(rms)]
            usual = float(np.median(finite)) if len(finite) else 0.0
            if usual == 0 and len(finite):
                continue
            dead, exploding = rms <= _DEAD * usual, ~(rms < usual / _DEAD)
            for said, units in (("dead", dead), ("exploding", exploding)):
                if self._begins(f"{said} {layer}", bool(units.any())):
                    which = np.flatnonzero(units)
                    some = ", ".join(map(str, which[:5])) + ", ..." * (len(which) > 5)
                    yield f"{len(which)} of {len(rms)} units of {layer} {said}: {some}"

    def after_sharpness(self, beyond: float | None) -> Iterator[str]:
        """An alert if the curvature is far beyond the edge of stability, `beyond` times."""
        if beyond is not None and self._begins("sharpness", beyond > _BEYOND_EDGE):
            yield f"the curvature is {beyond:.1f} times the stable limit at this rate"

    def _begins(self, what: str, holds: bool) -> bool:
        """Whether a condition holds now that did not hold before."""
        if holds and what not in self.told:
            self.told.append(what)
            return True
        if not holds and what in self.told:
            self.told.remove(what)
        return False

    def _deviations(self, what: str, value: float) -> float:
        """Robust z-score of ln(value) among recent steps; then adds it to them.

        (ln x - median) / (1.4826 MAD). The factor 1.4826 turns the median absolute
        deviation of a normal distribution into its standard deviation.
        """
        if value <= 0 or self.z == math.inf:
            return 0.0
        recent, log = self.recent.setdefault(what, []), math.log(value)
        z = 0.0
        if len(recent) >= _STEPS_BEFORE_ALERTS:
            median = np.median(recent)
            spread = 1.4826 * np.median(np.abs(np.asarray(recent) - median))
            z = float((log - median) / max(spread, _LEAST_SPREAD))
        recent.append(log)
        del recent[:-_WINDOW]
        return z

    def after_probe(self, magnitudes: Mapping[str, float]) -> Iterator[str]:
        """Alerts for places that have grown beyond the threshold, once for each.

        Args:
            magnitudes: by kind and place, such as 'activations enc_8x8'.
        """
        firsts = [self.first_magnitudes.setdefault(p, v) for p, v in magnitudes.items()]
        if self.growth == math.inf:
            return  # no alert even for NaN
        for (place, value), first in zip(magnitudes.items(), firsts, strict=True):
            ratio = value / max(first, 1e-12)
            if not ratio <= self.growth and place not in self.grown:
                self.grown.append(place)
                yield f"magnitude of {place} is {value:.3g}, {ratio:.1f} times its first"

    def has_converged(self, heldout_loss: float, nimg: int) -> bool:
        """Records a held-out loss; True if there was no better one for long enough."""
        if heldout_loss < self.best_loss:
            self.best_loss, self.best_nimg = heldout_loss, nimg
        return nimg - self.best_nimg > self.patience_nimg

    def is_best(self, nimg: int) -> bool:
        """Whether the held-out loss recorded then is the best so far."""
        return nimg == self.best_nimg

    def new_nonfinite(self, total: int) -> tuple[int, bool]:
        """The number of new non-finite gradient elements, and whether they are the first.

        Args:
            total: the running count, int32, which may wrap around.

        Returns:
            The increase, and whether it starts a stretch of bad steps.
        """
        new, self.nonfinite = (total - self.nonfinite) % 2**32, total
        began, self.failing = new > 0 and not self.failing, new > 0
        return new, began


def _beyond(deviations: float) -> str:
    return f"{deviations:.0f} robust standard deviations above recent steps"
