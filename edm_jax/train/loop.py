"""The training loop."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from edm_jax import data, diffusion, menu
from edm_jax.ema import averaging, snapshots
from edm_jax.ema.keep import All
from edm_jax.ema.profiles import PowerProfile
from edm_jax.evals.evaluation import Midway
from edm_jax.evals.heldout import HeldOut
from edm_jax.evals.sharpness import Sharpness
from edm_jax.models.build import count_params
from edm_jax.models.unet import Params
from edm_jax.optim import chain, groups, plateau, stability
from edm_jax.optim.nonfinite import POLICIES
from edm_jax.optim.timing import Run
from edm_jax.runs.directory import RunDir
from edm_jax.runs.provenance import utc_now
from edm_jax.train import bases, hosts
from edm_jax.train.checkpoint import Checkpoints
from edm_jax.train.config import RunConfig
from edm_jax.train.diagnosis import Diagnosis
from edm_jax.train.log import OnProgress, Report, TrainingLog
from edm_jax.train.loggers import Mirrors
from edm_jax.train.monitor import ADVICE, Monitor
from edm_jax.train.profiling import Profile
from edm_jax.train.step import TrainState
from edm_jax.train.trainer import Trainer, make_trainer

_log = logging.getLogger(__name__)


class Preempted(Exception):
    """The run was asked to stop. Its state is saved, and the same command resumes it."""


class Nonfinite(ValueError):
    """A gradient was not finite, and the config says to stop."""


def train(
    config: RunConfig,
    run: RunDir,
    on_progress: OnProgress = lambda *_: None,
    *,
    open_mirrors: Callable[[int], Mirrors] | None = None,
    profile_steps: int = 0,
    allow_data: bool = False,
    allow_base: bool = False,
) -> None:
    """Trains to the config's duration, resuming from the last checkpoint.

    All processes call this. When any of them receives SIGINT, SIGTERM or SIGHUP, all
    finish the step, save, and raise Preempted.

    Args:
        config: the run's config.
        run: its directory.
        on_progress: called with the images trained, their total, and images per second.
        open_mirrors: opens mirrors of the metrics, given the images trained so far.
        profile_steps: the number of steps to trace into RUN/profile.
        allow_data: whether the data set may have changed since the run started.
        allow_base: the same of the weights that it started from.

    Raises:
        ValueError: the checkpoint, the data set or the base does not fit the config.
        OSError: the disk is full or failing.
        Preempted: a signal arrived; the same command resumes the run.
        Nonfinite: a gradient was not finite, and the config says to stop.
    """
    data.prepare(config.data)
    base = bases.settle(config, run.path, hosts.is_first(), allow_base)
    config = bases.bound(config, base)
    if base is None:
        trainer = make_trainer(config)
    else:
        run.base = base.provenance
        trainer = make_trainer(config, before_nimg=base.before_nimg)
    training, batch_size = config.training, config.optimizer.batch_size
    total = config.total_steps
    run.set_status(
        state="running",
        stage="train",
        total_nimg=total * batch_size,
        message="",
        best_nimg=None,
    )
    keep_every = training.keep_checkpoint_mimg * 1e6 / batch_size
    with (
        contextlib.closing(
            Checkpoints(
                run.checkpoints, training.keep_checkpoints, keep_every, hosts.agree
            )
        ) as checkpoints,
        contextlib.closing(Profile(run.path / "profile", profile_steps)) as profile,
        hosts.stop_signals() as stopped,
        contextlib.ExitStack() as stack,
    ):
        loop = _Loop(trainer, run, checkpoints, on_progress)
        state, start = loop.restore(allow_data, base)
        if open_mirrors is not None and hosts.is_first():
            mirrors = open_mirrors(start * batch_size)
            run.mirror = stack.enter_context(contextlib.closing(mirrors)).write
        step = loop.run(state, start, total, stopped, profile)
    nimg = step * batch_size
    if step < total and not loop.converged:
        run.set_status(state="preempted", nimg=nimg, message="stopped by a signal")
        raise Preempted(f"{run.path} is saved at {nimg:,} images.")
    best_nimg = loop.best_snapshot(nimg) if step < total else None
    message = (
        f"stopped early: the held-out loss stopped falling; it was best at {best_nimg:,}"
        if best_nimg
        else ""
    )
    end_time = utc_now() if step > start else run.status.get("end_time")
    run.set_status(
        state="done",
        nimg=nimg,
        total_nimg=nimg,
        message=message,
        stopped_early=step < total,
        best_nimg=best_nimg,
        end_time=end_time,
    )


class _Loop:
    """One run in progress."""

    def __init__(
        self,
        trainer: Trainer,
        run: RunDir,
        checkpoints: Checkpoints,
        on_progress: OnProgress,
    ):
        self.trainer, self.run_dir, self.checkpoints = trainer, run, checkpoints
        self.config, training = trainer.config, trainer.config.training
        self.batch_size = self.config.optimizer.batch_size
        self.log = TrainingLog(run, trainer, on_progress)
        self._on_progress = on_progress
        self.monitor = Monitor(
            training.alert_loss,
            training.alert_growth,
            training.patience_mimg * 1e6,
            training.alert_z,
            training.alert_update,
        )
        self.diagnosis = Diagnosis(trainer, hosts.agree)
        self.heldout = HeldOut(trainer.denoiser, self.config)
        self.sharpness = self._make_sharpness(training.sharpness_iterations)
        self.fingerprint = data.fingerprint(self.config.data)
        self.converged = False
        self._batches: dict[
            int, dict[str, Any]
        ] = {}  # those whose metrics are not read

    def _make_sharpness(self, iterations: int) -> Sharpness | None:
        if not iterations:
            return None
        loss = self.config.loss
        rows = self.heldout.inference.batch_size
        batch = {"image": self.heldout.image[:rows], "label": self.heldout.label[:rows]}
        train_loss = diffusion.make_loss(self.trainer.denoiser, loss.P_mean, loss.P_std)
        return Sharpness(train_loss, batch, iterations)

    def restore(
        self, allow_data: bool, base: bases.Base | None
    ) -> tuple[TrainState, int]:
        """The state to resume from and its step."""
        form = self.trainer.step
        found = self.checkpoints.restore(form.abstract(self.trainer.shapes))
        if found is None:
            return self.trainer.initial_state(base), 0
        step, state, extra = found
        if extra["data"] != self.fingerprint and not allow_data:
            raise ValueError(
                f"The data set has changed since {self.run_dir.path} was trained: it was "
                f"{extra['data']} and is {self.fingerprint}. Restore it, or accept the "
                "change with --allow=data."
            )
        self.log.unlogged = extra["unlogged"]
        self.monitor.restore(extra["monitor"])
        self.converged = extra["converged"]
        self.log.rate_scale = plateau.rate_scale(state.opt_state)
        return form.place(state), step

    def run(
        self,
        state: TrainState,
        start: int,
        total: int,
        stopped: Callable[[], bool],
        profile: Profile,
    ) -> int:
        """Steps from `start` until the end or a signal; returns the last step."""
        if start == total or self.converged:
            return start
        training = self.config.training
        self._record_provenance(start)
        # A start that was killed before its first checkpoint leaves nothing behind.
        self.run_dir.forget_after(start if start else -1)
        # Now, because the first step and the probe take time to compile.
        self._on_progress(start * self.batch_size, total * self.batch_size, 0.0)
        if start == 0:
            state = self._probe(state, 0)
        else:  # in case the run was killed after its checkpoint and before this
            self._thin(start)
        batches = data.train_batches(
            self.config.data,
            batch_size=self.batch_size,
            seed=self.config.seed,
            num_classes=self.config.network.num_classes,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        any_process, skipped = hosts.AnyProcess(), 0
        for step in range(start + 1, total + 1):
            began = time.perf_counter()
            self._batches[step] = batch = next(batches)
            self.log.waited(time.perf_counter() - began)
            if len(batches.skipped) > skipped:
                skipped = len(batches.skipped)
                last = list(batches.skipped.values())[-1].removesuffix(".")
                sentence = f"bad examples skipped so far: {skipped:,}, the last: {last}"
                self._alert(step, "data", sentence)
            profile.before_step()
            state, metrics = self.trainer.step(state, batch)
            profile.after_step(metrics)
            log_due = self._due(training.log_mimg, step, total)
            self._watch(self.log.dispatched(step, metrics, log_due), state)
            if self._due(training.probe_mimg, step, total):
                state = self._probe(state, step)
                self.log.restart_clock()
            if self._due(training.evaluate_mimg, step, total):
                self._evaluate(state, step)
                self.log.restart_clock()
            # A run that stops early is evaluated at its best held-out loss.
            best = training.patience_mimg < math.inf and self.monitor.is_best(
                step * self.batch_size
            )
            if self._due(training.snapshot_mimg, step, total) or best or self.converged:
                self._snapshot(state, step)
                self.log.restart_clock()
            stopping = any_process(stopped()) or self.converged
            if stopping or self._due(training.checkpoint_mimg, step, total):
                self._watch(self.log.flush(), state)
                self._save(state, step)
                self._thin(step)
                self.log.restart_clock()
            self.checkpoints.check()
            if stopping:
                return step
        return total

    def _due(self, interval_mimg: float, step: int, total: int) -> bool:
        # Intervals need not be whole numbers of steps; everything is due at the end.
        interval = interval_mimg * 1e6
        now, before = step * self.batch_size, (step - 1) * self.batch_size
        return now // interval > before // interval or step == total

    def _watch(self, report: Report | None, state: TrainState) -> None:
        """Logs alerts for a step whose metrics are read; `state` is a step or two later.

        Raises:
            Nonfinite: a gradient is not finite, and the config says to stop.
        """
        if report is None:
            return
        step, metrics = report
        batch = self._batches.pop(step)
        for about, sentence in self.monitor.after_report(metrics):
            self._alert(step, about, sentence)
        new, began = self.monitor.new_nonfinite(metrics["nonfinite"])
        if not began:
            return
        self._say(step, "a gradient is not finite; looking for the first bad layer")
        name = self.config.optimizer.nonfinite
        policy = menu.build(POLICIES, "optimizer.nonfinite", name)
        by_leaf = metrics["nonfinite_by_leaf"]
        first = self.diagnosis.first_bad(state, batch, step - 1, by_leaf)
        sentence = f"{new:,} gradient elements are not finite; first bad place: {first}"
        fields = {"count": new, "first_bad": first, "policy": name}
        self._alert(step, "nonfinite", f"{sentence}; {policy.done}", **fields)
        if policy.stops:
            raise Nonfinite(
                f"{sentence}, in step {step:,} of {self.run_dir.path}. The same command "
                "retries from the last checkpoint; --config.optimizer.nonfinite=skip "
                "--allow=optimizer.nonfinite skips the step."
            )

    def _alert(self, step: int, about: str, message: str, **fields: Any) -> None:
        nimg = step * self.batch_size
        advice = f". {ADVICE[about]}" if about in ADVICE else ""
        message += advice.removesuffix(".")
        self.run_dir.log("alert", step, nimg, about=about, message=message, **fields)
        self._say(step, message)

    def _say(self, step: int, message: str) -> None:
        if hosts.is_first():
            _log.warning("%s images: %s.", f"{step * self.batch_size:,}", message)

    def _probe(self, state: TrainState, step: int) -> TrainState:
        """Logs the held-out loss, with and without averaging, and the magnitudes.

        Returns:
            The state, in which a plateau may have reduced the rate.
        """
        nimg = step * self.batch_size
        average = self.trainer.step.fetch(state.emas[self.trainer.longest_average])
        params = self.trainer.step.fetch(state.params)
        moments = self.trainer.step.fetch(state.opt_state) if self.sharpness else None
        loss = self.heldout.loss(average) if hosts.is_first() else math.inf
        loss = hosts.agree(loss)[0]
        self.converged |= self.monitor.has_converged(loss, nimg)
        opt, duration_mimg = self.config.optimizer, self.config.training.duration_mimg
        run = Run(duration_mimg * 1e6, opt.batch_size)
        opt_state, self.log.rate_scale = plateau.observe(
            opt.schedule, state.opt_state, loss, nimg, run
        )
        state = state._replace(opt_state=opt_state)
        if not hosts.is_first():
            return state
        raw_loss = self.heldout.loss(params)
        losses = {"loss_per_element": loss, "raw_loss_per_element": raw_loss}
        curved = self._sharpness(params, moments, nimg)
        self.run_dir.log("heldout", step, nimg, **losses, **curved)
        magnitudes = self.heldout.magnitudes(params)
        self.run_dir.log("dynamics", step, nimg, **magnitudes)
        means = {
            f"{what} {place}": value["mean"]
            for what, places in magnitudes.items()
            for place, value in places.items()
        }
        for sentence in self.monitor.after_probe(means):
            self._alert(step, "magnitudes", sentence)
        for sentence in self.monitor.after_units(self.heldout.units(params)):
            self._alert(step, "units", sentence)
        for sentence in self.monitor.after_sharpness(curved.get("beyond_edge")):
            self._alert(step, "sharpness", sentence)
        return state

    def _evaluate(self, state: TrainState, step: int) -> None:
        """Logs the evaluators' results on samples from the longest average."""
        if self.config.training.evaluate_mimg == math.inf:
            return  # not even at the end
        average = self.trainer.step.fetch(state.emas[self.trainer.longest_average])
        if hosts.is_first():
            nimg = step * self.batch_size
            found = self._midway.evaluate(average, nimg)
            self.run_dir.log("evaluation", step, nimg, **found)

    @functools.cached_property
    def _midway(self) -> Midway:
        return Midway(self.config, self.run_dir.path, self.trainer.denoiser)

    def _sharpness(self, params: Params, opt_state: Any, nimg: int) -> dict[str, float]:
        """The loss's curvature, also relative to the edge of stability, if measured."""
        if self.sharpness is None:
            return {}
        found = {"sharpness": self.sharpness(params)}
        opt, duration_mimg = self.config.optimizer, self.config.training.duration_mimg
        moved = chain.momentum(opt, duration_mimg)
        beta1 = None if moved is None else float(moved(float(nimg)))
        if edge := stability.edge(opt, opt_state, beta1):
            rate = float(chain.learning_rate(opt, duration_mimg)(float(nimg)))
            curvature = self.sharpness(params, edge.scale)
            found["beyond_edge"] = curvature * rate * self.log.rate_scale / edge.limit
        return found

    def _snapshot(self, state: TrainState, step: int) -> None:
        """Stores every tracked average."""
        for name, average in self.trainer.averages(state, step).items():
            meta = snapshots.SnapshotMeta(
                profile=self.trainer.profiles[name],
                nimg=step * self.batch_size,
                update_interval=self.config.ema.update_every * self.batch_size,
                config_hash=self.run_dir.config_hash,
                dtype=self.config.ema.snapshot_dtype,
                base=self.run_dir.base,
            )
            place, gather = self.run_dir.snapshots, averaging.gather
            snapshots.write(place, average, meta, gather, hosts.is_first())

    def _thin(self, step: int) -> None:
        """Drops the snapshots that `ema.keep` does not keep.

        With every checkpoint, so that a run that resumes drops the same.
        """
        keep = self.config.ema.keep
        if isinstance(keep, All) or not hosts.is_first():
            return
        nimg = step * self.batch_size
        found = [
            each
            for each in snapshots.scan(self.run_dir.snapshots).snapshots
            if each.meta.nimg <= nimg
        ]
        # On the clock of the averages, as they are rebuilt.
        before = max((each.meta.before_nimg for each in found), default=0)
        stored = [
            (float(each.meta.nimg + before), each.meta.profile)
            for each in found
            if isinstance(each.meta.profile, PowerProfile)
        ]
        if not stored:
            return
        roundoff = max(each.unit_roundoff for each in found)
        best = self.monitor.best_nimg + before
        needed = [t for t, _ in stored if t <= best][-1:]
        dropped = keep.dropped(stored, roundoff, needed)
        for each in found:
            if each.meta.nimg + before in dropped:
                each.path.unlink()

    def best_snapshot(self, last: int) -> int:
        """The images at the snapshot of the best held-out loss; without one, `last`."""
        stored = snapshots.list_snapshots(self.run_dir.snapshots)
        times = [s.meta.nimg for s in stored if s.meta.nimg <= self.monitor.best_nimg]
        # There is no snapshot before the first step.
        return max(times, default=last)

    def _save(self, state: TrainState, step: int) -> None:
        extra = {
            "unlogged": self.log.unlogged,
            "monitor": self.monitor.state(),
            "converged": self.converged,
            "data": self.fingerprint,
        }
        self.checkpoints.save(step, self.trainer.step.global_arrays(state), extra)

    def _record_provenance(self, start: int) -> None:
        params = self.trainer.denoiser.model.shapes
        opt = self.config.optimizer
        table = groups.table(opt.groups, opt.alpha_ref, params) if opt.groups else []
        self.run_dir.record_provenance(
            nimg=start * self.batch_size,
            params=count_params(params),
            devices=[device.device_kind for device in jax.devices()],
            runtime=jax.devices()[0].client.platform_version,
            processes=jax.process_count(),
            data=self.fingerprint,
            seed=self.config.seed,
            **({"groups": [row._asdict() for row in table]} if table else {}),
        )
