"""The training loop: what happens, from top to bottom."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from edm_jax import backend, data, networks, optim
from edm_jax.checkpoint import Checkpoints
from edm_jax.ema import averaging, snapshots
from edm_jax.heldout import HeldOut
from edm_jax.run_dir import RunDir
from edm_jax.train_step import TrainState
from edm_jax.trainer import Trainer, make_trainer, total_steps

# (images trained, images in all, images/s)
OnProgress = Callable[[int, int, float], None]


class Interrupted(Exception):
    """The run was asked to stop; its state is saved, and training again goes on."""


def train(config: Any, run: RunDir, on_progress: OnProgress = lambda *_: None) -> None:
    """Trains to the config's duration, going on from the last checkpoint.

    SIGINT or SIGTERM: finishes the step, saves, and raises Interrupted.
    """
    backend.keep_freed_memory()
    total = total_steps(config)
    total_nimg = total * config.optimizer.batch_size
    trainer = make_trainer(config)
    run.set_status(state="running", stage="train", total_nimg=total_nimg, message="")
    data.prepare(config.data)
    with (
        contextlib.closing(Checkpoints(run.checkpoints)) as checkpoints,
        _stop_signals() as stopped,
    ):
        state, unlogged = checkpoints.restore(trainer.initial_state())
        start = int(trainer.step.fetch(state.step))
        if start < total:
            params = networks.abstract_params(trainer.denoiser.spec)
            devices = [device.device_kind for device in jax.devices()]
            count = networks.count_params(params)
            run.record_provenance(params=count, devices=devices)
        log = _Log(run, trainer, total, on_progress, unlogged)
        step = _train_steps(
            trainer, state, start, total, run, log, checkpoints, stopped
        )
    if step < total:
        nimg = step * config.optimizer.batch_size
        run.set_status(state="interrupted", message="stopped by a signal")
        raise Interrupted(f"{run.path} is saved at {nimg} images.")
    run.set_status(state="done", nimg=total_nimg, message="")


def _train_steps(
    trainer: Trainer,
    state: TrainState,
    start: int,
    total: int,
    run: RunDir,
    log: "_Log",
    checkpoints: Checkpoints,
    stopped: Callable[[], bool],
) -> int:
    """Steps from `start` until the end or a signal; returns the last step."""
    config, training = trainer.config, trainer.config.training
    batch_size = config.optimizer.batch_size
    heldout = HeldOut(trainer.denoiser, config)
    run.forget_after(start)
    if start == 0:
        _probe(trainer, state, heldout, run, 0)
    batches = data.train_batches(
        config.data, batch_size=batch_size, seed=config.seed, start_step=start
    )

    def due(interval_mimg: float, step: int) -> bool:
        # Intervals need not be whole numbers of steps; all are due at the end.
        interval = interval_mimg * 1e6
        now, before = step * batch_size, (step - 1) * batch_size
        return now // interval > before // interval or step == total

    for step in range(start + 1, total + 1):
        state, metrics = trainer.step(state, next(batches))
        log.dispatched(step, metrics, due(training.log_mimg, step))
        if due(training.probe_mimg, step):
            _probe(trainer, state, heldout, run, step)
            log.restart_clock()
        if due(training.snapshot_mimg, step):
            _snapshot(trainer, state, run, step)
            log.restart_clock()
        if due(training.checkpoint_mimg, step) or stopped():
            log.flush()
            checkpoints.save(step, state, log.unlogged)
            log.restart_clock()
        if stopped():
            return step
    return total


def _probe(
    trainer: Trainer, state: TrainState, heldout: HeldOut, run: RunDir, step: int
) -> None:
    """Logs the held-out loss, averaged and not, and the magnitudes."""
    nimg = step * trainer.config.optimizer.batch_size
    average = trainer.step.fetch(state.emas[trainer.longest_average])
    params = trainer.step.fetch(state.params)
    run.log(
        "heldout",
        step,
        nimg,
        loss_per_element=heldout.loss(average),
        raw_loss_per_element=heldout.loss(params),
    )
    run.log("dynamics", step, nimg, **heldout.magnitudes(params))


def _snapshot(trainer: Trainer, state: TrainState, run: RunDir, step: int) -> None:
    """Stores every tracked average."""
    batch_size = trainer.config.optimizer.batch_size
    for name, average in trainer.averages(state, step).items():
        meta = snapshots.SnapshotMeta(
            profile=trainer.profiles[name],
            nimg=step * batch_size,
            update_interval=trainer.config.ema.update_every * batch_size,
            config_hash=run.config_hash,
            dtype=trainer.config.ema.snapshot_dtype,
        )
        writing = jax.process_index() == 0
        snapshots.write(run.snapshots, average, meta, averaging.gather, writing)


class _Log:
    """Writes training metrics, reading those of a step after the next is dispatched."""

    def __init__(
        self,
        run: RunDir,
        trainer: Trainer,
        total: int,
        report: OnProgress,
        unlogged: list[dict[str, float]],
    ):
        self._run, self._trainer, self._report = run, trainer, report
        self._batch_size = trainer.config.optimizer.batch_size
        self._schedule = optim.learning_rate(trainer.config.optimizer)
        self._total_nimg = total * self._batch_size
        self._pending: tuple[int, Any, bool] | None = None
        self.unlogged = unlogged
        self._rate = 0.0
        self._seconds, self._images = 0.0, 0
        self._clock: float | None = None  # None: the next interval is no measure

    def dispatched(self, step: int, metrics: Any, due: bool) -> None:
        self.flush()
        self._pending = step, metrics, due

    def restart_clock(self) -> None:
        self._clock = None

    def flush(self) -> None:
        if self._pending is None:
            return
        step, metrics, due = self._pending
        self._pending = None
        fetched = self._trainer.step.fetch(metrics)
        self.unlogged.append({name: float(value) for name, value in fetched.items()})
        now = time.perf_counter()
        if self._clock is not None:
            self._seconds += now - self._clock
            self._images += self._batch_size
            self._rate = self._images / self._seconds
        self._clock = now
        nimg = step * self._batch_size
        self._run.set_status(nimg=nimg, images_per_s=self._rate, now=False)
        self._report(nimg, self._total_nimg, self._rate)
        if due:
            self._write(step, nimg)

    def _write(self, step: int, nimg: int) -> None:
        means = {
            k: float(np.mean([m[k] for m in self.unlogged])) for k in self.unlogged[0]
        }
        means["nonfinite"] = self.unlogged[-1]["nonfinite"]  # a running count
        lr = float(self._schedule(nimg - self._batch_size))
        self._run.log("train", step, nimg, **means, lr=lr, images_per_s=self._rate)
        self.unlogged, self._seconds, self._images = [], 0.0, 0


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Notes SIGINT and SIGTERM instead of dying; a second one acts as usual."""
    received: list[int] = []
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        for each, handler in previous.items():
            signal.signal(each, handler)

    for each in previous:
        signal.signal(each, note)
    try:
        yield lambda: bool(received)
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
