"""The learning rate against the paper's numbers (Eq. 67, App. D)."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.optim import schedules

ALPHA, T_REF, RAMPUP, BATCH = 0.01, 70000, 10e6, 2048
# Optimizer step at batch 2048 -> rate, of ImageNet-512 size S.
PAPER = {0: 0.0, 2441: 0.004999, 70000: 0.01, 140000: 0.0070711, 2**20: 0.0025837}


def paper_rate(nimg):
    """Eq. 67 and App. D's ramp, in Python's float64."""
    decay = math.sqrt(max(nimg / (T_REF * BATCH), 1))
    return ALPHA / decay * min(nimg / RAMPUP, 1)


@pytest.fixture
def schedule():
    return schedules.inverse_sqrt(ALPHA, T_REF * BATCH, RAMPUP)


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


def test_infinite_t_ref_is_the_constant_rate_and_rampup_0_no_ramp():
    constant = schedules.inverse_sqrt(2e-4, math.inf, 0.0)
    for nimg in (0, 1, 2**31):
        assert float(constant(jnp.float32(nimg))) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (schedules.cosine, [1, 0.853553391, 0.5, 0.146446609, 0, 0]),
        (schedules.linear, [1, 0.75, 0.5, 0.25, 0, 0]),
    ],
)
def test_a_rate_that_ends_falls_to_0_and_stays_there(make, share):
    rate = make(2.0, 1000.0, 0.0)
    found = [float(rate(nimg)) for nimg in (0, 250, 500, 750, 1000, 1500)]
    assert found == pytest.approx([2 * s for s in share], abs=1e-6)
    ramped = make(2.0, 1000.0, 500.0)
    assert float(ramped(250)) == pytest.approx(found[1] / 2)
    assert float(ramped(750)) == pytest.approx(found[3])
