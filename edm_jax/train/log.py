"""Reads the training step's metrics one step late, and logs them."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from edm_jax import diffusion
from edm_jax.diffusion import flops
from edm_jax.optim import chain
from edm_jax.runs.directory import RunDir
from edm_jax.train.trainer import Trainer

# (images trained, images in all, images/s)
OnProgress = Callable[[int, int, float], None]
# A step, its metrics as plain numbers and lists.
Report = tuple[int, dict[str, Any]]


class _Pending(NamedTuple):
    step: int
    metrics: Any
    due: bool
    rate_scale: float


class TrainingLog:
    """Writes training metrics; reads a step's metrics after the next step is dispatched.

    Reading thus never stalls the devices. A line is the mean over its interval. Metrics
    that are not yet in a line, `unlogged`, are kept in checkpoints.
    """

    def __init__(self, run: RunDir, trainer: Trainer, report: OnProgress):
        config = trainer.config
        self._run, self._trainer, self._report = run, trainer, report
        self._batch_size = config.optimizer.batch_size
        self._schedule = chain.learning_rate(
            config.optimizer, config.training.duration_mimg
        )
        self._group_rates = chain.group_rates(
            config.optimizer, config.training.duration_mimg
        )
        self._total_nimg = config.total_steps * self._batch_size
        self._flops_per_image = flops.train_flops(trainer.denoiser.model)
        self._peak = _peak_flops(config.network.compute_dtype)
        self._pending: _Pending | None = None
        self.unlogged: list[dict[str, Any]] = []
        self.rate_scale = 1.0  # the factor by which a plateau has reduced the rate
        self._rate = 0.0
        self._seconds, self._images = 0.0, 0
        self._waited, self._waits = 0.0, 0.0  # for input: since a step, since a line
        self._clock: float | None = None  # None: do not time the next interval

    def dispatched(self, step: int, metrics: Any, due: bool) -> Report | None:
        """Takes the metrics of a step in progress; returns those of the previous step."""
        report = self.flush()
        self._pending = _Pending(step, metrics, due, self.rate_scale)
        return report

    def waited(self, seconds: float) -> None:
        """Takes how long the loop has waited for a batch."""
        self._waited += seconds

    def restart_clock(self) -> None:
        """Leaves the time until the next step's metrics out of the rate."""
        self._clock = None

    def flush(self) -> Report | None:
        """Waits for the last step's metrics and returns them."""
        if self._pending is None:
            return None
        (step, metrics, due, scale), self._pending = self._pending, None
        fetched = self._trainer.step.fetch(metrics)
        plain = jax.tree.map(lambda x: np.asarray(x).tolist(), fetched)
        by_leaf = plain.pop("nonfinite_by_leaf")
        self.unlogged.append(plain)
        now = time.perf_counter()
        if self._clock is not None:
            self._seconds += now - self._clock
            self._waits += self._waited
            self._images += self._batch_size
            self._rate = self._images / self._seconds
        self._clock, self._waited = now, 0.0
        nimg = step * self._batch_size
        self._run.set_status(nimg=nimg, images_per_s=self._rate, now=False)
        self._report(nimg, self._total_nimg, self._rate)
        line = self._write(step, nimg, scale) if due else None
        return step, plain | {"nonfinite_by_leaf": by_leaf, "line": line}

    def _write(self, step: int, nimg: int, rate_scale: float) -> dict[str, Any]:
        """Logs the means since the last line, and returns them."""
        means = _mean(self.unlogged)
        # A running count modulo 2^32.
        means["nonfinite"] = self.unlogged[-1]["nonfinite"] % 2**32
        means["sigma"] = _by_sigma(means["sigma"])
        before = nimg - self._batch_size
        lr = float(self._schedule(before)) * rate_scale
        rates = {k: float(f(before)) * rate_scale for k, f in self._group_rates.items()}
        groups = {"group_lr": rates} if rates else {}
        self._run.log("train", step, nimg, **means, lr=lr, **groups)
        if self._rate:
            self._run.log("speed", step, nimg, **self._speed())
        self.unlogged, self._seconds, self._images, self._waits = [], 0.0, 0, 0.0
        return means

    def _speed(self) -> dict[str, float]:
        """Speed has a separate record: only these numbers differ between equal runs."""
        flops_per_s = self._rate * self._flops_per_image
        speed = {"images_per_s": self._rate, "flops_per_s": flops_per_s}
        if self._seconds:  # the devices may still be busy with the step before
            speed["input_wait"] = self._waits / self._seconds
        return speed | ({"mfu": flops_per_s / self._peak} if self._peak else {})


def _mean(many: list[dict[str, Any]]) -> dict[str, Any]:
    """Averages nested records of numbers and lists, in float64."""

    def mean(*values: Any) -> Any:
        return np.mean(np.asarray(values, np.float64), axis=0).tolist()

    return jax.tree.map(mean, *many, is_leaf=lambda x: isinstance(x, list))


def _by_sigma(means: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """Loss and u(sigma) of each range of sigma; None if no image fell into it.

    The optimal u is the logarithm of the loss (Eq. 21).
    """
    share = np.asarray(means["share"])

    def ratio(name: str) -> list[float | None]:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = np.asarray(means[name]) / share
        return [float(r) if s > 0 else None for r, s in zip(ratios, share)]

    return {
        "below": [*diffusion.SIGMA_EDGES, None],
        "share": share.tolist(),
        "loss_per_element": ratio("loss"),
        "logvar": ratio("logvar"),
    }


def _peak_flops(dtype: str) -> float | None:
    """Peak FLOP/s of all devices together; None if it is not known."""
    peak = flops.peak_flops(jax.devices()[0].device_kind, dtype)
    return peak * jax.device_count() if peak else None
