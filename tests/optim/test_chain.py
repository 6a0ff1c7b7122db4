"""The optimizer chain against Adam by hand, and forced weight normalization (App. B.5)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edm_jax.optim import (
    chain,
    links,
    nonfinite,
    optimizers,
    schedules,
    warmups,
    weight_norm,
)

BATCH = 2048


def options(**changes):
    settings = {
        "batch_size": BATCH,
        "alpha_ref": 0.01,
        "schedule": schedules.InverseSqrt(t_ref=3.0),
        "warmup": warmups.LinearWarmup(2 * BATCH / 1e6),
        "method": optimizers.Adam(0.9, 0.99, 1e-8),
        "clip": links.NoLink(),
        "noise": links.NoLink(),
        "penalty": links.NoLink(),
        "loss_scale": 1.0,
        "nonfinite": "zero",
        "forced_weight_norm": False,
    }
    return chain.OptimizerConfig(**settings | changes)


def rate(step):
    """The rate of `options()`: a ramp of 2 steps, then a decay from step 3."""
    return 0.01 * min(step / 2, 1) / np.sqrt(max(step / 3, 1))


def toy_params():
    """One of every kind of leaf that a network has."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "conv": {"kernel": 3 * draw(3, 3, 2, 4), "bias": draw(4)},
        "linear": {"kernel": 2 * draw(6, 5), "gain": draw()},
        "noise_features": {"freqs": draw(8), "phases": draw(8)},
    }


def toy_gradients(step):
    rng = np.random.default_rng(100 + step)
    return jax.tree.map(
        lambda w: jnp.asarray(rng.standard_normal(w.shape), jnp.float32), toy_params()
    )


def run(opt, gradients, params):
    """[(params, state) after each step]."""
    tx = chain.make_optimizer(opt, 1.0)
    state, history = tx.init(params), []
    for each in gradients:
        updates, state = tx.update(each, state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, state))
    return history


def adam_by_hand(gradients, w, opt):
    """Kingma and Ba's Algorithm 1 in float64, the rate of step 0 first."""
    m, v, path = 0.0, 0.0, []
    for step, g in enumerate(np.asarray(gradients, np.float64)):
        m = opt.method.beta1 * m + (1 - opt.method.beta1) * g
        v = opt.method.beta2 * v + (1 - opt.method.beta2) * g**2
        m_hat = m / (1 - opt.method.beta1 ** (step + 1))
        v_hat = v / (1 - opt.method.beta2 ** (step + 1))
        w = w - rate(step) * m_hat / (np.sqrt(v_hat) + opt.method.eps)
        path.append(w)
    return path


def kernels(params):
    return [params["conv"]["kernel"], params["linear"]["kernel"]]


def unit_rms(kernel):
    w = np.asarray(kernel, np.float64)
    return np.sqrt(np.mean(w**2, axis=tuple(range(w.ndim - 1))))


@pytest.mark.parametrize("loss_scale", [1.0, 100.0])
@pytest.mark.parametrize("size", [1.0, 1e-8])
def test_chain_is_adam_rederived_by_hand_and_divides_loss_scale_out(loss_scale, size):
    # Gradients of 1e-8 are of the size of eps: its place in the formula shows.
    opt = options(loss_scale=loss_scale)
    gradients = size * np.random.default_rng(1).standard_normal((12, 5))
    scaled = [{"w": jnp.asarray(loss_scale * g, jnp.float32)} for g in gradients]
    history = run(opt, scaled, {"w": jnp.ones(5)})
    actual = np.stack([np.asarray(params["w"]) for params, _ in history])
    expected = adam_by_hand(gradients, np.ones(5), opt)
    np.testing.assert_allclose(actual - 1, np.subtract(expected, 1), atol=1e-6)
    assert np.abs(np.subtract(expected, 1)).max() > 5e-3


@pytest.mark.slow
def test_first_step_of_a_ramp_moves_nothing():
    (after, _), (later, _) = run(options(), map(toy_gradients, range(2)), toy_params())
    for before, w, v in zip(
        *map(jax.tree.leaves, (toy_params(), after, later)), strict=True
    ):
        np.testing.assert_array_equal(before, w)
        assert np.abs(v - w).max() > 1e-3


def test_nonfinite_gradient_elements_count_as_0_and_are_counted():
    finite = np.random.default_rng(1).standard_normal((6, 4))
    spoiled, zeroed = finite.copy(), finite.copy()
    spoiled[1, 0], spoiled[3, :2] = np.nan, (np.inf, -np.inf)
    zeroed[1, 0] = zeroed[3, :2] = 0

    def path(gradients):
        trees = [{"w": jnp.asarray(g, jnp.float32)} for g in gradients]
        return run(options(), trees, {"w": jnp.ones(4)})

    for (actual, _), (expected, _) in zip(path(spoiled), path(zeroed), strict=True):
        np.testing.assert_array_equal(actual["w"], expected["w"])
    counts = [int(nonfinite.nonfinite_count(state)) for _, state in path(spoiled)]
    assert counts == [0, 1, 1, 3, 3, 3]


SPOILED = {1: np.nan, 4: np.inf, 5: -np.inf}  # by step


def spoil(tree, value):
    """One element of one leaf."""
    kernel = tree["linear"]["kernel"].at[2, 3].set(value)
    return tree | {"linear": tree["linear"] | {"kernel": kernel}}


def spoiled_gradients(count):
    gradients = [toy_gradients(step) for step in range(count)]
    return [
        spoil(g, SPOILED[i]) if i in SPOILED else g for i, g in enumerate(gradients)
    ]


def adam_of(state):
    """Adam's count and moments, wherever they are in a chain's state."""
    (found,) = links.links(state, optax.ScaleByAdamState)
    return found


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_a_skipped_update_moves_nothing_and_leaves_adam_as_it_was(policy):
    opt = options(nonfinite=policy)
    history = run(opt, spoiled_gradients(8), toy_params())
    for step in range(1, 8):
        (params, state), (before, state_before) = history[step], history[step - 1]
        same_adam = bits(adam_of(state)) == bits(adam_of(state_before))
        same_params = bits(params) == bits(before)
        assert same_adam == same_params == (step in SPOILED)
    assert int(adam_of(history[-1][1]).count) == 8 - len(SPOILED)
    counts = [int(nonfinite.nonfinite_count(state)) for _, state in history]
    assert counts == [0, 1, 1, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_the_rate_advances_past_a_skipped_update_as_rederived_by_hand(policy):
    opt = options(nonfinite=policy)
    gradients = np.random.default_rng(1).standard_normal((8, 5))
    m, v, w, count, expected = 0.0, 0.0, np.ones(5), 0, []
    for step, g in enumerate(gradients):
        if step not in SPOILED:
            count += 1
            m = opt.method.beta1 * m + (1 - opt.method.beta1) * g
            v = opt.method.beta2 * v + (1 - opt.method.beta2) * g**2
            m_hat, v_hat = (
                m / (1 - opt.method.beta1**count),
                v / (1 - opt.method.beta2**count),
            )
            # The rate is that of the images seen, whether they were used or not.
            w = w - rate(step) * m_hat / (np.sqrt(v_hat) + opt.method.eps)
        expected.append(w)
    for step, value in SPOILED.items():
        gradients[step, 2] = value
    trees = [{"w": jnp.asarray(g, jnp.float32)} for g in gradients]
    actual = [params["w"] for params, _ in run(opt, trees, {"w": jnp.ones(5)})]
    np.testing.assert_allclose(np.stack(actual) - 1, np.stack(expected) - 1, atol=1e-6)
    # With the rate of the updates instead, the last would be elsewhere.
    assert abs(rate(7) - rate(7 - len(SPOILED))) > 1e-3


@pytest.mark.parametrize("policy", ["zero", "skip", "stop"])
def test_weights_stay_normalized_and_finite_through_gradients_that_are_not(policy):
    opt = options(nonfinite=policy, forced_weight_norm=True)
    params = weight_norm.project(toy_params())
    history = run(opt, spoiled_gradients(8), params)
    for step, (after, state) in enumerate(history):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((after, state)))
        for kernel in kernels(after):
            np.testing.assert_allclose(unit_rms(kernel), 0.9999, atol=2e-4)
        if policy != "zero" and step in SPOILED:
            before = history[step - 1][0]
            latest = weight_norm.unprojected(after, state)  # what the averages see
            for old, *new in zip(
                *map(jax.tree.leaves, (before, after, latest)), strict=True
            ):
                np.testing.assert_allclose(new, [old, old], rtol=1e-6)


def test_finite_gradients_are_the_same_to_every_policy():
    gradients = [toy_gradients(step) for step in range(5)]
    zero, skip, stop = (
        run(options(nonfinite=policy), gradients, toy_params())
        for policy in ("zero", "skip", "stop")
    )
    assert bits(zero) == bits(skip) == bits(stop)


def test_a_run_can_go_on_under_another_policy():
    """The states have the same layout, and the count continues."""
    one, other = (
        chain.make_optimizer(options(nonfinite=p), 1.0) for p in ("zero", "skip")
    )
    params = toy_params()
    _, state = one.update(spoil(toy_gradients(0), np.nan), one.init(params), params)
    assert jax.tree.structure(state) == jax.tree.structure(other.init(params))
    _, state = other.update(spoil(toy_gradients(1), np.nan), state, params)
    assert int(nonfinite.nonfinite_count(state)) == 2
    assert int(adam_of(state).count) == 1


def test_every_output_unit_has_unit_rms_after_every_step():
    params = weight_norm.project(toy_params())
    history = run(
        options(forced_weight_norm=True), map(toy_gradients, range(8)), params
    )
    for after in [params, *(each for each, _ in history)]:
        for kernel in kernels(after):
            # 1 / (1 + 1e-4): epsilon is additive.
            np.testing.assert_allclose(unit_rms(kernel), 0.9999, atol=2e-4)


def test_gains_biases_and_frozen_features_are_not_normalized():
    gradients = [toy_gradients(step) for step in range(5)]
    (*_, (plain, _)) = run(options(), gradients, toy_params())
    (*_, (forced, _)) = run(options(forced_weight_norm=True), gradients, toy_params())
    for layer, name in [
        ("conv", "bias"),
        ("linear", "gain"),
        ("noise_features", "freqs"),
        ("noise_features", "phases"),
    ]:
        np.testing.assert_allclose(forced[layer][name], plain[layer][name], rtol=1e-6)
    assert unit_rms(plain["conv"]["kernel"]).min() > 2  # and these would have been


def test_projection_touches_kernels_only_and_keeps_their_directions():
    params = toy_params()
    projected = weight_norm.project(params)
    for before, after in zip(kernels(params), kernels(projected), strict=True):
        before = np.asarray(before, np.float64)
        np.testing.assert_allclose(after, before / (1e-4 + unit_rms(before)), rtol=1e-6)
    np.testing.assert_array_equal(projected["conv"]["bias"], params["conv"]["bias"])
    again = weight_norm.project(projected)
    for once, twice in zip(kernels(projected), kernels(again), strict=True):
        np.testing.assert_allclose(twice, once, atol=1e-5, rtol=2e-4)


def test_unprojected_recovers_the_weights_as_adam_left_them():
    tx = chain.make_optimizer(options(forced_weight_norm=True), 1.0)
    plain = chain.make_optimizer(options(), 1.0)
    params = weight_norm.project(toy_params())
    state, plain_state = tx.init(params), plain.init(params)
    for step in range(6):
        gradients = toy_gradients(step)
        # Adam alone, from the same weights: its moments do not know the projection.
        updates, plain_state = plain.update(gradients, plain_state, params)
        adam = optax.apply_updates(params, updates)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        recovered = weight_norm.unprojected(params, state)
        for w, v in zip(*map(jax.tree.leaves, (recovered, adam)), strict=True):
            np.testing.assert_allclose(w, v, rtol=1e-6, atol=1e-6)
    assert np.abs(unit_rms(recovered["conv"]["kernel"]) - 1).max() > 1e-3


def test_without_a_projection_there_is_nothing_to_undo():
    before_the_first = chain.make_optimizer(options(forced_weight_norm=True), 1.0)
    ((params, without),) = run(options(), [toy_gradients(0)], toy_params())
    for state in (without, before_the_first.init(params)):
        recovered = weight_norm.unprojected(params, state)
        for w, v in zip(*map(jax.tree.leaves, (recovered, params)), strict=True):
            np.testing.assert_array_equal(w, v)


def test_forced_normalization_says_so_when_it_is_given_no_weights():
    link = weight_norm.forced_weight_norm()
    with pytest.raises(ValueError, match="params"):
        link.update(toy_gradients(0), link.init(toy_params()), None)


def test_rate_of_the_chain_is_the_logged_rate():
    """One weight with a constant gradient moves by the rate itself."""
    opt = options()
    schedule = chain.learning_rate(opt, 1.0)
    gradients = [{"w": jnp.ones(1)} for _ in range(8)]
    path = [float(p["w"][0]) for p, _ in run(opt, gradients, {"w": jnp.zeros(1)})]
    moved = -np.diff([0.0, *path])
    logged = [float(schedule(step * BATCH)) for step in range(8)]
    np.testing.assert_allclose(moved, logged, rtol=1e-4)
    np.testing.assert_allclose(logged, [rate(step) for step in range(8)], rtol=1e-6)
