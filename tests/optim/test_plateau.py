"""Reduce on plateau: when it fires, compared with Optax's, and in the chain."""

import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import contrib
from optimizer_options import optimizer_config
from shared_steps import shared_steps

import configs
from edm_jax.optim import chain, plateau
from edm_jax.optim import finder as curves
from edm_jax.optim.timing import Run
from edm_jax.runs.directory import RunDir
from edm_jax.train import finder, loop

PROBE = 100  # images between held-out losses
RUN = Run(10_000.0, 10)


def scales(entry, losses):
    state = entry.link().init({})
    found = []
    for i, loss in enumerate(losses):
        state = entry.observed(state, loss, i * PROBE, RUN)
        found.append(float(state.scale))
    return found


def test_it_fires_when_nothing_was_better_for_its_patience():
    entry = plateau.Plateau(multiplier=0.5, patience_mimg=3 * PROBE / 1e6, lowest=0.2)
    losses = [5, 4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    expected = [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, *[0.2] * 4]
    assert scales(entry, losses) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patience", "cooldown"), [*itertools.product((1, 2, 4), (0, 2))]
)
def test_counted_in_probes_it_is_optaxs(patience, cooldown):
    rng = np.random.default_rng(patience + 10 * cooldown)
    losses = np.round(3 + np.exp(-np.arange(60) / 9) + 0.1 * rng.random(60), 4)
    theirs = contrib.reduce_on_plateau(
        0.5, patience, rtol=1e-4, cooldown=cooldown, min_scale=0.01
    )
    params, found = {"w": jnp.ones(1)}, []
    state = theirs.init(params)
    observe = jax.jit(lambda state, loss: theirs.update(params, state, value=loss)[1])
    for loss in losses:
        state = observe(state, loss)
        found.append(float(state.scale))
    entry = plateau.Plateau(
        patience_mimg=patience * PROBE / 1e6, cooldown_mimg=cooldown * PROBE / 1e6
    )
    assert scales(entry, losses) == pytest.approx(found)
    assert found[-1] < 1


def test_the_chains_state_takes_the_loss_and_scales_every_update():
    opt = optimizer_config(
        method={"name": "sgd", "momentum": 0.0},
        schedule={"name": "plateau", "patience_mimg": 1e-6},
    )
    tx = chain.make_optimizer(opt, 1.0)
    params = {"w": jnp.ones(2)}
    grads, state = {"w": jnp.ones(2)}, tx.init(params)
    run = Run(1e6, 1)
    for nimg, loss, expected in ((0, 2.0, 1.0), (1, 2.0, 0.5), (2, 2.0, 0.25)):
        state, scale = plateau.observe(opt.schedule, state, loss, nimg, run)
        assert scale == plateau.rate_scale(state) == expected
        updates, state = jax.jit(tx.update)(grads, state, params)
        np.testing.assert_allclose(updates["w"], -0.1 * expected, rtol=1e-6)
    assert plateau.rate_scale(tx.init(params)) == 1


OVERRIDES = {
    "network.channel_mult": "(1,)",
    "optimizer.schedule.name": "plateau",
    "optimizer.schedule.patience_mimg": "1e-6",
    "optimizer.schedule.threshold": "0.9",
    "training.probe_mimg": "0.00016",
    "training.log_mimg": "0.00008",
    "training.checkpoint_mimg": "0.00016",
    "training.keep_checkpoints": "9",
}


def train(path):
    """A run in which no probe counts as an improvement, so that each halves the rate."""
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny", OVERRIDES)
    run = RunDir(path, config)
    loop.train(config, run)
    return run


def without_speed(run):
    kinds = ("train", "heldout", "dynamics", "alert")
    return {kind: run.records(kind) for kind in kinds}


@pytest.mark.slow
def test_a_run_reduces_its_rate_logs_it_and_resumes_anywhere_to_the_bit(tmp_path):
    with shared_steps():
        whole = train(tmp_path / "whole")
        check_one_device(whole, tmp_path)
    with shared_steps(devices=2):
        two = train(tmp_path / "two")
    for one, other in zip(*(run.records("train") for run in (whole, two)), strict=True):
        assert one["lr"] == other["lr"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def check_one_device(whole, tmp_path):
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny", OVERRIDES)
    rates = {record["nimg"]: record["lr"] for record in whole.records("train")}
    scheduled = chain.learning_rate(config.optimizer, config.training.duration_mimg)
    batch = config.optimizer.batch_size
    scales = [round(lr / float(scheduled(n - batch)), 4) for n, lr in rates.items()]
    assert scales == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    for step in (10, 30):  # before and after it was first reduced
        place = tmp_path / str(step)
        shutil.copytree(whole.path, place)
        for later in range(step + 10, 50, 10):
            shutil.rmtree(place / "checkpoints" / str(later))
        resumed = train(place)
        assert without_speed(resumed) == without_speed(whole)

    # The finder takes up such a run, at the rates of its grid.
    found = finder.find(
        config, curves.grid(1e-8, 1.0, 12), 1, whole.checkpoints
    ).curves[0]
    assert found.losses[-1] > 2 * found.losses[0]
