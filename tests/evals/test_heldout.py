"""The held-out loss on many devices: shared rows, and weights that are moved once."""

import jax
import numpy as np
import pytest

import configs
from edm_jax import diffusion
from edm_jax.evals import heldout

ROWS = 40


@pytest.fixture(scope="module")
def denoiser():
    overrides = {"network.channel_mult": "(1,)"}
    reference = f"{configs.letter_path('g')}:digits-tiny"
    return diffusion.Denoiser(configs.load(reference, overrides).model, 0.5)


@pytest.fixture(scope="module")
def shared(denoiser):
    return heldout.Inference(denoiser, 15)


@pytest.fixture(scope="module")
def params(denoiser):
    gains = jax.tree.map(lambda w: w + (w.ndim == 0), denoiser.model.init(0))
    return jax.tree.map(np.asarray, gains)


def inputs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 8, 8, 1)).astype(np.float32)
    return x, rng.uniform(0.1, 2, ROWS).astype(np.float32), np.arange(ROWS) % 10


@pytest.mark.slow
def test_eight_devices_denoise_as_one_does_an_eighth_of_the_rows_each(
    denoiser, shared, params
):
    assert shared.batch_size == 16
    alone = heldout.Inference(denoiser, 16, devices=jax.devices()[:1])
    found, expected = (i.denoise(params, *inputs()) for i in (shared, alone))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    abstract = [jax.ShapeDtypeStruct(x[:16].shape, x.dtype) for x in inputs()]
    compiled = shared._forward.lower(shared._devices.place(params), *abstract).compile()
    assert compiled.output_shardings.shard_shape((16, 8, 8, 1)) == (2, 8, 8, 1)


def test_weights_go_to_the_devices_once_for_all_batches(shared, params, monkeypatch):
    moved = []
    put = jax.device_put

    def counting(tree, where):
        moved.append(sum(x.nbytes for x in jax.tree.leaves(tree)))
        return put(tree, where)

    monkeypatch.setattr(jax, "device_put", counting)
    with jax.transfer_guard_host_to_device("disallow"):
        shared.denoise(params, *inputs())
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    assert moved.count(size) == 1 and len(moved) == 1 + 3


def test_a_denoised_image_is_all_that_a_loss_computes(shared, params):
    batch = shared._batch(0, *inputs())
    made = jax.eval_shape(shared._forward, params, *batch)
    assert made.shape == (16, 8, 8, 1)
