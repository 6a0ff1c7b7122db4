"""Claims about what the training log makes of the clock."""

import types

import numpy as np
import pytest

from edm_jax.train import log


class Clock:
    """Seconds that a test lets pass."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(log, "time", made)
    return made


def make_log(monkeypatch, records):
    monkeypatch.setattr(log.flops, "train_flops", lambda model: 1.0)
    monkeypatch.setattr(log.chain, "learning_rate", lambda *_: lambda nimg: 0.1)
    run = types.SimpleNamespace(
        set_status=lambda **_: None,
        log=lambda kind, *place, **fields: records.append((kind, fields)),
    )
    name = types.SimpleNamespace
    config = name(
        optimizer=name(batch_size=10, groups=()),
        training=name(duration_mimg=1.0),
        network=name(compute_dtype="float32"),
        total_steps=9,
    )
    step = name(fetch=lambda metrics: metrics)
    trainer = name(config=config, denoiser=name(model=None), step=step)
    return log.TrainingLog(run, trainer, lambda *_: None)


METRICS = {
    "nonfinite": np.int32(0),
    "nonfinite_by_leaf": np.zeros(1),
    "sigma": {"share": np.ones(1), "loss": np.ones(1), "logvar": np.ones(1)},
}


def test_the_wait_for_input_is_a_fraction_of_the_time_that_is_measured(
    monkeypatch, clock
):
    records = []
    made = make_log(monkeypatch, records)
    # Of every step of 2 s, 0.5 s pass until its batch is there; the first waits longer.
    for step, wait in enumerate([60.0, 0.5, 0.5, 0.5, 0.5]):
        clock.now += wait
        made.waited(wait)
        clock.now += 1.5
        made.dispatched(step, METRICS, due=step == 2)
    (speed,) = [fields for kind, fields in records if kind == "speed"]
    assert speed["input_wait"] == pytest.approx(0.25)
    assert speed["images_per_s"] == pytest.approx(5.0)
    # A probe takes time, and its wait is not counted.
    made.restart_clock()
    clock.now += 100
    made.waited(90.0)
    made.dispatched(5, METRICS, due=False)
    clock.now += 2
    made.waited(1.0)
    made.dispatched(6, METRICS, due=True)
    clock.now += 2
    made.waited(0.5)
    made.dispatched(7, METRICS, due=False)
    speed = [fields for kind, fields in records if kind == "speed"][-1]
    assert speed["input_wait"] == pytest.approx(2.0 / 6)
