"""The learning-rate finder for a run: steps at growing rates, on a copy of its state.

The steps are the run's own (`trainer`), with a growing schedule. The loss is measured
after each step on fixed noisy held-out images, stratified in sigma. All losses use the
same random numbers, so they differ by the weights only.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from edm_jax import data
from edm_jax.evals.heldout import HeldOut
from edm_jax.fields import Index, Positive, Settings
from edm_jax.optim import finder, plateau
from edm_jax.optim.schedules import Run, Schedule
from edm_jax.optim.warmups import NoWarmup
from edm_jax.train.checkpoint import Checkpoints
from edm_jax.train.config import RunConfig
from edm_jax.train.step import TrainState
from edm_jax.train.trainer import Trainer, make_trainer

RATES = finder.grid(1e-6, 10.0, 100)  # default
ROWS = 512  # held-out images to measure the loss on, at most [choice]
ADVISED = "valley"  # the suggestion that alpha_ref=auto uses
OnProgress = Callable[[int, int], None]  # (steps done, steps at most)


class Found(NamedTuple):
    """The results of all repeats."""

    curves: list[finder.Curve]
    effective: list[np.ndarray]  # |dw| / |w| over all kernels, for each curve's steps
    suggestions: list[finder.Agreement]

    @property
    def advised(self) -> finder.Agreement:
        """The suggestion that alpha_ref=auto uses."""
        return next(each for each in self.suggestions if each.name == ADVISED)

    def summary(self) -> dict[str, Any]:
        """A summary for the run's provenance.json."""
        return {
            "alpha_ref": self.advised.rate,
            "reading": self.advised.name,
            "why": self.advised.why,
            "range": [self.advised.low, self.advised.high],
            "repeats": len(self.curves),
            "limits": [curve.limit for curve in self.curves],
        }


@dataclasses.dataclass(frozen=True)
class Growing(Settings):
    """ratio^k, where k counts steps from `start`: the finder's schedule.

    beta1 follows the run's own schedule.
    """

    ratio: Positive
    start: Index
    own: Schedule

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        return self.ratio ** (nimg / run.batch_size - self.start)

    def momentum(self, nimg: jax.Array, run: Run) -> jax.Array | None:
        """The method's beta1 after `nimg` images; None keeps its own."""
        moved = getattr(self.own, "momentum", None)
        return moved(nimg, run) if moved else None


def find(
    config: RunConfig,
    rates: finder.Series,
    repeats: int = 3,
    checkpoints: Path | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Found:
    """Searches for the learning rate of a config; leaves nothing behind.

    Args:
        config: the run's config. Its schedule and warm-up are ignored, except for beta1.
        rates: equally spaced in their logarithm, `finder.grid`.
        repeats: searches, each with its own seed for data order, noise and initial weights.
        checkpoints: a run's checkpoints, to probe the last one; None starts untrained.
        on_progress: called after every step.

    Returns:
        The curves, and the rates that they suggest.

    Raises:
        ValueError: the loss never falls, there is no checkpoint, or this is one of
            several processes.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "The learning-rate finder runs in one process: find the rate on one host, "
            "and pass it to the run with --config.optimizer.alpha_ref."
        )
    data.prepare(config.data)
    trained = _last_state(config, checkpoints) if checkpoints else None
    start = 0 if trained is None else int(trained.step)
    trainer = make_trainer(_growing(config, rates, start))
    heldout = HeldOut(trainer.denoiser, _measured(config))
    curves, effective = [], []
    for repeat in range(repeats):
        seed = config.seed + repeat
        again = dataclasses.replace(
            trainer, config=dataclasses.replace(trainer.config, seed=seed)
        )
        steps = _Steps(again, heldout, trained, start)

        def step(rate: float, steps: _Steps = steps, repeat: int = repeat) -> float:
            del rate  # the schedule has it
            loss = steps()
            on_progress(
                repeat * len(rates) + len(steps.effective), repeats * len(rates)
            )
            return loss

        curve = finder.search(step, rates)
        curves.append(curve)
        effective.append(np.array(steps.effective[: len(curve.rates)]))
    return Found(curves, effective, finder.agreement(curves))


class _Steps:
    """The steps of one repeat; each call takes one and returns the loss after it."""

    def __init__(
        self, trainer: Trainer, heldout: HeldOut, trained: TrainState | None, start: int
    ):
        self._trainer, self._heldout = trainer, heldout
        if trained is None:
            self._state = trainer.initial_state()
        else:
            key = np.asarray(jax.random.PRNGKey(trainer.config.seed))
            # A copy for each repeat, because the step donates its input's memory.
            copy = jax.tree.map(np.array, trained._replace(key=key))
            self._state = trainer.step.place(copy)
        self._batches = _batches(trainer.config, start)
        self.effective: list[float] = []

    def __call__(self) -> float:
        step = self._trainer.step
        self._state, metrics = step(self._state, next(self._batches))
        effective = step.fetch(metrics["effective_lr"]["all"])
        self.effective.append(float(np.asarray(effective)))
        return self._heldout.loss(step.fetch(self._state.params))


def _batches(config: RunConfig, start: int) -> Iterator[Any]:
    return data.train_batches(
        config.data,
        batch_size=config.optimizer.batch_size,
        seed=config.seed,
        num_classes=config.network.num_classes,
        start_step=start,
        process_index=0,
        process_count=1,
    )


def _growing(config: RunConfig, rates: finder.Series, start: int) -> RunConfig:
    """The config with a schedule that goes through the rates from step `start` on."""
    growing = Growing(float(rates[1] / rates[0]), start, config.optimizer.schedule)
    optimizer = dataclasses.replace(
        config.optimizer,
        alpha_ref=float(rates[0]),
        schedule=growing,
        warmup=NoWarmup(),
    )
    return dataclasses.replace(config, optimizer=optimizer)


def _measured(config: RunConfig) -> RunConfig:
    """The config with fewer held-out images, to measure the loss after every step."""
    evaluation = config.evaluation
    rows = min(evaluation.num_heldout, ROWS)
    fewer = dataclasses.replace(evaluation, num_heldout=rows, num_sigmas=1)
    return dataclasses.replace(config, evaluation=fewer)


def _last_state(config: RunConfig, place: Path) -> TrainState:
    """The state of a run's last checkpoint, on the host, without a plateau's state."""
    if not place.is_dir():
        raise ValueError(f"{place.parent} has no checkpoint yet: train it first.")
    trainer = make_trainer(config)
    checkpoints = Checkpoints(place)
    try:
        found = checkpoints.restore(trainer.step.abstract(trainer.shapes))
    finally:
        checkpoints.close()
    if found is None:
        raise ValueError(f"{place.parent} has no checkpoint yet: train it first.")
    opt_state = plateau.without(found.state.opt_state)
    return jax.tree.map(np.asarray, found.state._replace(opt_state=opt_state))
