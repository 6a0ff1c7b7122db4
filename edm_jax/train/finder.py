"""The learning-rate finder for a run: steps of growing rate, on a copy of its state.

Every step is the run's own (`trainer`), under a schedule that grows. The loss after it is
that of fixed noisy held-out images, stratified in sigma: common random numbers, so that
two losses differ by the weights alone.
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

RATES = finder.grid(1e-6, 10.0, 100)  # where nothing else is asked for
ROWS = 512  # held-out images at most that the loss is measured on [choice]
ADVISED = "valley"  # which suggestion a run takes for itself
OnProgress = Callable[[int, int], None]  # (steps done, of at most)


class Found(NamedTuple):
    """What the repeats saw."""

    curves: list[finder.Curve]
    effective: list[np.ndarray]  # |dw| / |w| over all kernels, of each curve's steps
    suggestions: list[finder.Agreement]

    @property
    def advised(self) -> finder.Agreement:
        """The suggestion that a run takes for itself."""
        return next(each for each in self.suggestions if each.name == ADVISED)

    def summary(self) -> dict[str, Any]:
        """For a run's provenance."""
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
    """ratio^k, k the steps since `start` steps: the finder's schedule.

    beta1 moves as the run's own schedule has it.
    """

    ratio: Positive
    start: Index
    own: Schedule

    def factor(self, nimg: jax.Array, run: Run) -> jax.Array:
        """The factor after `nimg` images."""
        return self.ratio ** (nimg / run.batch_size - self.start)

    def momentum(self, nimg: jax.Array, run: Run) -> jax.Array | None:
        """The method's beta1 after `nimg` images; None leaves its own."""
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
        config: the run's. Of its schedule and warm-up, only a moving beta1 takes part.
        rates: equally spaced in their logarithm, `finder.grid`.
        repeats: each with data order and noise, and untrained weights, of its own seed.
        checkpoints: of a run, whose last state is probed; None begins untrained.
        on_progress: called after every step.

    Returns:
        The curves, and what they suggest.

    Raises:
        ValueError: the loss falls nowhere, there is no checkpoint, or this is one of
            several processes.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "The learning-rate finder runs in one process: find the rate on one host, "
            "and give it to the run with --config.optimizer.alpha_ref."
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
    """Steps of one repeat, each returning the loss after it."""

    def __init__(
        self, trainer: Trainer, heldout: HeldOut, trained: TrainState | None, start: int
    ):
        self._trainer, self._heldout = trainer, heldout
        if trained is None:
            self._state = trainer.initial_state()
        else:
            key = np.asarray(jax.random.PRNGKey(trainer.config.seed))
            # A copy for each repeat: the step gives its input's memory away.
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
    """The config with a rate that grows through the rates, from a step on."""
    growing = Growing(float(rates[1] / rates[0]), start, config.optimizer.schedule)
    optimizer = dataclasses.replace(
        config.optimizer,
        alpha_ref=float(rates[0]),
        schedule=growing,
        warmup=NoWarmup(),
    )
    return dataclasses.replace(config, optimizer=optimizer)


def _measured(config: RunConfig) -> RunConfig:
    """The config with few enough held-out images to measure after every step."""
    evaluation = config.evaluation
    rows = min(evaluation.num_heldout, ROWS)
    fewer = dataclasses.replace(evaluation, num_heldout=rows, num_sigmas=1)
    return dataclasses.replace(config, evaluation=fewer)


def _last_state(config: RunConfig, place: Path) -> TrainState:
    """The state of a run's last checkpoint, on the host, without that of a plateau."""
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
