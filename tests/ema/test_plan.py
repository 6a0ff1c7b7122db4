"""Errors planned before training are those that reconstructions then have."""

import math
import sys

import numpy as np
import pytest

import configs
from edm_jax import ema
from edm_jax.cost import averages
from edm_jax.ema import plan
from experiments import cli, plan_averages

STEPS, BATCH = 768, 2.0
END = STEPS * BATCH
LENGTHS = (0.02, 0.03, 0.07, 0.15, 0.2, 0.25)


def measured(path, planned):
    """RMS differences of reconstructions from averages of every weight, by length."""
    averages = {s: np.zeros(path.shape[1]) for s in planned.sigma_rels}
    trees, every = [], round(planned.update_interval / BATCH)
    for i, weights in enumerate(path, 1):
        for s, average in averages.items():
            if i % every == 0:
                gamma = ema.gamma_from_sigma_rel(s)
                average += ema.power_weight(every, i, gamma) * (weights - average)
            if i * BATCH in planned.times:
                trees.append((i * BATCH, s, {"w": average.copy()}))
    made = ema.reconstruct_trees(trees, LENGTHS, max_error=math.inf)
    found = {}
    for s in LENGTHS:
        ends = np.arange(STEPS + 1) / STEPS
        direct = np.diff(ends ** (ema.gamma_from_sigma_rel(s) + 1)) @ path
        difference = made[s].params["w"] - direct
        found[s] = np.sqrt(np.mean([difference**2, direct**2], axis=1))
    return found


@pytest.mark.parametrize(
    ("times", "every"),
    [
        (plan.uniform(END, 32), 1),
        (plan.uniform(END, 32), 4),
        (tuple(t for t in plan.uniform(END, 48) if t % 256 == 0 or t > 1000), 1),
    ],
    ids=["uniform", "every 4 steps", "thinned"],
)
def test_the_error_of_a_random_walk_is_the_planned_one(times, every):
    steps = np.random.default_rng(0).standard_normal((STEPS, 1500))
    path = np.cumsum(steps, axis=0) / math.sqrt(STEPS)
    planned = plan.Plan((0.05, 0.1), times, "float32", BATCH * every, BATCH)
    found = measured(path, planned)
    for each in plan.predict(planned, LENGTHS):
        assert found[each.sigma_rel][0] == pytest.approx(each.walk_error, rel=0.1)


def test_the_error_of_white_noise_is_the_planned_fit_error():
    path = np.random.default_rng(0).standard_normal((STEPS, 1000))
    planned = plan.Plan((0.05, 0.1), plan.uniform(END, 24), "float32", BATCH, BATCH)
    found = measured(path, planned)
    for each in plan.predict(planned, LENGTHS):
        error, size = found[each.sigma_rel]
        assert error / size == pytest.approx(each.fit_error, rel=0.1)


def test_what_is_predicted_is_what_reconstruct_prints():
    planned = plan.Plan((0.05, 0.1), plan.geometric(END, 16), "float16")
    assert planned.times[-1] == END and planned.times[0] == pytest.approx(END / 64)
    ratios = np.diff(np.log(planned.times))
    np.testing.assert_allclose(ratios, ratios[0])
    early = planned.times[8]
    targets = [(early, ema.PowerProfile(s)) for s in LENGTHS]
    stored = [(t, ema.PowerProfile(s)) for t in planned.times[:9] for s in (0.05, 0.1)]
    solutions = ema.solve(stored, targets, 2.0**-11)
    for each, solution in zip(
        plan.predict(planned, LENGTHS, early), solutions, strict=True
    ):
        assert each.fit_error == pytest.approx(solution.fit_error)
        assert each.rounding_error == pytest.approx(solution.rounding_error)
        assert each.error == pytest.approx(solution.error)
    assert planned.disk_bytes(1000) == 16 * 2 * 2000


@pytest.mark.slow  # a second
def test_a_proposal_keeps_the_accuracy_and_less_of_it_would_not():
    found = plan.propose(1e6, 0.04, 0.15, 0.05, ("float32",), lengths=(0.05, 0.1, 0.15))
    assert found is not None
    wanted = np.geomspace(0.04, 0.15, 25)
    errors = [each.error for each in plan.predict(found, wanted)]
    assert max(errors) < 0.05 * 1.02  # between the seven lengths that it checks
    spacing = plan.uniform if found.times[1] == 2 * found.times[0] else plan.geometric
    less = plan.Plan(found.sigma_rels, spacing(1e6, len(found.times) - 1))
    assert max(each.error for each in plan.predict(less, wanted)) > 0.05


def test_an_impossible_proposal_is_none():
    assert (
        plan.propose(1e6, 0.001, 0.28, 1e-9, spacings=["uniform"], lengths=[]) is None
    )


@pytest.mark.parametrize("snapshot_mimg", ["0.0001", "0.00007", "0.00064", "1"])
def test_the_times_of_a_config_are_those_of_its_snapshots(snapshot_mimg):
    config = configs.load(
        f"{configs.letter_path('g')}:digits-tiny",
        {"training.snapshot_mimg": snapshot_mimg, "ema.update_every": "3"},
    )
    batch, total = config.optimizer.batch_size, config.total_steps
    interval = config.training.snapshot_mimg * 1e6
    due = [
        step * batch
        for step in range(1, total + 1)
        if step * batch // interval > (step - 1) * batch // interval or step == total
    ]
    planned = averages.plan_of(config)
    assert list(planned.times) == due
    assert (planned.update_interval, planned.batch_size) == (3 * batch, batch)


def test_a_line_says_what_the_snapshots_of_a_config_express():
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny")
    planned = averages.plan_of(config)
    low, high = plan.reach(planned, ema.MAX_ERROR)
    said = f"express {low:.3g} to {high:.3g} within 0.1."
    assert averages.line(config).endswith(said)
    errors = [e.error for e in plan.predict(planned, [low, high, low / 1.1])]
    assert max(errors[:2]) <= ema.MAX_ERROR < errors[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan.Plan((), (1.0,)), "one or more lengths"),
        (lambda: plan.Plan((0.1, 0.1), (1.0,)), "each once"),
        (lambda: plan.Plan((0.5,), (1.0,)), "choose a relative EMA length"),
        (lambda: plan.Plan((0.1,), ()), "must rise, from above 0"),
        (lambda: plan.Plan((0.1,), (2.0, 1.0)), "must rise"),
        (lambda: plan.Plan((0.1,), (1.0, math.inf)), "must rise"),
        (lambda: plan.Plan((0.1,), (1.0,), "int8"), "choose one of float32"),
        (lambda: plan.Plan((0.1,), (1.0,), "float32", 1, 2), "a batch, 2, or more"),
        (lambda: plan.predict(plan.Plan((0.1,), (2.0,)), [0.1], 1.0), "the first time"),
        (lambda: plan.spaced("random", 1.0, 4), "choose 'uniform' or 'geometric'"),
        (
            lambda: plan.propose(1.0, 0.2, 0.1, 0.1),
            "The range from 0.2 to 0.1 is empty",
        ),
        (lambda: plan.propose(1.0, 0.1, 0.2, 0.0), "choose a number above 0"),
        (lambda: plan.propose(1.0, 0.1, 0.2, 0.1, since=0.0), "choose a fraction"),
    ],
)
def test_an_impossible_plan_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def command(monkeypatch, *arguments):
    config = f"--config={configs.letter_path('g')}:digits-tiny"
    monkeypatch.setattr(sys, "argv", ["plan_averages", config, *arguments])
    cli.run(plan_averages.main)


@pytest.mark.slow  # it draws
def test_the_command_prints_and_draws_the_plan(monkeypatch, capsys, tmp_path):
    options = ["--sigma_rel=0.05,0.1", "--at=0.1,0.5,1", f"--draw={tmp_path}/p.png"]
    command(monkeypatch, *options, "--propose", "--accuracy=0.2")
    printed = capsys.readouterr().out
    assert "snapshots of sigma_rel 0.05, 0.1 in float32" in printed
    assert "At 640 images, 100% of the run" in printed and "Proposed are" in printed
    assert "--config.ema.sigma_rels=" in printed
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--at=2", "--at above 0 and up to 1"),
        ("--sigma_rel=", "--sigma_rel and --at need numbers"),
        ("--draw=x.gif", "end the name in .png"),
        ("--sigma_rel=0.5", "choose a relative EMA length"),
    ],
)
def test_the_command_refuses_in_a_sentence(monkeypatch, capsys, option, message):
    with pytest.raises(SystemExit):
        command(monkeypatch, option)
    assert message in capsys.readouterr().err
