"""The learning rate against the paper's numbers (Eq. 67, App. D)."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_options import optimizer_config

from edm_jax.optim import chain, schedules

ALPHA, T_REF, RAMPUP, BATCH = 0.01, 70000, 10e6, 2048
# Optimizer step at batch 2048 -> rate, of ImageNet-512 size S.
PAPER = {0: 0.0, 2441: 0.004999, 70000: 0.01, 140000: 0.0070711, 2**20: 0.0025837}


def paper_rate(nimg):
    """Eq. 67 and App. D's ramp, in Python's float64."""
    decay = math.sqrt(max(nimg / (T_REF * BATCH), 1))
    return ALPHA / decay * min(nimg / RAMPUP, 1)


def make_rate(alpha_ref, schedule, rampup_nimg=0.0, duration_mimg=1.0):
    """The rate of an optimizer's settings, by images."""
    ramp = {"name": "linear", "rampup_mimg": rampup_nimg / 1e6}
    opt = optimizer_config(
        batch_size=BATCH,
        alpha_ref=alpha_ref,
        schedule=schedule,
        warmup=ramp if rampup_nimg else {"name": "none"},
    )
    return chain.learning_rate(opt, duration_mimg)


@pytest.fixture
def schedule():
    return make_rate(ALPHA, {"name": "inverse_sqrt", "t_ref": T_REF}, RAMPUP)


@pytest.mark.parametrize(("step", "rate"), PAPER.items())
def test_rate_is_the_papers(schedule, step, rate):
    assert float(schedule(step * BATCH)) == pytest.approx(rate, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize(("step", "rate"), PAPER.items())
def test_rate_by_optimizer_step_is_the_papers(schedule, step, rate):
    count = jnp.asarray(step, jnp.int32)
    by_step = schedules.per_step(schedule, BATCH)
    assert float(by_step(count)) == pytest.approx(rate, rel=1e-4, abs=1e-12)


def test_first_step_has_rate_0_and_the_second_the_ramps_first_value(schedule):
    by_step = schedules.per_step(schedule, BATCH)
    assert float(by_step(jnp.asarray(0))) == 0.0
    assert float(by_step(jnp.asarray(1))) == pytest.approx(ALPHA * BATCH / RAMPUP)


@pytest.mark.parametrize("batch", [1, 32, 512, 2048, 4096])
def test_rate_at_equal_images_does_not_depend_on_the_batch_size(schedule, batch):
    by_step = schedules.per_step(schedule, batch)
    for nimg in (2**20, 2**23, 2**28, 2**31):
        count = jnp.asarray(min(nimg // batch, 2**31 - 1), jnp.int32)
        assert float(by_step(count)) == pytest.approx(paper_rate(nimg), rel=1e-6)


def test_images_beyond_int32_neither_overflow_nor_lose_the_rate(schedule):
    by_step = schedules.per_step(schedule, BATCH)
    for nimg in (2**31 - BATCH, 2**31, 2**31 + BATCH, 2**33):
        rate = float(by_step(jnp.asarray(nimg // BATCH, jnp.int32)))
        assert rate == pytest.approx(paper_rate(nimg), rel=1e-6, abs=0)


def test_ramp_is_exact_though_it_is_no_whole_number_of_steps(schedule):
    last, first = 10_000_000 // BATCH, 10_000_000 // BATCH + 1
    assert (10_000_000 % BATCH) != 0
    rates = [float(schedule(step * BATCH)) for step in (last, first)]
    np.testing.assert_allclose(rates, [ALPHA * last * BATCH / RAMPUP, ALPHA], rtol=1e-6)


@pytest.mark.parametrize(
    "schedule", [{"name": "constant"}, {"name": "inverse_sqrt", "t_ref": math.inf}]
)
def test_a_constant_rate_without_a_ramp_is_alpha_ref(schedule):
    constant = make_rate(2e-4, schedule)
    for nimg in (0, 1, 2**31):
        assert float(constant(jnp.float32(nimg))) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("cosine", [1, 0.853553391, 0.5, 0.146446609, 0, 0]),
        ("linear", [1, 0.75, 0.5, 0.25, 0, 0]),
    ],
)
def test_a_rate_that_ends_falls_to_its_final_fraction_and_stays_there(name, share):
    for final in (0.0, 0.1):
        settings = {"name": name, "final": final, "end_mimg": 0.001}
        rate = make_rate(2.0, settings)
        found = [float(rate(nimg)) for nimg in (0, 250, 500, 750, 1000, 1500)]
        expected = [2 * (final + (1 - final) * s) for s in share]
        assert found == pytest.approx(expected, abs=1e-6)
    ramped = make_rate(2.0, settings, 500.0)
    assert float(ramped(250)) == pytest.approx(found[1] / 2)
    assert float(ramped(750)) == pytest.approx(found[3])


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_decay_ends_with_the_run_unless_the_config_says_otherwise(name):
    for duration_mimg in (0.5, 2.0):
        rate = make_rate(ALPHA, {"name": name}, duration_mimg=duration_mimg)
        middle, end = (float(rate(f * duration_mimg * 1e6)) for f in (0.5, 1))
        assert middle == pytest.approx(ALPHA / 2, rel=1e-5)
        assert end == pytest.approx(0, abs=1e-7)
    earlier = make_rate(ALPHA, {"name": name, "end_mimg": 0.1}, duration_mimg=2.0)
    assert float(earlier(0.05e6)) == pytest.approx(ALPHA / 2, rel=1e-5)
