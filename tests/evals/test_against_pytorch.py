"""Feature networks and distances against PyTorch's, by stored values.

tests/oracles/feature_networks.py made them, with the same random weights.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights

from edm_jax.evals import distances, frechet
from edm_jax.evals.features.extraction import Extractor, _features
from edm_jax.evals.features.networks import NETWORKS, Loaded
from edm_jax.models import pretrained, resizing
from edm_jax.models.dinov2 import DinoV2
from edm_jax.original import weights

ORACLES = Path(__file__).parent.parent / "oracles"
GRID, SIDE = 5, 4  # of patches: when trained, and as used


@pytest.fixture(scope="module")
def golden():
    with np.load(ORACLES / "feature_networks.npz") as archive:
        return {name: archive[name] for name in archive.files}


def test_resizing_is_tensorflow_1s_and_pytorchs(golden):
    images = jnp.float32(random_weights.pictures(1, 20, 50))
    for name, side in (("bilinear_tf1", 31), ("bicubic", 28)):
        resize = getattr(resizing, name)
        found = resizing.apply(resize(20, side), resize(50, side), images)
        scale = np.abs(golden[name]).max()
        assert np.abs(found - golden[name]).max() < 1e-5 * scale
    for grid, side, wanted in zip(
        (37, GRID), (16, SIDE), golden["positions"], strict=True
    ):
        drawn = random_weights.tensor("pos_embed", (1, 1 + grid**2, 2))
        positions = drawn[0, 1:, 0].reshape(grid, grid)
        matrix = resizing.bicubic_torch(grid, side, (side + 0.1) / grid)
        found = (matrix @ positions @ matrix.T).ravel()[:9]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def with_random_weights(network):
    wanted = pretrained.shapes(network.module, network.side)
    tensors = {}
    for name, shape in wanted.items():
        theirs = pretrained.spelled(name)
        if name.endswith("kernel"):  # the axes as PyTorch has them
            shape = (shape[-1], *reversed(shape[:-1])) if len(shape) == 2 else (
                shape[3], shape[2], shape[0], shape[1]
            )  # fmt: skip
        tensors[theirs] = random_weights.tensor(theirs, shape)
    return Loaded(network, pretrained.fill(wanted, tensors), "")


@pytest.mark.slow
def test_inception_gives_the_features_and_logits_of_torch_fidelity(golden):
    loaded = with_random_weights(NETWORKS["inception"])
    extract = Extractor(loaded, batch_size=2, devices=jax.devices()[:1])
    found = extract(random_weights.pictures(2, 40, 56))
    pairs = (found.vectors, "inception"), (found.logits, "inception_logits")
    for value, name in pairs:
        assert value.shape == golden[name].shape
        error = np.abs(value - golden[name]).max()
        assert error < 1e-4 * np.abs(golden[name]).max()


@pytest.mark.parametrize("name", ["vit", "vit_interpolated"])
def test_dinov2_is_timms_transformer_with_its_own_positions(golden, name):
    grid = SIDE if name == "vit" else GRID
    module = DinoV2(channels=24, depth=2, heads=3, grid=grid)
    network = dataclasses.replace(NETWORKS["dinov2"], module=module, side=14 * SIDE)
    loaded = with_random_weights(network)
    images = random_weights.pictures(2, 40, 30)
    found, _ = jax.jit(lambda p, x: _features(network, p, x))(loaded.params, images)
    error = np.abs(found - golden[name]).max()
    assert error < 1e-4 * np.abs(golden[name]).max()


def test_distances_are_torch_fidelitys_to_6_digits(golden):
    rng = np.random.default_rng(0)
    real = rng.standard_normal((80, 8))
    fake = 0.3 + 1.2 * rng.standard_normal((70, 8))
    fid = frechet.frechet_distance(*map(frechet.gaussian_fit, (real, fake)))
    found = {
        "frechet_inception_distance": fid,
        "kernel_inception_distance_mean": distances.kid(real, fake, 5, 20)[0],
        "kernel_inception_distance_std": distances.kid(real, fake, 5, 20)[1],
        "inception_score_mean": distances.inception_score(fake)[0],
        "inception_score_std": distances.inception_score(fake)[1],
        "precision": distances.precision_recall(real, fake)[0],
        "recall": distances.precision_recall(real, fake)[1],
    }
    for name, value in found.items():
        assert value == pytest.approx(float(golden[name]), rel=1e-6), name


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_files_that_pytorch_wrote_are_read(name):
    found = weights.read(ORACLES / name)
    np.testing.assert_array_equal(found["conv.weight"], np.arange(24).reshape(4, 6).T)
    np.testing.assert_array_equal(found["running_var"], np.ones(3))
    assert found["num_batches_tracked"] == 0 and found["count"] == 7
    assert found["half"].dtype == np.float16
