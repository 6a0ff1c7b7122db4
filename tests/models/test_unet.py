"""The U-Nets of A-G against the paper's counts and an independent forward pass."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle_unet
import pytest
from tiny_unets import (
    BATCH,
    example,
    initial_params,
    model_of,
    random_params,
    tiny_model,
)

from edm_jax.diffusion.denoiser import Denoiser
from edm_jax.models import layers, unet
from edm_jax.models.build import count_params

# Trainable parameters without the head: A, B, C-E, F, G (Table 1 rounds to 0.1M).
COUNTS = {
    "imagenet512-s": (295902724, 291757828, 277816512, 280212672, 280212709),
    "imagenet64-s": (295899267, 291754371, 277813056, 280209216, 280209253),
    "imagenet512-xxs": (33106436, 32642308, 31042624, 31308864, 31308901),
}
COLUMN = {"a": 0, "b": 1, "c": 2, "d": 2, "e": 2, "f": 3, "g": 4}
HEAD_COUNTS = {"a": 0, "b": 129} | dict.fromkeys("cdefg", 128)
# Table 6, config G, in millions.
PRESET_COUNTS = {"xs": 124.7, "m": 497.8, "l": 777.5, "xl": 1119.3, "xxl": 1523.2}
ORACLES = Path(__file__).parent.parent / "oracles"
QUICK_COMPILE = {"xla_backend_optimization_level": 0}  # in half the time


def assert_papers_counts(letter, workload):
    params = model_of(letter, workload).shapes
    count = count_params(params["unet"])
    assert count == COUNTS[workload][COLUMN[letter]]
    assert count_params(params) - count == HEAD_COUNTS[letter]


@functools.cache
def gradients_of(letter):
    """Jitted (params, x, sigma, label) -> ((sum of r D and of u, (D, u)), gradients)."""
    denoiser = Denoiser(tiny_model(letter), 0.5)
    weight = np.random.default_rng(5).normal(size=(BATCH, 8, 8, 3)).astype(np.float32)

    def objective(params, x, sigma, label):
        image, logvar, _ = denoiser(params, x, sigma, label)
        total = jnp.sum(weight * image) + 10 * jnp.sum(logvar * sigma)
        return total, (image, logvar)

    evaluate = jax.value_and_grad(objective, has_aux=True)
    return jax.jit(evaluate, compiler_options=QUICK_COMPILE)


def inner(image):
    """F of a denoised image, by Eq. 4 and 5-8."""
    x, sigma, _ = example()
    sigma = sigma.astype(np.float64).reshape(-1, 1, 1, 1)
    total = sigma**2 + 0.25
    return (image - 0.25 / total * x) / (0.5 * sigma / np.sqrt(total))


@functools.cache
def result(letter):
    """(D, u) and gradients at the random parameters, as NumPy."""
    (_, denoised), grads = gradients_of(letter)(random_params(letter), *example())
    return jax.tree.map(np.asarray, (denoised, grads))


def kernels(letter):
    """(name, w, dL/dw) of every kernel, as (fan-in, out)."""
    grads = jax.tree_util.tree_leaves_with_path(result(letter)[1])
    for (path, g), w in zip(grads, jax.tree.leaves(random_params(letter)), strict=True):
        if path[-1].key == "kernel":
            flat = (-1, w.shape[-1])
            yield jax.tree_util.keystr(path), w.reshape(flat), g.reshape(flat)


@pytest.mark.slow
@pytest.mark.parametrize("letter", "abcdefg")
def test_parameter_counts_are_the_papers(letter):
    assert_papers_counts(letter, "imagenet512-s")


@pytest.mark.slow
@pytest.mark.parametrize("letter", "abcdefg")
def test_denoisers_equal_those_exported_to_pytorch(letter):
    """By the stored outputs of the exported modules (tests/oracles/exported_modules.py)."""
    with np.load(ORACLES / "exported_modules.npz") as golden:
        (image, logvar), _ = result(letter)
        np.testing.assert_allclose(image, golden[letter], rtol=0, atol=1e-5)
        if letter != "a":
            wanted = golden[f"{letter}_logvar"]
            np.testing.assert_allclose(logvar, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("letter", "abcdefg")
@pytest.mark.parametrize("workload", ["imagenet64-s", "imagenet512-xxs"])
def test_parameter_counts_at_other_sizes_are_the_papers(workload, letter):
    assert_papers_counts(letter, workload)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "millions"), PRESET_COUNTS.items())
def test_preset_sizes_are_the_papers(size, millions):
    params = model_of("g", f"imagenet512-{size}").shapes
    count = count_params(params["unet"])
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    "letter", [*(pytest.param(x, marks=pytest.mark.slow) for x in "abcdf"), "g"]
)
def test_the_denoiser_agrees_with_an_independent_forward_pass(letter):
    (image, logvar), _ = result(letter)
    x, sigma, label = (np.asarray(each, np.float64) for each in example())
    inputs = random_params(letter), x, sigma, label
    expected = oracle_unet.denoise(letter.upper(), *inputs, clamp=2.5)
    # In units of F: a fault of the network is not hidden where c_out is small.
    f = inner(expected[0])
    rms = np.sqrt(np.mean(f**2))
    np.testing.assert_allclose(inner(image) / rms, f / rms, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logvar, expected[1], atol=2e-5)


@pytest.mark.parametrize("letter", "abcdfg")
def test_every_trained_parameter_matters_and_fourier_features_are_frozen(letter):
    for path, g in jax.tree_util.tree_leaves_with_path(result(letter)[1]):
        frozen = path[-1].key in ("freqs", "phases")
        assert np.any(g != 0) != frozen, jax.tree_util.keystr(path)


def radial_part(w, g):
    """|<w, dL/dw>| / |w| |dL/dw| of each output unit."""
    norms = np.linalg.norm(w, axis=0) * np.linalg.norm(g, axis=0)
    return np.abs(np.sum(w * g, axis=0)) / (norms + 1e-30)


# E's network is D's: test_configs has the difference.
@pytest.mark.parametrize("letter", "dfg")
def test_gradients_are_orthogonal_to_normalized_weights(letter):
    for name, w, g in kernels(letter):
        # The additive eps leaves a part eps / (eps + RMS) of the radial gradient.
        assert np.all(radial_part(w, g) < 0.02), name
        assert np.median(radial_part(w, g)) < 0.002, name


def test_gradients_are_not_orthogonal_to_unnormalized_weights():
    cosines = np.concatenate([radial_part(w, g) for _, w, g in kernels("c")])
    assert np.median(cosines) > 0.03


# Out of a unit-RMS group norm and a SiLU (RMS .596) C's weights make 1/sqrt(3) and D's 1;
# a zero border takes a factor 22/24 from an 8x8 image. F's main path is not normalized.
@pytest.mark.parametrize(
    ("letter", "lowest", "highest"),
    [
        ("a", 0, 0),
        ("b", 0, 0),
        ("c", 0.596 / math.sqrt(3) * 22 / 24 * 0.75, 0.4),
        ("d", 0.596 * 22 / 24 * 0.75, 0.75),
        ("f", 0.8, 2.0),
        ("g", 0, 0),
    ],
)
def test_initial_output_has_the_expected_magnitude(letter, lowest, highest):
    (_, (image, _)), _ = gradients_of(letter)(initial_params(letter), *example())
    rms = np.sqrt(np.mean(inner(np.asarray(image)) ** 2))
    assert lowest - 1e-6 <= rms <= highest + 1e-6


def block_outputs(model, params, inputs):
    """Outputs of the blocks, embedding, input and output convolution, by name."""
    kinds = unet.Block, unet.Embedding, layers.Layer
    _, state = unet.Network(model.spec).apply(
        {"params": params},
        *inputs,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, kinds),
    )
    outputs = state["intermediates"]["unet"]
    return {name: each["__call__"][0] for name, each in outputs.items()}


@pytest.mark.slow
def test_blocks_of_g_keep_unit_magnitude_throughout():
    model = model_of("g", overrides={"network.model_channels": "64"})
    rng = np.random.default_rng(0)
    inputs = (
        rng.normal(size=(32, 8, 8, 1)).astype(np.float32),
        (rng.normal(-0.4, 1, 32) / 4).astype(np.float32),
        np.eye(10, dtype=np.float32)[rng.integers(10, size=32)],
    )

    def magnitudes(params):
        outputs = block_outputs(model, params, inputs)
        return {name: jnp.sqrt(jnp.mean(y**2)) for name, y in outputs.items()}

    by_block = jax.jit(magnitudes)(model.init(0))
    assert by_block.pop("out_conv") == 0
    assert len(by_block) == 12
    for name, magnitude in by_block.items():
        assert 0.78 < magnitude < 1.1, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("half_precision", "ends"), [("full", jnp.bfloat16), ("partial", jnp.float32)]
)
def test_half_precision_reaches_the_blocks_but_not_the_embedding(half_precision, ends):
    words = {"compute_dtype": "bfloat16", "half_precision": half_precision}
    model = model_of("g", overrides={f"network.{x}": word for x, word in words.items()})
    params = model.shapes
    inputs = model.inputs()
    outputs = jax.eval_shape(lambda p, x: block_outputs(model, p, x), params, inputs)
    assert outputs.pop("embedding").dtype == jnp.float32
    assert outputs.pop("enc_8x8_conv").dtype == outputs.pop("out_conv").dtype == ends
    assert {each.dtype for each in outputs.values()} == {jnp.dtype(jnp.bfloat16)}


def leaves_where(letter, condition):
    leaves = jax.tree_util.tree_leaves_with_path(initial_params(letter)["unet"])
    return {"/".join(k.key for k in path[-2:]) for path, x in leaves if condition(x)}


def test_a_starts_the_end_of_every_branch_at_zero_and_g_only_its_gains():
    ends = {f"{end}/kernel" for end in ("conv1", "proj", "out_conv")}
    biases = {"norm0", "norm1", "norm", "out_norm", "conv1", "proj", "out_conv"}
    expected = {
        "a": ends | {f"{name}/bias" for name in biases},
        "g": {"emb_linear/gain", "out_conv/gain"},
    }
    for letter, names in expected.items():
        assert leaves_where(letter, lambda x: not x.any()) == names
        assert not names & leaves_where(letter, np.any)


def test_weights_start_uniform_in_c_and_normal_in_d():
    by_letter = {}
    for letter in "cd":
        leaves = jax.tree.leaves(initial_params(letter)["unet"])
        weights = [x for x in leaves if x.ndim > 1]
        scales = [math.sqrt(w[..., 0].size) if letter == "c" else 1 for w in weights]
        scaled = [s * w.ravel() for s, w in zip(scales, weights, strict=True)]
        by_letter[letter] = np.concatenate(scaled)
    assert np.mean(by_letter["c"] ** 2) == pytest.approx(1 / 3, rel=0.02)
    assert 0.99 < np.max(np.abs(by_letter["c"])) <= 1 + 1e-6
    assert np.mean(by_letter["d"] ** 2) == pytest.approx(1, rel=0.02)
    assert np.mean(by_letter["d"] ** 4) == pytest.approx(3, rel=0.05)


def test_networks_share_the_initial_values_of_shared_layers():
    d, f = (initial_params(letter)["unet"] for letter in "df")
    for name in ("enc_8x8_conv", "dec_8x8_block0", "out_conv"):
        jax.tree.map(np.testing.assert_array_equal, d[name], f[name])


def test_every_block_draws_its_own_dropout(monkeypatch):
    salts = []
    monkeypatch.setattr(layers, "dropout", lambda x, *args: salts.append(args[2]) or x)
    assert model_of("d").shapes
    assert len(salts) == len(set(salts)) == 10


@pytest.mark.slow
def test_dropout_is_at_its_resolutions_only(monkeypatch):
    rates = set()
    monkeypatch.setattr(
        layers, "dropout", lambda x, rate, *_: rates.add((x.shape[1], rate)) or x
    )
    # A rate of its own: the shapes of a model like another's are not traced again.
    rate = {"network.dropout": "0.17"}
    assert model_of("d", overrides=rate).shapes
    assert rates == {(8, 0.17), (4, 0.17)}
    rates.clear()
    some = rate | {"network.dropout_resolutions": "4,"}
    assert model_of("d", overrides=some).shapes
    assert rates == {(8, 0.0), (4, 0.17)}
    with pytest.raises(ValueError, match="resolutions has 16, but the levels are 8, 4"):
        model_of("d", overrides={"network.dropout_resolutions": "16,4"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("letter", "added", "starts_at_zero"),
    [("a", 9 * 16, True), ("d", 9 * 16, False), ("g", 9 * 16 + 1, True)],
)
def test_the_augmentation_is_told_by_one_layer_that_is_idle_without(
    letter, added, starts_at_zero
):
    plain = model_of(letter)
    told = model_of(letter, overrides={"data.augment.name": "edm_unflipped"})
    assert count_params(told.shapes) == count_params(plain.shapes) + added
    params = told.init(0)["unet"]["embedding"]
    shared = {name: each for name, each in params.items() if name != "augment"}
    inputs = jnp.float32([0.1, -0.7]), jnp.eye(2, 10)
    before = plain.init(0)["unet"]["embedding"]
    jax.tree.map(np.testing.assert_array_equal, shared, before)
    expected = unet.Embedding(plain.spec).apply({"params": before}, *inputs, None)
    if starts_at_zero:
        values = jnp.ones((2, 9))
        emb = unet.Embedding(told.spec).apply({"params": params}, *inputs, values)
        np.testing.assert_array_equal(emb, expected)
    params |= {"augment": trained(params["augment"])}
    embed = functools.partial(unet.Embedding(told.spec).apply, {"params": params})
    np.testing.assert_array_equal(embed(*inputs, None), expected)
    np.testing.assert_array_equal(embed(*inputs, jnp.zeros((2, 9))), expected)
    assert np.abs(embed(*inputs, jnp.ones((2, 9))) - expected).min() > 1e-4


def trained(layer):
    """A layer's parameters, all redrawn."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda w: np.float32(rng.normal(size=w.shape)), layer)


@pytest.mark.slow
def test_widths_of_noise_and_embedding_follow_the_network_or_are_their_own():
    widths = {"network.noise_channels": "6", "network.embedding_channels": "10"}
    shapes = model_of("g", overrides=widths).shapes["unet"]
    assert shapes["embedding"]["noise0"]["kernel"].shape == (6, 10)
    assert shapes["embedding"]["label"]["kernel"].shape == (10, 10)
    block = shapes["dec_4x4_in0"]["branch"]
    assert block["emb_linear"]["kernel"].shape == (10, 16)
    shapes = model_of("g").shapes["unet"]
    assert shapes["embedding"]["noise0"]["kernel"].shape == (8, 16)
