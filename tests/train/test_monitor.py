"""What a monitor reports, and what it ignores."""

import json
import math

import numpy as np
import pytest

from edm_jax.train.monitor import ADVICE, Monitor

FACTOR, GROWTH, PATIENCE = 3.0, 10.0, 1000


def monitor(**bounds):
    fields = {
        "loss_factor": FACTOR,
        "growth": GROWTH,
        "patience_nimg": PATIENCE,
    }
    return Monitor(**fields | bounds)


def noisy(count, sigma=0.2, seed=0):
    """Lognormal losses around 1."""
    return np.exp(sigma * np.random.default_rng(seed).standard_normal(count)).tolist()


def alerts(watcher, losses):
    """{index in `losses`: the alert}"""
    said = {i: watcher.after_step(loss) for i, loss in enumerate(losses)}
    return {i: sentence for i, sentence in said.items() if sentence}


# The loss of a step


def test_steady_losses_of_any_size_alert_nothing():
    for scale in (1e-6, 1.0, 1e6):
        losses = scale * np.array(noisy(100_000, seed=int(scale)))
        assert alerts(monitor(), losses.tolist()) == {}


def test_losses_that_fall_as_in_training_alert_nothing():
    falling = np.array(noisy(20_000)) * (0.1 + 10 / np.sqrt(1 + np.arange(20_000)))
    assert alerts(monitor(), falling.tolist()) == {}


def test_a_leap_alerts_once_until_the_loss_is_back():
    losses = noisy(200)
    losses[100:110] = [50.0] * 10
    losses[150] = 70.0
    said = alerts(monitor(), losses)
    assert list(said) == [100, 150]
    # The mean of a lognormal, by hand; its estimate from 100 steps is within 10 %.
    mean = math.exp(0.2**2 / 2)
    assert said[100].startswith("loss per element 50, ")
    times = float(said[100].split(", ")[1].split()[0])
    assert times == pytest.approx(50 / mean, rel=0.1)


def test_a_loss_below_the_bound_does_not_alert_and_one_above_does():
    for factor in (1.5, 3.0, 20.0):
        below, above = monitor(loss_factor=factor), monitor(loss_factor=factor)
        assert not alerts(below, [2.0] * 50 + [2 * factor * 0.999])
        assert list(alerts(above, [2.0] * 50 + [2 * factor * 1.001])) == [50]


def test_the_first_steps_of_a_run_alert_nothing():
    assert alerts(monitor(), [1.0] * 19 + [100.0]) == {}
    assert list(alerts(monitor(), [1.0] * 20 + [100.0])) == [20]


def test_losses_that_are_not_finite_are_as_if_they_had_not_been():
    losses = noisy(300)
    losses[100], losses[200] = 50.0, 50.0
    expected = alerts(monitor(), losses)
    watcher, said = monitor(), {}
    for i, loss in enumerate(losses):
        for odd in (math.nan, math.inf, -math.inf):
            assert watcher.after_step(odd) is None
        if sentence := watcher.after_step(loss):
            said[i] = sentence
    assert said == expected and len(said) == 2
    assert watcher.steps == 300 and math.isfinite(watcher.mean_loss)


@pytest.mark.parametrize("height", [4.0, 1e6, 1e300])
def test_spikes_do_not_hide_the_next_ones_however_high(height):
    losses = noisy(500, sigma=0.05)
    spikes = list(range(40, 500, 20))
    for place in spikes:
        losses[place] = height
    losses[-1] = 1.0
    watcher = monitor()
    assert list(alerts(watcher, losses)) == spikes
    # Each raises the mean by 2 % at most once it is a running one.
    assert watcher.mean_loss < 1.5


def test_a_loss_that_stays_high_soon_becomes_normal():
    losses = [1.0] * 200 + [5.0] * 300 + [16.0]
    watcher = monitor()
    assert list(alerts(watcher, losses)) == [200, 500]
    assert watcher.mean_loss == pytest.approx(5, rel=0.2)


def test_after_losses_of_0_no_leap_can_be_measured():
    assert alerts(monitor(), [0.0] * 30 + [1.0]) == {}


def test_without_a_bound_no_loss_alerts():
    watcher = monitor(loss_factor=math.inf)
    assert alerts(watcher, [0.0] * 30 + [1.0] * 50 + [1e300, math.inf, math.nan]) == {}


# Magnitudes


def test_growth_alerts_once_for_each_place():
    watcher = monitor()
    first = {"activations enc_8x8": 0.5, "weights enc_8x8": 2.0}
    assert list(watcher.after_probe(first)) == []
    assert list(watcher.after_probe({name: 9.9 * x for name, x in first.items()})) == []
    (sentence,) = watcher.after_probe(first | {"activations enc_8x8": 5.5})
    assert sentence == "magnitude of activations enc_8x8 is 5.5, 11.0 times its first"
    # It goes on, comes back and goes on: no more of that place.
    for value in (6.0, 0.5, 50.0):
        assert list(watcher.after_probe(first | {"activations enc_8x8": value})) == []
    (sentence,) = watcher.after_probe(first | {"weights enc_8x8": 21.0})
    assert "weights enc_8x8" in sentence


def test_a_magnitude_that_is_not_finite_has_grown():
    for odd in (math.nan, math.inf):
        watcher = monitor()
        assert list(watcher.after_probe({"a": 1.0, "b": 1.0})) == []
        (sentence,) = watcher.after_probe({"a": 1.0, "b": odd})
        assert sentence.startswith(f"magnitude of b is {odd}")
        assert list(watcher.after_probe({"a": 1.0, "b": odd})) == []


def test_any_magnitude_has_grown_if_it_started_at_0():
    watcher = monitor()
    assert list(watcher.after_probe({"gain": 0.0})) == []
    assert len(list(watcher.after_probe({"gain": 1e-3}))) == 1


def test_without_a_bound_no_magnitude_alerts():
    watcher = monitor(growth=math.inf)
    for value in (1.0, 1e30, math.inf, math.nan):
        assert list(watcher.after_probe({"a": value})) == []


# Robust deviations, of loss and gradient


def test_a_loss_many_robust_deviations_above_the_steps_before_alerts_once():
    losses = noisy(300, sigma=0.05)
    losses[200:203] = [1.8] * 3  # ln 1.8 is 11.8 deviations of 0.05
    said = alerts(monitor(z=8.0), losses)
    assert list(said) == [200]
    score = int(said[200].split(", ")[1].split()[0])
    assert score == pytest.approx(math.log(1.8) / 0.05, rel=0.25)
    assert alerts(monitor(), losses) == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_spike_at_eight_deviations(seed):
    for sigma in (0.01, 0.2, 0.5):
        losses = noisy(3000, sigma, seed)
        assert alerts(monitor(z=8.0, loss_factor=math.inf), losses) == {}
        watcher = monitor(z=8.0)
        assert [watcher.after_gradient(x) for x in losses] == [None] * 3000


def test_up_to_half_of_the_window_may_be_outliers():
    """A mean and a standard deviation would not tolerate that."""
    watcher = monitor(z=8.0)
    for x in noisy(128, sigma=0.05):
        watcher.after_gradient(x)
    said = [watcher.after_gradient(x) for x in [50.0, 1.0] * 30]
    assert all(sentence.startswith("RMS of the gradient 50") for sentence in said[::2])
    assert said[1::2] == [None] * 30


# Updates, units, u(sigma)


def test_an_update_that_is_large_beside_its_weights_alerts_by_place():
    watcher = monitor(update=0.5)
    assert list(watcher.after_updates({"enc_8x8": 0.1, "all": 0.4})) == []
    (sentence,) = watcher.after_updates({"enc_8x8": 0.8, "all": 0.4})
    assert sentence == "a step changes the weights of enc_8x8 by 80% of their norm"
    assert list(watcher.after_updates({"enc_8x8": 0.9, "all": 0.4})) == []
    assert list(watcher.after_updates({"enc_8x8": 0.1, "all": 0.4})) == []
    assert len(list(watcher.after_updates({"enc_8x8": 0.8}))) == 1


def test_dead_and_exploding_units_are_told_by_layer_and_number():
    watcher = monitor()
    sound = np.exp(0.5 * np.random.default_rng(0).standard_normal(64))
    silent = np.zeros(8)  # as a layer that begins with zeros
    assert list(watcher.after_units({"conv0": sound, "out": silent})) == []
    hurt = sound.copy()
    hurt[[3, 9]], hurt[5], hurt[7] = 0.0, 1e6, math.nan
    dead, exploding = watcher.after_units({"conv0": hurt, "out": silent})
    assert dead == "2 of 64 units of conv0 dead: 3, 9"
    assert exploding == "2 of 64 units of conv0 exploding: 5, 7"
    assert list(watcher.after_units({"conv0": hurt})) == []
    (sentence,) = watcher.after_units({"gone": np.full(3, math.nan)})
    assert sentence == "3 of 3 units of gone exploding: 0, 1, 2"


def line(*offsets):
    losses = [0.3, 0.2, 0.4]
    return {
        "below": [0.5, 2.0, None],
        "loss_per_element": losses,
        "logvar": [math.log(x) + d for x, d in zip(losses, offsets, strict=True)],
    }


def test_a_u_of_sigma_that_leaves_the_loss_is_told_by_range():
    watcher = monitor()
    assert list(watcher.after_line(line(0.9, -0.9, 0.0))) == []
    off = line(math.log(4), 0.0, math.log(0.2))
    for _ in range(3):  # may be an accident
        assert list(watcher.after_line(off)) == []
    assert list(watcher.after_line(off)) == [
        "e^u is 4 times the loss at sigma 0 to 0.5",
        "e^u is 0.2 times the loss at sigma above 2.0",
    ]
    assert list(watcher.after_line(off)) == []


def test_a_range_without_images_and_a_network_without_the_head_are_passed_over():
    empty = line(5.0, 5.0, 5.0) | {"loss_per_element": [None] * 3, "logvar": [None] * 3}
    headless = line(0.0, 0.0, 0.0) | {"logvar": [0.0] * 3}
    for each in (empty, headless):
        watcher = monitor()
        assert [list(watcher.after_line(each)) for _ in range(9)] == [[]] * 9


def test_a_loss_curved_beyond_what_the_rate_bears_alerts_until_it_is_not():
    watcher = monitor()
    said = [
        list(watcher.after_sharpness(x)) for x in (None, 1.5, 2.5, 3.0, 1.0, math.nan)
    ]
    assert [len(each) for each in said] == [0, 0, 1, 0, 0, 0]
    assert said[2] == ["the curvature is 2.5 times the stable limit at this rate"]


def test_every_alert_says_what_to_try_in_one_sentence():
    for advice in ADVICE.values():
        assert advice.endswith(".") and advice.count(". ") == 0


# The held-out loss


def test_a_run_has_converged_once_nothing_was_better_for_longer_than_the_patience():
    watcher = monitor()
    losses = {0: 1.0, 400: 0.5, 800: 0.6, 1400: 0.5, 1401: 0.7}
    done = [watcher.has_converged(loss, nimg) for nimg, loss in losses.items()]
    assert done == [False, False, False, False, True]
    assert not watcher.has_converged(0.49, 5000)  # better after all
    assert not watcher.has_converged(0.6, 6000) and watcher.has_converged(0.6, 6001)


def test_held_out_losses_that_are_not_a_number_are_no_better():
    watcher = monitor()
    assert not watcher.has_converged(1.0, 0)
    assert not watcher.has_converged(math.nan, PATIENCE)
    assert watcher.has_converged(math.nan, PATIENCE + 1)


def test_without_patience_s_end_a_run_never_converges():
    watcher = monitor(patience_nimg=math.inf)
    assert not any(watcher.has_converged(1.0, 10**k) for k in range(18))


# The count of gradient elements that are not finite


def test_the_running_count_is_told_as_what_it_gained():
    watcher = monitor()
    totals = [0, 0, 3, 3, 10, 10]
    assert [watcher.new_nonfinite(total)[0] for total in totals] == [0, 0, 3, 0, 7, 0]


def test_a_stretch_of_bad_steps_begins_once():
    watcher = monitor()
    began = [watcher.new_nonfinite(total)[1] for total in (0, 3, 5, 9, 9, 10, 10)]
    assert began == [False, True, False, False, False, True, False]


def test_a_running_count_that_wraps_around_still_gains():
    watcher, total, each = monitor(), 0, 280_000_000
    for _ in range(40):
        total += each
        wrapped = int(np.int64(total).astype(np.int32))
        assert watcher.new_nonfinite(wrapped)[0] == each
    assert total > 2**33


# Stopping and going on


def everything(watcher, events):
    """The alerts for losses, probes, held-out losses and counts, in order."""
    said = []
    for nimg, loss, magnitude, heldout, total in events:
        said.append(watcher.after_step(loss))
        said.append(watcher.after_gradient(magnitude))
        said.append(list(watcher.after_updates({"a": magnitude})))
        said.append(list(watcher.after_probe({"a": magnitude, "b": 1.0})))
        said.append(watcher.has_converged(heldout, nimg))
        said.append(watcher.new_nonfinite(total))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_monitor_restored_from_json_goes_on_as_if_it_had_not_stopped(seed):
    rng = np.random.default_rng(seed)
    count = 300
    losses = noisy(count, seed=seed)
    for place in rng.integers(0, count, 30):
        losses[place] = [10.0, math.nan, 100.0][place % 3]
    streams = [
        range(0, 10 * count, 10),
        losses,
        np.exp(np.cumsum(0.3 * rng.standard_normal(count))).tolist(),
        (1 + rng.random(count)).tolist(),
        np.cumsum(rng.integers(0, 2, count)).tolist(),
    ]
    events = list(zip(*streams, strict=True))
    bounds = {"z": 6.0, "update": 2.0}
    expected = everything(monitor(**bounds), events)
    # Also before anything was seen, and amid a spike.
    spike = next(i for i, said in enumerate(expected[::6]) if said) + 1
    for split in (0, 1, spike, *rng.integers(0, count, 3)):
        before, after = monitor(**bounds), monitor(**bounds)
        said = everything(before, events[:split])
        after.restore(json.loads(json.dumps(before.state())))
        assert after == before
        assert said + everything(after, events[split:]) == expected
    assert any(isinstance(each, str) for each in expected)


def test_what_was_seen_is_json_of_every_reader():
    """JSON has no Infinity, although Python would write it."""
    json.dumps(monitor().state(), allow_nan=False)


def test_a_restored_monitor_keeps_its_own_bounds():
    seen = monitor().state()
    other = monitor(
        loss_factor=7.0, growth=math.inf, patience_nimg=5, z=4.0, update=2.0
    )
    other.restore(seen)
    bounds = other.loss_factor, other.growth, other.patience_nimg, other.z, other.update
    assert bounds == (7.0, math.inf, 5, 4.0, 2.0)
