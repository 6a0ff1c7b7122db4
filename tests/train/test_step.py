"""One step: its randomness, its invariants, and the averages of App. C."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from edm_jax import ema
from edm_jax.models import layers
from edm_jax.optim import chain, weight_norm
from edm_jax.train import step as train_step
from edm_jax.train.trainer import make_trainer

BATCH, STEPS = 16, 12
# As small as a U-Net with dropout, attention and forced weight normalization gets.
TINY = {
    "network.resolution": "4",
    "network.channel_mult": "(1,)",
    "network.dropout": "0.1",
}
GAMMAS = [ema.gamma_from_sigma_rel(sigma_rel) for sigma_rel in (0.05, 0.10)]


def make_batch(step, side=4, channels=1):
    rng = np.random.default_rng(step)
    image = rng.standard_normal((BATCH, side, side, channels)).astype(np.float32) / 2
    label = rng.integers(0, 10, BATCH).astype(np.int32)
    return {"image": image, "label": label, "index": np.arange(BATCH, dtype=np.int32)}


class Run:
    """A trainer, compiled once, and the results of its first STEPS steps.

    history: the state before each step and the last.
    """

    def __init__(self):
        config = configs.load(f"{configs.letter_path('g')}:digits-tiny", TINY)
        self.trainer = make_trainer(config, jax.devices()[:1])
        self.history = []
        state = self.trainer.initial_state()
        for step in range(STEPS):
            self.history.append(self.fetch(state))
            state, _ = self.trainer.step(state, make_batch(step))
        self.history.append(self.fetch(state))

    def fetch(self, tree):
        return jax.tree.map(np.array, self.trainer.step.fetch(tree))

    def metrics(self, state, batch):
        """Of one step from a fetched state."""
        return self.fetch(self.trainer.step(self.trainer.step.place(state), batch)[1])


@pytest.fixture(scope="module")
def run():
    return Run()


def by_path(tree):
    return {
        jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def leaves(tree, name):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {path: leaf for path, leaf in flat if path[-1].key == name}


def test_the_order_of_a_batch_does_not_matter_if_its_index_is_permuted_too(run):
    batch, state = make_batch(99), run.history[8]
    order = np.random.default_rng(0).permutation(BATCH)
    permuted = {key: value[order] for key, value in batch.items()}
    plain = run.metrics(state, batch)
    for metric, value in by_path(run.metrics(state, permuted)).items():
        expected = by_path(plain)[metric]
        np.testing.assert_allclose(
            value, expected, rtol=1e-5, atol=1e-6, err_msg=metric
        )


def test_noise_belongs_to_the_index_and_the_step(run):
    batch, state = make_batch(99), run.history[8]
    loss = run.metrics(state, batch)["loss"]
    assert run.metrics(state, batch)["loss"] == loss
    shifted = batch | {"index": batch["index"] + BATCH}
    assert abs(run.metrics(state, shifted)["loss"] - loss) > 1e-3
    later = state._replace(step=np.int32(9))
    assert abs(run.metrics(later, batch)["loss"] - loss) > 1e-3


def test_every_kernel_has_unit_rms_before_and_after_every_step(run):
    for state in run.history:
        for path, kernel in leaves(state.params, "kernel").items():
            axes = tuple(range(kernel.ndim - 1))
            rms = np.sqrt(np.mean(kernel.astype(np.float64) ** 2, axis=axes))
            np.testing.assert_allclose(rms, 0.9999, atol=2e-4, err_msg=str(path))


def test_gains_learn_and_fourier_features_never_move(run):
    first, last = run.history[0].params, run.history[-1].params
    for name in layers.FROZEN_LEAVES:
        before, after = leaves(first, name), leaves(last, name)
        assert len(before) == 2  # the network's and the uncertainty head's
        for path in before:
            np.testing.assert_array_equal(after[path], before[path])
    gains = leaves(last, "gain").values()
    assert len(gains) > 1 and all(gain != 0 for gain in gains)
    assert all(gain == 0 for gain in leaves(first, "gain").values())


def test_averages_of_the_first_step_are_its_weights(run):
    # The first step has rate 0, so that these are the initial weights, too.
    state = run.history[1]
    adam = weight_norm.unprojected(state.params, state.opt_state)
    for average in state.emas.values():
        for w, v in zip(*map(jax.tree.leaves, (adam, average)), strict=True):
            np.testing.assert_allclose(v, w, rtol=1e-6)


def test_a_nonfinite_batch_is_survived_and_counted(run):
    batch = make_batch(0)
    batch["image"][3, 0, 0, 0] = np.nan
    state = run.trainer.step.place(run.history[8])
    state, metrics = run.trainer.step(state, batch)
    count = int(metrics["nonfinite"])
    assert count > 0 and np.isnan(metrics["loss"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    state, metrics = run.trainer.step(state, make_batch(0))
    assert metrics["nonfinite"] == count and np.isfinite(metrics["loss"])


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("updates", [1, 2, 7, 341, 99991, 349527])
def test_power_weight_on_the_device_is_that_of_float64(gamma, every, updates):
    weight = train_step.power_ema_weight(gamma, every)
    step = jnp.asarray(updates * every - 1, jnp.int32)
    nimg = updates * every * 2048
    expected = float(ema.power_weight(every * 2048, nimg, gamma))
    assert float(weight(step)) == pytest.approx(expected, rel=1e-5, abs=0)
    if updates == 1:
        assert float(weight(step)) == 1.0


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("updates", [1, 2, 7, 341, 99991, 349527])
def test_traditional_weight_on_the_device_is_that_of_float64(every, updates):
    weight = train_step.traditional_ema_weight(50e6, 0.05, 2048, every)
    step = updates * every - 1
    expected = float(ema.traditional_weight(every * 2048, step * 2048, 50e6, 0.05))
    actual = float(weight(jnp.asarray(step, jnp.int32)))
    assert actual == pytest.approx(expected, rel=1e-5, abs=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda every: train_step.power_ema_weight(GAMMAS[1], every),
        lambda every: train_step.traditional_ema_weight(4000.0, 0.05, BATCH, every),
    ],
    ids=["power", "traditional"],
)
def test_profile_does_not_depend_on_how_often_it_is_updated(make):
    """The average of the step number, over 6000 steps, is the profile's mean."""

    def mean_step(every):
        weights = np.asarray(make(every)(jnp.arange(6000)), np.float64)
        average = 0.0
        for step, weight in enumerate(weights, start=1):
            assert weight == 0 or step % every == 0
            average += weight * (step - average)
        return average

    # Updates every k steps see only every k-th: half of them later on average.
    means = {every: mean_step(every) for every in (1, 4, 10)}
    for every in (4, 10):
        assert means[every] == pytest.approx(means[1] + (every - 1) / 2, abs=0.2)


@pytest.mark.parametrize("steps", [1, 3, 6, 23])
def test_a_snapshot_between_updates_holds_the_profile_of_its_own_time(steps):
    every, gamma = 4, GAMMAS[1]
    weight = train_step.power_ema_weight(gamma, every)
    path = np.random.default_rng(0).standard_normal(steps + 1).astype(np.float32)
    average = path[0]
    for step in range(steps):
        average += float(weight(jnp.asarray(step))) * (path[step + 1] - average)
    state = train_step.TrainState(
        jnp.asarray(steps),
        None,
        {"w": jnp.asarray(path[-1])},
        (),
        {"p": {"w": average}},
    )
    bring_up = train_step.make_current_averages({"p": weight})
    # As if it had been updated at 4, 8, ... and at the last step.
    ends = np.append(np.arange(every, steps, every), steps)
    mass = np.diff((ends / steps) ** (gamma + 1), prepend=0)
    current = bring_up(state)["p"]["w"]
    assert float(current) == pytest.approx(float(mass @ path[ends]), rel=1e-5)


def test_mean_of_the_power_profile_is_its_closed_form():
    gamma = GAMMAS[0]
    weights = train_step.power_ema_weight(gamma)(jnp.arange(3000))
    average = 0.0
    for step, weight in enumerate(np.asarray(weights, np.float64), start=1):
        average += weight * (step - average)
    assert average == pytest.approx(3000 * (gamma + 1) / (gamma + 2), rel=1e-3)


# The paper's order of things (Alg. 1, 2), in NumPy and float64, against ours. The
# network is two magnitude-preserving layers and a gain.


def toy_params():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    first, second = {"kernel": 2 * draw(9, 6)}, {"kernel": 3 * draw(6, 2)}
    return {"first": first, "second": second | {"gain": np.float32(0.7)}}


def toy_loss(params, batch, keys):
    del keys
    x = batch["image"].reshape(BATCH, 9)
    h = x @ layers.normalize_units(params["first"]["kernel"]) / 3
    y = jnp.tanh(h) @ layers.normalize_units(params["second"]["kernel"])
    error = y * params["second"]["gain"] - batch["label"][:, None] / 10
    loss = jnp.mean(jnp.sum(error**2, axis=-1))
    return loss, {"loss": loss}


class Reference:
    """Project, take the gradient, step with Adam, average what Adam left."""

    def __init__(self, opt):
        self.opt = opt
        self.params = jax.tree.map(np.float64, toy_params())
        zeros = jax.tree.map(np.zeros_like, self.params)
        self.m, self.v, self.emas = zeros, zeros, [zeros for _ in GAMMAS]

    def rate(self, step):
        nimg, opt = step * BATCH, self.opt
        decay = math.sqrt(max(nimg / (opt.schedule.t_ref * BATCH), 1))
        return opt.alpha_ref / decay * min(nimg / (opt.warmup.rampup_mimg * 1e6), 1)

    def step(self, step, batch):
        for layer in self.params.values():
            w = layer["kernel"]
            layer["kernel"] = w / (1e-4 + np.sqrt(np.mean(w**2, axis=0)))
        params = jax.tree.map(np.float32, self.params)
        (loss, _), g = jax.value_and_grad(toy_loss, has_aux=True)(params, batch, None)
        opt, g, tree = self.opt, jax.tree.map(np.float64, g), jax.tree.map
        self.m = tree(
            lambda m, g: opt.method.beta1 * m + (1 - opt.method.beta1) * g, self.m, g
        )
        self.v = tree(
            lambda v, g: opt.method.beta2 * v + (1 - opt.method.beta2) * g**2, self.v, g
        )

        def adam(w, m, v):
            m_hat = m / (1 - opt.method.beta1 ** (step + 1))
            v_hat = v / (1 - opt.method.beta2 ** (step + 1))
            return w - self.rate(step) * m_hat / (np.sqrt(v_hat) + opt.method.eps)

        self.params = tree(adam, self.params, self.m, self.v)
        betas = [(1 - 1 / (step + 1)) ** (gamma + 1) for gamma in GAMMAS]
        self.emas = [
            tree(lambda a, w, b=beta: b * a + (1 - b) * w, average, self.params)
            for beta, average in zip(betas, self.emas, strict=True)
        ]
        return float(loss)


@pytest.mark.slow
def test_projecting_last_gives_the_losses_and_averages_of_projecting_first():
    reference_config = f"{configs.letter_path('g')}:digits-tiny"
    opt = configs.load(reference_config).optimizer
    assert opt.forced_weight_norm and opt.batch_size == BATCH
    tx = chain.make_optimizer(opt, 1.0)
    weights = {f"{g:.1f}": train_step.power_ema_weight(g) for g in GAMMAS}
    step_fn = jax.jit(train_step.make_train_step(toy_loss, tx, weights))
    params = weight_norm.project(jax.tree.map(jnp.asarray, toy_params()))
    state = train_step.init_state(params, tx, weights, seed=0)
    reference, losses, expected = Reference(opt), [], []
    for step in range(STEPS):
        batch = make_batch(step, side=3)
        state, metrics = step_fn(state, batch)
        losses.append(float(metrics["loss"]))
        expected.append(reference.step(step, batch))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.ptp(expected) > 0.1
    for name, average in zip(weights, reference.emas, strict=True):
        trees = state.emas[name], average
        for w, v in zip(*map(jax.tree.leaves, trees), strict=True):
            np.testing.assert_allclose(w, v, rtol=1e-5, atol=1e-5)
    # The tolerance tells the weights that Adam left from the projected ones.
    rms = np.sqrt(np.mean(reference.params["first"]["kernel"] ** 2, axis=0))
    assert np.abs(rms - 0.9999).max() > 1e-3


def test_loss_scale_changes_neither_losses_nor_reported_gradients():
    reference_config = f"{configs.letter_path('g')}:digits-tiny"
    results = []
    for scale in (1.0, 128.0):
        overrides = {"optimizer.loss_scale": str(scale)}
        opt = configs.load(reference_config, overrides).optimizer
        tx = chain.make_optimizer(opt, 1.0)
        step_fn = jax.jit(train_step.make_train_step(toy_loss, tx, {}, scale))
        state = train_step.init_state(toy_params(), tx, {}, seed=0)
        for step in range(4):
            state, metrics = step_fn(state, make_batch(step, side=3))
        results.append([float(metrics["loss"]), float(metrics["grad_rms"])])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
