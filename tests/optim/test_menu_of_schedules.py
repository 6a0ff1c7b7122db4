"""Every schedule and warm-up against its source's formula, derived again in Python floats."""

import itertools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edm_jax.optim import schedules, warmups
from edm_jax.optim.timing import Run

T, BATCH = 40_000.0, 50
RUN = Run(T, BATCH)
# 1,000 points, past the end as well; none lies on a boundary, whose side rounding decides.
POINTS = [1.2 * T * (i + 0.37) / 1000 for i in range(1000)]


def ended(n, end=T):
    return min(n / end, 1)


def cosine(t, final=0.0):
    return final + (1 - final) * (1 + math.cos(math.pi * t)) / 2


def restarts(n, first, m, decay, final):
    if n >= T:
        return final
    i, start, length = 0, 0.0, first
    while n >= start + length:
        i, start, length = i + 1, start + length, length * m
    peak = max(decay**i, final)
    return final + (peak - final) * (1 + math.cos(math.pi * (n - start) / length)) / 2


def triangle(n, half):
    """Smith's Sec. 3.2, as in the authors' code."""
    cycle = math.floor(1 + n / (2 * half))
    return max(0, 1 - abs(n / half - 2 * cycle + 1)), cycle


def cyclical(n, half, low, mode, gamma=0.5):
    height, cycle = triangle(n, half)
    by_mode = {
        "triangular": 1,
        "triangular2": 1 / 2 ** (cycle - 1),
        "exp_range": gamma ** (n / (2 * half)),
    }
    return low + (1 - low) * height * by_mode[mode]


def one_cycle(n, rise, initial, final, linear=False, three=False):
    low = 1 / initial
    phases = [(0, low), (rise, 1.0), *([(2 * rise, low)] * three), (1, low / final)]
    t = ended(n)
    for (a, start), (b, stop) in itertools.pairwise(phases):
        if t <= b:
            p = (t - a) / (b - a)
            p = p if linear else (1 - math.cos(math.pi * p)) / 2
            return start + (stop - start) * p
    raise AssertionError


def stable_decay(n, decay, tail, final):
    p = max(0, (ended(n) - (1 - decay)) / decay)
    shape = {
        "linear": 1 - p,
        "cosine": (1 + math.cos(math.pi * p)) / 2,
        "sqrt": 1 - math.sqrt(p),
    }[tail]
    return final + (1 - final) * shape


def inverse_sqrt(n, t_ref):
    return 1 / math.sqrt(max(n / BATCH / t_ref, 1))


def warmed(n, warmup, after):
    """diffusers' linear warm-up, then after(progress)."""
    return n / warmup if n < warmup else after((n - warmup) / (T - warmup))


WARM = {"warmup_mimg": 0.01}
TAILS = ("linear", "cosine", "sqrt")
# (name, fields, the formula)
CASES = [
    ("constant", {}, lambda n: 1.0),
    ("inverse_sqrt", {"t_ref": 90.0}, lambda n: inverse_sqrt(n, 90)),
    (
        "inverse_sqrt_cooldown",
        {"t_ref": 90.0, "cooldown": 0.3},
        lambda n: inverse_sqrt(n, 90) * min(1, (1 - ended(n)) / 0.3),
    ),
    ("cosine", {"final": 0.1}, lambda n: cosine(ended(n), 0.1)),
    ("cosine", {"end_mimg": 0.03}, lambda n: cosine(ended(n, 30_000))),
    ("linear", {"final": 0.2}, lambda n: 0.2 + 0.8 * (1 - ended(n))),
    (
        "polynomial",
        {"final": 0.1, "power": 3.0},
        lambda n: 0.1 + 0.9 * (1 - ended(n)) ** 3,
    ),
    ("polynomial", {"power": 0.5}, lambda n: math.sqrt(1 - ended(n))),
    (
        "step",
        {"boundaries_mimg": (0.01, 0.025), "multiplier": 0.2},
        lambda n: 0.2 ** ((n >= 10_000) + (n >= 25_000)),
    ),
    (
        "step",
        {"every_mimg": 0.007, "multiplier": 0.5},
        lambda n: 0.5 ** math.floor(n / 7000),
    ),
    ("step", {}, lambda n: 0.1 ** math.floor(n / (T / 3))),
    ("exponential", {"multiplier": 0.05}, lambda n: 0.05 ** (n / T)),
    (
        "exponential",
        {"multiplier": 0.5, "every_mimg": 0.006, "staircase": True, "final": 0.1},
        lambda n: max(0.5 ** math.floor(n / 6000), 0.1),
    ),
    ("cosine_restarts", {}, lambda n: restarts(n, T / 4, 1, 1, 0)),
    (
        "cosine_restarts",
        {"cycle_mimg": 0.003, "multiplier": 2.0, "decay": 0.7, "final": 0.05},
        lambda n: restarts(n, 3000, 2, 0.7, 0.05),
    ),
    (
        "cosine_restarts",
        {"cycle_mimg": 0.003, "multiplier": 1.5, "decay": 0.9},
        lambda n: restarts(n, 3000, 1.5, 0.9, 0),
    ),
    *(
        (
            "cyclical",
            {"half_mimg": 0.004, "low": 0.2, "mode": mode, "gamma": 0.8},
            lambda n, mode=mode: cyclical(n, 4000, 0.2, mode, 0.8),
        )
        for mode in ("triangular", "triangular2", "exp_range")
    ),
    ("one_cycle", {}, lambda n: one_cycle(n, 0.3, 25, 1e4)),
    (
        "one_cycle",
        {"rise": 0.4, "initial_div": 10.0, "final_div": 100.0, "three_phase": True},
        lambda n: one_cycle(n, 0.4, 10, 100, three=True),
    ),
    (
        "one_cycle",
        {"shape": "linear", "three_phase": True},
        lambda n: one_cycle(n, 0.3, 25, 1e4, linear=True, three=True),
    ),
    *(
        (
            "warmup_stable_decay",
            {"decay": 0.25, "tail": tail, "final": 0.02},
            lambda n, tail=tail: stable_decay(n, 0.25, tail, 0.02),
        )
        for tail in TAILS
    ),
    ("lora_constant", {}, lambda n: 1.0),
    ("lora_constant_with_warmup", WARM, lambda n: min(n / 10_000, 1)),
    ("lora_linear", WARM, lambda n: warmed(n, 10_000, lambda p: max(1 - p, 0))),
    ("lora_cosine", WARM, lambda n: warmed(n, 10_000, cosine)),
    (
        "lora_cosine_with_restarts",
        WARM | {"num_cycles": 3},
        lambda n: warmed(n, 10_000, lambda p: cosine(3 * p % 1) if p < 1 else 0),
    ),
    (
        "lora_polynomial",
        WARM | {"power": 2.0, "lr_end": 0.1},
        lambda n: warmed(n, 10_000, lambda p: 0.1 + 0.9 * max(1 - p, 0) ** 2),
    ),
    (
        "optax",
        {
            "call": "exponential_decay(init_value=1.0, transition_steps=9000, decay_rate=.5)"
        },
        lambda n: 0.5 ** (n / 9000),
    ),
]


def factors(name, fields, points=POINTS, run=RUN):
    entry = schedules.SCHEDULES[name](**fields)
    nimg = jnp.asarray(points, jnp.float32)
    # One at a time, as a step asks: what a schedule does need not broadcast.
    traced = jnp.vectorize(lambda n: entry.factor(n, run))
    return np.asarray(traced(nimg), np.float64)


def near(found, expected):
    """float32's cosine at pi is -1 to within 1e-7 of the peak, not of the result."""
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "fields", "formula"), CASES)
def test_a_schedule_is_its_sources_formula(name, fields, formula):
    points = [float(np.float32(n)) for n in POINTS]
    near(factors(name, fields), [formula(n) for n in points])


def test_the_cases_name_every_schedule():
    # The plateau's factor is not a function of the images; see test_plateau.
    assert {name for name, *_ in CASES} == set(schedules.SCHEDULES) - {"plateau"}


WARMUP_CASES = [
    ("none", {}, lambda p: 1.0),
    ("linear", {}, lambda p: p),
    ("linear", {"start": 0.25}, lambda p: 0.25 + 0.75 * p),
    ("cosine", {"start": 0.1}, lambda p: 0.1 + 0.9 * (1 - math.cos(math.pi * p)) / 2),
    ("exponential", {"start": 1e-3}, lambda p: 1e-3 ** (1 - p)),
]


@pytest.mark.parametrize(("name", "fields", "formula"), WARMUP_CASES)
def test_a_warmup_is_its_formula_and_stays_at_1(name, fields, formula):
    rampup = {} if name == "none" else {"rampup_mimg": 0.01}
    entry = warmups.WARMUPS[name](**fields, **rampup)
    points = [float(np.float32(n)) for n in (0.0, *POINTS)]
    found = [float(entry.factor(jnp.float32(n))) for n in points[::7]]
    expected = [formula(min(n / 10_000, 1)) for n in points[::7]]
    near(found, expected)
    assert found[0] == pytest.approx(fields.get("start", float(name == "none")))
    assert float(entry.factor(jnp.float32(T))) == 1.0


def test_the_cases_name_every_warmup():
    assert {name for name, *_ in WARMUP_CASES} == set(warmups.WARMUPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields", "theirs"),
    [
        (
            "cosine",
            {"final": 0.1},
            optax.cosine_decay_schedule(1.0, int(T), alpha=0.1),
        ),
        ("linear", {"final": 0.1}, optax.linear_schedule(1.0, 0.1, int(T))),
        ("one_cycle", {}, optax.cosine_onecycle_schedule(int(T), 1.0)),
        (
            "cosine_restarts",
            {"cycle_mimg": 0.01, "decay": 0.5},
            optax.sgdr_schedule(
                [
                    {
                        "init_value": 0.5**i,
                        "peak_value": 0.5**i,
                        "decay_steps": 10_000,
                        "warmup_steps": 0,
                        "end_value": 0.0,
                    }
                    for i in range(4)
                ]
            ),
        ),
    ],
)
def test_where_conventions_agree_optax_has_the_same_values(name, fields, theirs):
    points = POINTS[:830]  # sgdr's last cycle is over at T, where it stays
    expected = jax.vmap(theirs)(jnp.asarray(points, jnp.float32))
    near(factors(name, fields, points), expected)


@pytest.mark.slow
def test_the_first_and_last_values_are_those_that_the_docstrings_give():
    def ends(name, **fields):
        return factors(name, fields, [0.0, T])

    near(ends("cosine", final=0.1), [1, 0.1])
    near(ends("warmup_stable_decay"), [1, 0])
    near(ends("one_cycle"), [1 / 25, 1 / 25e4])
    near(ends("cosine_restarts", final=0.2), [1, 0.2])
    near(ends("inverse_sqrt_cooldown"), [1, 0])
    near(ends("cyclical", low=0.3), [0.3, 0.3])


def test_torchs_one_cycle_is_one_step_ahead_at_the_end():
    """OneCycleLR(max_lr=1, total_steps=10): its formula, by hand, beside ours.

    Its phases end at steps .3 * 10 - 1 = 2 and 9, so that step 9 of 10 has the last value.
    """
    torch = [one_cycle_of_torch(n) for n in range(10)]
    assert torch[2] == pytest.approx(1.0)
    assert torch[9] == pytest.approx(4e-6)
    ours = factors("one_cycle", {}, [n * T / 10 for n in range(10)])
    assert ours[3] == pytest.approx(1.0)
    assert ours[9] > 0.04


def one_cycle_of_torch(n, total=10, rise=0.3):
    up, down = rise * total - 1, total - 1
    start, stop, p = (
        (1 / 25, 1.0, n / up) if n <= up else (1.0, 4e-6, (n - up) / (down - up))
    )
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * p))


def test_diffusers_restarts_measure_progress_from_the_end_of_the_warmup():
    """Its value after 100 of 1,000 steps' warm-up and half the rest, 3 cycles."""
    progress = (550 - 100) / (1000 - 100)
    theirs = (1 + math.cos(math.pi * ((3 * progress) % 1.0))) / 2
    assert theirs == pytest.approx(0.5)
    ours = factors("cosine_restarts", {"cycle_mimg": T / 3e6}, [0.55 * T])
    assert ours[0] == pytest.approx((1 + math.cos(math.pi * 0.65)) / 2, rel=1e-5)


GOLDEN = Path(__file__).parents[1] / "oracles" / "lora_schedules.json"


@pytest.mark.parametrize(
    "case",
    json.loads(GOLDEN.read_text())["cases"],
    ids=lambda case: f"{case['name']}-{case['warmup']}",
)
def test_the_schedules_of_lora_trainers_are_diffusers(case):
    """At every step, and after the last; stored by tests/oracles/lora_schedules.py."""
    batch, steps, rate = 8, case["steps"], case["rate"]
    fields = case["given"] | {"warmup_mimg": case["warmup"] * batch / 1e6}
    if case["name"] == "constant":
        del fields["warmup_mimg"]
    run = Run(steps * batch, batch, rate)
    points = np.arange(len(case["rates"])) * batch
    ours = rate * factors(f"lora_{case['name']}", fields, points, run)
    np.testing.assert_allclose(ours, case["rates"], rtol=2e-6, atol=2e-7 * rate)


def test_beta1_moves_inversely_to_the_rate():
    entry = schedules.OneCycle(beta1=(0.85, 0.95), shape="linear")
    found = [float(entry.momentum(jnp.float32(t * T), RUN)) for t in (0, 0.15, 0.3, 1)]
    assert found == pytest.approx([0.95, 0.9, 0.85, 0.95])
    entry = schedules.OneCycle(shape="linear", three_phase=True)
    found = [float(entry.momentum(jnp.float32(t * T), RUN)) for t in (0.45, 0.6, 0.9)]
    assert found == pytest.approx([0.9, 0.95, 0.95])
    assert schedules.Cyclical().momentum(jnp.float32(0), RUN) is None
    entry = schedules.Cyclical(half_mimg=0.004, beta1=(0.8, 0.9))
    found = [float(entry.momentum(jnp.float32(n), RUN)) for n in (0, 2000, 4000, 8000)]
    assert found == pytest.approx([0.9, 0.85, 0.8, 0.9])


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_a_schedule_is_a_function_of_the_images_alone(name):
    """Whatever the batch size; only Eq. 67's t_ref is in steps, by definition."""
    fields = {"t_ref": 1e9} if name.startswith("inverse_sqrt") else {}
    points = [0.0, 6400.0, 12_800.0, 25_600.0, T]
    by_batch = [
        factors(name, fields, points, Run(T, batch)).tolist() for batch in (1, 50, 6400)
    ]
    assert by_batch[0] == by_batch[1] == by_batch[2]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: schedules.Step((0.3, 0.2)), "must ascend"),
        (lambda: schedules.Step((0.3,), every_mimg=0.1), "leave every_mimg at 0"),
        (lambda: schedules.Step((0.3, -1.0)), "must be positive"),
        (lambda: schedules.Exponential(2.0), "at most 1"),
        (lambda: schedules.CosineRestarts(multiplier=0.5), "at least 1"),
        (lambda: schedules.OneCycle(rise=0.6, three_phase=True), "less than 0.5"),
        (lambda: schedules.OneCycle(beta1=(0.9, 0.8)), "lowest and the highest"),
        (lambda: schedules.WarmupStableDecay(decay=0.0), r"in \(0, 1\]"),
        (lambda: schedules.WarmupStableDecay(tail="cubic"), "must be one of"),
        (lambda: schedules.OptaxSchedule("cosin_decay_schedule()"), "Did you mean"),
        (lambda: schedules.OptaxSchedule("constant_schedule(wert=1)"), "no argument"),
        (lambda: schedules.OptaxSchedule("constant_schedule(1 + )"), "is not a call"),
        (lambda: schedules.OptaxSchedule("linear_schedule()"), "does not make"),
        (lambda: warmups.LinearWarmup(0.0), "positive"),
        (lambda: warmups.ExponentialWarmup(1.0, start=0.0), "above 0"),
    ],
)
def test_a_wrong_field_gets_one_sentence(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_run_is_named():
    def misfits(entry):
        return list(entry.misfits(RUN))

    assert "longer than the run" in misfits(warmups.LinearWarmup(0.05))[0]
    assert not misfits(warmups.LinearWarmup(T / 1e6))
    assert "not inside the run" in misfits(schedules.Step((0.01, 0.04)))[0]
    assert (
        "less than one batch" in misfits(schedules.CosineRestarts(cycle_mimg=1e-6))[0]
    )
