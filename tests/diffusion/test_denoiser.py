"""Preconditioning, loss and randomness against Eq. 4-8, 14-16, 21, with small fakes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from edm_jax import diffusion
from edm_jax.data.augment import Edm, EdmUnflipped, Flip, NoAugment
from edm_jax.diffusion import denoiser as denoising

NONE = NoAugment()
SIGMAS = np.geomspace(0.002, 80, 25)
SIGMA_DATA = 0.5
IMAGE = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float32)
BATCH = {"image": IMAGE, "label": np.zeros(4, np.int32)}
MANY = {
    "image": np.random.default_rng(1)
    .normal(0, 0.5, (5000, 4, 4, 1))
    .astype(np.float32),
    "label": np.zeros(5000, np.int32),
}


def keys(count):
    return jax.random.split(jax.random.key(0), count)


class FakeDenoiser:
    """D = c_skip x, as if F were zero; u = params; keeps what it is called with."""

    sigma_data = SIGMA_DATA

    def __call__(self, params, x, sigma, label, dropout_keys, augment_label):
        self.seen = {"x": x, "sigma": sigma, "dropout_keys": dropout_keys}
        self.seen["augment_label"] = augment_label
        c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
        image = c_skip[:, None, None, None] * x
        return diffusion.Denoised(image, jnp.broadcast_to(params, sigma.shape), {})


@functools.partial(jax.jit, static_argnames="augment")
def evaluate(batch, keys, logvar=0.0, P_mean=-0.4, P_std=1.0, augment=NONE):
    """Loss of a zero network, its metrics and slope in u, and what its D was given."""
    denoiser = FakeDenoiser()
    loss = diffusion.make_loss(denoiser, P_mean, P_std, augment)
    _, metrics = loss(logvar, batch, keys)
    seen = denoiser.seen
    slope = jax.grad(lambda u: loss(u, batch, keys)[0])(logvar)
    return metrics | {"slope": slope}, seen


def scalings(sigma=SIGMAS):
    return (np.asarray(c, np.float64) for c in diffusion.scalings(sigma, SIGMA_DATA))


def test_scalings_are_the_papers():
    c_skip, c_out, c_in, c_noise = scalings()
    total = SIGMAS**2 + SIGMA_DATA**2
    np.testing.assert_allclose(c_skip, SIGMA_DATA**2 / total, rtol=1e-5)
    np.testing.assert_allclose(c_out, SIGMAS * SIGMA_DATA / np.sqrt(total), rtol=1e-5)
    np.testing.assert_allclose(c_in, 1 / np.sqrt(total), rtol=1e-5)
    np.testing.assert_allclose(c_noise, np.log(SIGMAS) / 4, rtol=1e-5, atol=1e-7)


def test_network_inputs_and_targets_have_unit_variance():
    c_skip, c_out, c_in, _ = scalings()
    # x = y + n, the target of F is (y - c_skip x) / c_out.
    input_variance = c_in**2 * (SIGMA_DATA**2 + SIGMAS**2)
    signal, noise = (1 - c_skip) / c_out, c_skip / c_out
    target_variance = signal**2 * SIGMA_DATA**2 + noise**2 * SIGMAS**2
    np.testing.assert_allclose(input_variance, 1, rtol=1e-5)
    # 1 - c_skip cancels at the smallest sigma.
    np.testing.assert_allclose(target_variance, 1, rtol=2e-3)


def test_loss_weight_is_one_over_c_out_squared():
    _, c_out, _, _ = scalings()
    weight = diffusion.loss_weight(SIGMAS, SIGMA_DATA)
    np.testing.assert_allclose(weight * c_out**2, 1, rtol=1e-5)


def denoiser_of(letter):
    path = f"{configs.letter_path(letter)}:digits-tiny"
    return diffusion.Denoiser(configs.load(path).model, SIGMA_DATA)


@pytest.fixture(scope="session")
def denoise():
    """D of config D, whose F is not zero at the start: (x, sigma, label) -> image."""
    denoiser = denoiser_of("d")
    params = denoiser.model.init(0)
    return jax.jit(
        lambda *inputs: denoiser(params, *inputs).image,
        compiler_options={"xla_backend_optimization_level": 0},  # compiles in half
    )


@pytest.mark.slow
def test_the_denoiser_returns_its_input_as_the_noise_vanishes(denoise):
    x = np.random.default_rng(0).normal(0, 0.5, (4, 8, 8, 1)).astype(np.float32)
    label = np.arange(4, dtype=np.int32)
    far, near = (np.full(4, s, np.float32) for s in (1e-2, 1e-4))
    difference = [np.abs(denoise(x, sigma, label) - x).max() for sigma in (far, near)]
    assert 1e-5 < difference[1] < 1e-3
    assert difference[0] / difference[1] == pytest.approx(100, rel=0.3)


@pytest.mark.slow
def test_dropout_in_the_network_belongs_to_the_example(denoise):
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    x[1] = x[0]
    sigma, label = np.ones(4, np.float32), np.zeros(4, np.int32)
    image = np.asarray(denoise(x, sigma, label, keys(4)))
    order = np.array([2, 0, 3, 1])
    permuted = denoise(x[order], sigma, label, keys(4)[order])
    np.testing.assert_allclose(permuted, image[order], atol=1e-5)
    assert not np.allclose(image[0], image[1], atol=1e-2)


def test_class_indices_and_one_hot_vectors_mean_the_same():
    denoiser = denoiser_of("d")
    one_hot = denoiser.encode(jnp.array([3, 0]))
    np.testing.assert_array_equal(one_hot, np.eye(10)[[3, 0]])
    vectors = jnp.full((2, 10), 0.1)
    np.testing.assert_array_equal(denoiser.encode(vectors), vectors)


@pytest.mark.parametrize(("P_mean", "P_std"), [(-0.4, 1.0), (-1.2, 1.2), (-0.8, 1.6)])
def test_a_network_that_outputs_zero_has_loss_one_per_element(P_mean, P_std):
    metrics, _ = evaluate(MANY, keys(5000), P_mean=P_mean, P_std=P_std)
    assert metrics["loss_per_element"] == pytest.approx(1, abs=0.02)


def test_loss_is_a_sum_over_elements_and_a_mean_over_the_batch():
    sigma, logvar = 0.7, 0.3
    metrics, seen = evaluate(BATCH, keys(4), logvar, math.log(sigma), 0.0)
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    squares = weight * (c_skip * np.asarray(seen["x"], np.float64) - IMAGE) ** 2
    expected = np.sum(squares / math.exp(logvar) + logvar) / 4
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["loss_per_element"] == pytest.approx(np.mean(squares), rel=1e-5)


def test_the_best_logvar_is_the_log_of_the_mean_weighted_loss():
    one = {name: x[:1] for name, x in BATCH.items()}
    best = math.log(evaluate(one, keys(1))[0]["loss_per_element"])
    below, at, above = (
        evaluate(one, keys(1), best + step)[0]["slope"] for step in (-0.1, 0.0, 0.1)
    )
    assert at == pytest.approx(0, abs=1e-4)
    assert below < -1 < 1 < above  # a minimum


def test_noise_levels_are_log_normal_and_noise_is_normal_at_that_level():
    _, seen = evaluate(MANY, keys(5000), P_mean=-0.8, P_std=1.6)
    log_sigma = np.log(seen["sigma"])
    assert np.mean(log_sigma) == pytest.approx(-0.8, abs=0.07)
    assert np.std(log_sigma) == pytest.approx(1.6, rel=0.03)
    sigma = np.asarray(seen["sigma"])[:, None, None, None]
    unit = (np.asarray(seen["x"]) - MANY["image"]) / sigma
    assert np.mean(unit) == pytest.approx(0, abs=0.02)
    assert np.std(unit) == pytest.approx(1, rel=0.02)
    for feature in (unit[:, 0, 0, 0], unit[:, 1, 2, 0]):
        assert np.corrcoef(log_sigma, feature)[0, 1] == pytest.approx(0, abs=0.05)


def test_a_key_belongs_to_the_step_and_the_example():
    root = jax.random.PRNGKey(0)
    index = jnp.arange(8)
    whole = diffusion.example_keys(root, jnp.int32(3), index)
    part = diffusion.example_keys(root, jnp.int32(3), index[4:6])
    np.testing.assert_array_equal(whole[4:6], part)
    both_steps = [whole, diffusion.example_keys(root, jnp.int32(4), index)]
    assert len(np.unique(np.concatenate(both_steps), axis=0)) == 16


def test_an_example_has_the_same_noise_in_any_batch():
    _, whole = evaluate(BATCH, keys(4))
    order = np.array([2, 0])
    part = {name: x[order] for name, x in BATCH.items()}
    _, seen = evaluate(part, keys(4)[order])
    np.testing.assert_allclose(seen["x"], whole["x"][order], rtol=1e-6)
    np.testing.assert_allclose(seen["sigma"], whole["sigma"][order], rtol=1e-6)
    given, wanted = seen["dropout_keys"], whole["dropout_keys"][order]
    np.testing.assert_array_equal(*map(jax.random.key_data, (given, wanted)))


def test_ranges_of_sigma_are_found_without_a_loop():
    edges = np.asarray(denoising.SIGMA_EDGES, np.float32)
    sigma = np.float32([1e-3, *edges, *(edges * 1.01), 80, np.nan])
    ones = jnp.ones_like(sigma)
    found = denoising._by_sigma(sigma, ones, ones)["share"] * len(sigma)
    place = np.searchsorted(edges, sigma)
    np.testing.assert_allclose(found, np.bincount(place, minlength=len(edges) + 1))
    primitives = str(jax.make_jaxpr(denoising._by_sigma)(sigma, ones, ones))
    assert "scan" not in primitives and "while" not in primitives


def same(a, b):
    """Whether all arrays have the same bits."""
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def raw(seen):
    return seen | {"dropout_keys": jax.random.key_data(seen["dropout_keys"])}


@pytest.mark.slow
@pytest.mark.parametrize("augment", [Flip(0.0), EdmUnflipped(probability=0.0)])
def test_augmentation_that_never_happens_changes_no_bit(augment):
    metrics, seen = evaluate(BATCH, keys(4))
    again, with_it = evaluate(BATCH, keys(4), augment=augment)
    assert seen["augment_label"] is None
    told = with_it["augment_label"]
    if augment.labels:
        np.testing.assert_array_equal(told, np.zeros((4, 9)))
    assert same(again, metrics)
    assert same(raw(with_it) | {"augment_label": None}, raw(seen))


def test_the_denoiser_is_trained_on_the_transformed_image_under_the_same_noise():
    flipped = BATCH | {"image": IMAGE[:, :, ::-1]}
    metrics, seen = evaluate(flipped, keys(4))
    again, with_it = evaluate(BATCH, keys(4), augment=Flip(1.0))
    assert same(again, metrics)
    assert same(raw(with_it), raw(seen))
    _, seen = evaluate(BATCH, keys(4), augment=Edm(probability=0.0))
    mirrored = np.asarray(seen["augment_label"])[:, 0] == 1
    assert 0 < mirrored.sum() < 4
    noise = np.asarray(evaluate(BATCH, keys(4))[1]["x"]) - IMAGE
    image = np.where(mirrored[:, None, None, None], IMAGE[:, :, ::-1], IMAGE)
    np.testing.assert_allclose(np.asarray(seen["x"]) - image, noise, atol=1e-5)


def test_label_dropout_hides_its_share_of_the_classes_and_draws_nothing_else():
    class Told(FakeDenoiser):
        encode = staticmethod(lambda label: jax.nn.one_hot(label, 3))

        def __call__(self, params, x, sigma, label, *others):
            self.label = label
            return super().__call__(params, x, sigma, label, *others)

    @functools.partial(jax.jit, static_argnums=1)
    def seen(label, share):
        denoiser = Told()
        batch = MANY | {"label": label}
        diffusion.make_loss(denoiser, -0.4, 1.0, NONE, share)(0.0, batch, keys(5000))
        return denoiser.label, denoiser.seen

    label = jnp.arange(5000) % 3
    plain, before = seen(label, 0.0)
    told, after = seen(label, 0.1)
    np.testing.assert_array_equal(plain, label)
    hidden = np.asarray(told).sum(axis=1) == 0
    assert hidden.mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(np.argmax(told[~hidden], axis=1), label[~hidden])
    for name in ("x", "sigma", "dropout_keys"):
        np.testing.assert_array_equal(
            jax.random.key_data(before[name]) if "keys" in name else before[name],
            jax.random.key_data(after[name]) if "keys" in name else after[name],
        )


def test_an_unconditional_denoiser_tells_its_network_no_class():
    model = configs.load(f"{configs.letter_path('g')}:digits-tiny").model
    label = jnp.array([3, 1])
    assert diffusion.Denoiser(model, 0.5).encode(label).argmax(1).tolist() == [3, 1]
    hidden = diffusion.Denoiser(model, 0.5, unconditional=True).encode(label)
    assert hidden.shape == (2, 10) and not hidden.any()
