"""Weights of one network in another: what is kept computes the same, the rest is stated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from edm_jax import tree
from edm_jax.models.build import build
from edm_jax.train import transplant
from edm_jax.train.starts import Weights

SMALL = {
    "network.model_channels": "8",
    "network.channel_mult": "(1,1)",
    "network.blocks_per_level": "1",
}

SAME = Weights("x")


def network(letter="g", **fields):
    fields = {f"network.{k}": v for k, v in fields.items()}
    path = f"{configs.letter_path(letter)}:digits-tiny"
    return configs.load(path, SMALL | fields).network


def drawn(net, seed=0):
    """Flat weights of a network, every leaf random, gains too."""
    flat = tree.flatten(build(net, uncertainty=True).init(seed))
    rng = np.random.default_rng(seed)
    return {
        name: x if x.any() and x.ndim else x + rng.normal(0.5, 0.1, x.shape)
        for name, x in flat.items()
    }


def moved(source, net, start=SAME, seed=1):
    here = drawn(net, seed)
    shapes = [{n: x.shape for n, x in each.items()} for each in (source, here)]
    found = transplant.fit(*shapes, start, net)
    return transplant.transplant(found, source, here, start, net), found


def outputs(net, flat, label, side=None, channels=None):
    model = build(net, uncertainty=True)
    rng = np.random.default_rng(2)
    side, channels = side or net.resolution, channels or net.channels
    x = rng.standard_normal((3, side, side, channels)).astype(np.float32)
    x = np.concatenate([x, np.zeros((3, side, side, net.channels - channels))], -1)
    c_noise = np.array([-1.0, 0.1, 0.6], np.float32)
    params = jax.tree.map(jnp.float32, tree.unflatten(flat))
    with jax.default_matmul_precision("highest"):
        return model.apply(params, jnp.float32(x), c_noise, label)[0]


def one_hot(classes, count):
    return jnp.eye(count, dtype=jnp.float32)[np.array(classes)]


@pytest.mark.slow
@pytest.mark.parametrize("letter", ["a", "c", "g"])
def test_classes_that_are_kept_compute_the_same_under_their_new_numbers(letter):
    """Half of the classes twice: in every channel their RMS stays that of the source."""
    there = network(letter, num_classes="4")
    source = drawn(there)
    label = source[transplant.LABEL]
    # As after forced weight normalization, the two halves have equal RMS.
    label[2:] = label[:2][::-1]
    here = network(letter, num_classes="2")
    flat, found = moved(source, here, Weights("x", classes=(3, 2)))
    before = outputs(there, source, one_hot([0, 1, 0], 4))
    after = outputs(here, flat, one_hot([0, 1, 0], 2))
    np.testing.assert_allclose(before, after, atol=2e-5)
    assert [each.name for each in found.adapted] == [transplant.LABEL]


@pytest.mark.slow
def test_new_classes_start_from_the_mean_or_fresh_and_the_rest_of_a_row_is_copied():
    there, here = network(num_classes="3"), network(num_classes="4")
    source = drawn(there)
    label = source[transplant.LABEL]
    flat, found = moved(source, here)
    np.testing.assert_array_equal(flat[transplant.LABEL][:3], label)
    np.testing.assert_allclose(flat[transplant.LABEL][3], label.mean(0), atol=1e-6)
    assert found.adapted[0].how == "3 classes copied, 1 new (mean)"
    start = Weights("x", classes=(2, -1, 0, 2), new_class="fresh")
    flat, _ = moved(source, here, start)
    fresh = drawn(here, 1)[transplant.LABEL]
    expected = np.stack([label[2], fresh[1], label[0], label[2]])
    np.testing.assert_array_equal(flat[transplant.LABEL], expected)


@pytest.mark.slow
@pytest.mark.parametrize("letter", ["b", "g"])
def test_a_network_ignores_channels_that_the_source_did_not_have(letter):
    """Zeros in a kernel change no sum, and a norm only by normalization's eps of 1e-4."""
    there, here = network(letter, channels="1"), network(letter, channels="3")
    source = drawn(there)
    flat, found = moved(source, here)
    label = one_hot([0, 1, 2], there.num_classes)
    before = outputs(there, source, label)
    after = outputs(here, flat, label, channels=1)
    np.testing.assert_allclose(before, after[..., :1], atol=2e-4)
    back, _ = moved(flat, there)
    for name in source:
        np.testing.assert_array_equal(back[name], np.float32(source[name]))
    assert {"unet/enc_8x8_conv/kernel", "unet/out_conv/kernel"} <= {
        each.name for each in found.adapted
    }


@pytest.mark.slow
def test_levels_correspond_at_another_resolution():
    there, here = network(), network(resolution="16", attention_resolutions="(8,)")
    there = dataclasses.replace(there, attention_resolutions=(4,))
    source = drawn(there)
    flat, found = moved(source, here)
    names = [
        ("unet/enc_16x16_conv/kernel", "unet/enc_8x8_conv/kernel"),
        (
            "unet/dec_8x8_in0/branch/conv0/kernel",
            "unet/dec_4x4_in0/branch/conv0/kernel",
        ),
    ]
    for name, of in names:
        np.testing.assert_array_equal(flat[name], source[of])
    assert not (found.adapted or found.initialized or found.dropped)
    wrong = dataclasses.replace(here, attention_resolutions=(16,))
    with pytest.raises(ValueError, match=r"attention_resolutions='\(8,\)'"):
        moved(source, wrong)


def test_what_does_not_fit_is_one_sentence_with_the_shapes():
    there, here = network(), network(model_channels="16")
    with pytest.raises(ValueError, match=r"is \(8, 8\) there and \(16, 16\) here"):
        moved(drawn(there), here)
    for classes, said in (
        ((0, 1), "has 2 entries, but the network has 10 classes"),
        ((0,) * 9 + (10,), "the source has 10 classes"),
    ):
        with pytest.raises(ValueError, match=said):
            moved(drawn(there), there, Weights("x", classes=classes))
    with pytest.raises(ValueError, match="-1 for a new one"):
        Weights("x", classes=(-2,))


def test_classes_may_be_dropped_or_come_new_as_a_whole():
    there, none = network(), network(num_classes="0")
    _, found = moved(drawn(there), none)
    assert found.dropped == [transplant.LABEL] and not found.initialized
    flat, found = moved(drawn(none), there)
    assert found.initialized == [transplant.LABEL]
    np.testing.assert_array_equal(
        flat[transplant.LABEL], drawn(there, 1)[transplant.LABEL]
    )
