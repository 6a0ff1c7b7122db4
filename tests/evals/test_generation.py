"""An image depends on its seed, its class and the weights, and on nothing else."""

import jax
import numpy as np
import pytest

import configs
from edm_jax import diffusion
from edm_jax.diffusion.noise_levels import NoiseLevels
from edm_jax.diffusion.samplers import Heun, StochasticHeun
from edm_jax.evals.generation import Generator, Guidance, Recipe

LEVELS = NoiseLevels(num_steps=3)
SEEDS = np.arange(64)
LABELS = SEEDS % 10


@pytest.fixture(scope="module")
def denoiser():
    overrides = {"network.channel_mult": "(1,)"}
    reference = f"{configs.letter_path('g')}:digits-tiny"
    return diffusion.Denoiser(configs.load(reference, overrides).model, 0.5)


@pytest.fixture(scope="module")
def params(denoiser):
    """Weights of a network that does something: its gains are not zero."""
    return random_gains(denoiser.model.init(0), 1)


def random_gains(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda w: np.float32(rng.normal(1, 0.3)) if w.ndim == 0 else np.asarray(w),
        params,
    )


def one_device(denoiser, recipe, **more):
    return Generator(denoiser, recipe, 64, devices=jax.devices()[:1], **more)


@pytest.fixture(scope="module")
def generate(denoiser):
    return one_device(denoiser, Recipe(Heun(), LEVELS))


@pytest.fixture(scope="module")
def images(generate, params):
    return generate(params, SEEDS, LABELS)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_an_image_is_the_same_to_the_bit_in_a_batch_of_1_7_or_64(
    generate, params, images, count
):
    found = [
        generate(params, SEEDS[i : i + count], LABELS[i : i + count]) for i in (0, 7)
    ]
    np.testing.assert_array_equal(found[0], images[:count])
    np.testing.assert_array_equal(found[1], images[7 : 7 + count])


def test_an_image_is_the_same_to_the_bit_in_any_order(generate, params, images):
    order = np.random.default_rng(0).permutation(64)
    seen = []
    found = generate(
        params, SEEDS[order], LABELS[order], on_progress=lambda *p: seen.append(p)
    )
    np.testing.assert_array_equal(found, images[order])
    assert seen == [(0, 64), (64, 64)]
    assert len(np.unique(found.reshape(64, -1), axis=0)) == 64


def test_a_batch_that_is_not_full_is_compiled_once(generate, params):
    generate(params, range(70), np.arange(70) % 10)
    assert generate._sample._cache_size() == 1


@pytest.mark.slow
def test_eight_devices_make_the_images_of_one(denoiser, params):
    recipe = Recipe(StochasticHeun(s_churn=1.0), LEVELS)
    alone = one_device(denoiser, recipe)(params, SEEDS, LABELS)
    shared = Generator(denoiser, recipe, 61)
    assert len(jax.devices()) == 8 and shared.batch_size == 64
    found = shared(params, SEEDS[:30], LABELS[:30])
    np.testing.assert_allclose(found, alone[:30], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_guide_changes_images_by_its_weight_and_in_its_interval(
    denoiser, generate, params, images
):
    guided = one_device(denoiser, Recipe(Heun(), LEVELS), guide=denoiser)
    weak = random_gains(params, 2)

    def by(*guidance):
        found = guided(params, SEEDS[:8], LABELS[:8], Guidance(*guidance))
        return np.abs(found - images[:8]).max()

    # w D + (1 - w) D_guide is D where w = 1, where the two agree, and outside.
    assert by(weak, 1.0) < 2e-3 and by(params, 3.0) < 2e-3
    assert by(weak, 2.0, (0.1, 1.0)) < 2e-3  # between two levels
    assert by(weak, 2.0, (1.0, 80.0)) > 0.1
    # At w = 0 they are the guide's own.
    own = generate(weak, SEEDS[:8], LABELS[:8]) - images[:8]
    assert by(weak, 0.0) == pytest.approx(np.abs(own).max(), rel=1e-3)
    assert guided._sample._cache_size() == 1
