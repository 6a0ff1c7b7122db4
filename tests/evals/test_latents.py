"""Claims about the VAE: diffusers' numbers, in both directions, and the range of pixels."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import random_weights
import safetensors.numpy
from PIL import Image

from edm_jax import data
from edm_jax.evals import gallery, latents
from edm_jax.evals.features import sources
from edm_jax.models import pretrained, vae
from experiments import prepare_data

ORACLES = Path(__file__).parents[1] / "oracles"
SMALL = {
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def golden():
    return np.load(ORACLES / "vae.npz")


@pytest.fixture(scope="module")
def tensors(golden):
    """Those of diffusers' module, by its names."""
    structure = vae.Structure(**{k: _tuple(v) for k, v in SMALL.items()})
    shapes = pretrained.shapes(vae.Vae(structure), 8)
    theirs = {pretrained.spelled(name): shape for name, shape in shapes.items()}
    turned = {2: (1, 0), 4: (3, 2, 0, 1)}
    found = {}
    for name in golden["names"].tolist():
        shape = theirs[name]
        if name.endswith("weight") and len(shape) > 1:
            shape = tuple(shape[axis] for axis in turned[len(shape)])
        found[name] = random_weights.tensor(name, shape)
    return found


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


def write(place, tensors, config=SMALL, name="diffusion_pytorch_model.safetensors"):
    place.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, place / name)
    if config is not None:
        text = json.dumps({"_class_name": "AutoencoderKL", **config})
        (place / "config.json").write_text(text)
    return str(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tensors):
    return write(tmp_path_factory.mktemp("vae") / "small", tensors)


@pytest.fixture(scope="module")
def coder(folder):
    return latents.Vae(folder).coder


def pictures():
    return random_weights.pictures(2, 24, 16).astype(np.float32) / 255


def test_every_tensor_of_diffusers_module_has_a_place(golden, tensors):
    assert sorted(tensors) == sorted(golden["names"].tolist())


def test_latents_are_those_of_diffusers(coder, golden):
    mean, std = coder.moments(pictures())
    assert mean.shape == (2, 6, 4, 4)
    np.testing.assert_allclose(mean, golden["mean"], atol=1e-4 * golden["mean"].std())
    np.testing.assert_allclose(std, golden["std"], rtol=1e-4)


def test_pictures_are_those_of_diffusers(coder, golden):
    decoded = coder.values(golden["mean"])
    wanted = golden["decoded"]
    np.testing.assert_allclose(decoded, wanted, atol=1e-4 * wanted.std())


def test_symmetric_pixels_are_twice_the_unit_ones_less_1(coder, folder):
    unit = pictures()
    symmetric = latents.Coder(folder, "symmetric")
    # Its own inputs in [-1, 1] give the other network those numbers.
    for ours, other in zip(symmetric.moments(unit), coder.moments(2 * unit - 1)):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-5)
    z = coder.moments(unit)[0]
    wanted = (coder.values(z) + 1) / 2
    np.testing.assert_allclose(symmetric.values(z), wanted, rtol=1e-4, atol=1e-5)
    assert abs(symmetric.moments(unit)[0] - coder.moments(unit)[0]).max() > 0.1


def test_eight_bit_pictures_go_in_and_come_out(coder):
    images = random_weights.pictures(5, 24, 16)  # a batch, and one more
    moments = coder.encode(images)
    assert moments.shape == (5, 6, 4, 8) and moments.dtype == np.float32
    np.testing.assert_allclose(moments[4:], coder.encode(images[4:]), atol=1e-5)
    decoded = coder.decode(moments[..., :4])
    unit = np.clip(coder.values(moments[..., :4]), 0, 1)
    assert decoded.dtype == np.uint8 and decoded.shape == images.shape
    np.testing.assert_allclose(decoded, 255 * unit, atol=0.5001)


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_files_from_before_2023_and_in_half_precision_are_read(
    tmp_path, tensors, coder
):
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in OLD.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor.astype(np.float16)
    assert renamed.keys() != tensors.keys()
    found = latents.Coder(write(tmp_path / "pipeline" / "vae", renamed), "unit")
    also = latents.Coder(str(tmp_path / "pipeline"), "unit")  # the folder above
    assert found.digest == also.digest != coder.digest
    mean = found.moments(pictures())[0]
    np.testing.assert_allclose(mean, coder.moments(pictures())[0], atol=0.02)


def test_weights_that_do_not_fit_are_refused(tmp_path, tensors):
    def refused(why, tensors=tensors, config=SMALL, name="vae"):
        with pytest.raises(ValueError, match=why):
            latents.Coder(write(tmp_path / name, tensors, config), "unit")

    some = dict(tensors)
    gone = some.pop("decoder.conv_in.bias")
    refused("it lacks 1 tensors, the first 'decoder.conv_in.bias'", some)
    refused("holds 1 tensors .* no place .*'extra.weight'",
            tensors | {"extra.weight": gone})  # fmt: skip
    refused("'decoder.conv_in.bias' of shape .*another",
            tensors | {"decoder.conv_in.bias": gone[:3]})  # fmt: skip
    twice = tensors["encoder.mid_block.attentions.0.to_q.bias"]
    refused("two names", tensors | {"encoder.mid_block.attentions.0.query.bias": twice})
    refused(
        'has act_fn="relu"; this VAE has "silu"', config={**SMALL, "act_fn": "relu"}
    )
    refused("does not describe a VAE: layers_per_block",
            config={**SMALL, "layers_per_block": 0})  # fmt: skip
    refused("it lacks", config=None, name="bare")  # Stable Diffusion's is larger
    with pytest.raises(FileNotFoundError, match="no weights of a VAE at .*none"):
        latents.Coder(str(tmp_path / "none"), "unit")
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        latents.Coder("", "unit")


def test_pictures_that_do_not_divide_into_latents_are_refused(coder):
    with pytest.raises(ValueError, match="multiples of 4; these are 10 x 8"):
        coder.encode(np.zeros((1, 10, 8, 3), np.uint8))


def test_pictures_become_latents_and_latents_pictures_again(
    tmp_path, folder, coder, monkeypatch
):
    images = random_weights.pictures(20, 16, 16)
    np.savez(tmp_path / "a.npz", image=images)
    arguments = [
        "prepare_data.py",
        str(tmp_path / "a.npz"),
        f"--out={tmp_path / 'set'}",
    ]
    arguments += ["--heldout=0", f"--encode={folder}"]
    monkeypatch.setattr(sys, "argv", arguments)
    prepare_data.main()
    one = (0.0,) * 4, (0.5,) * 4
    config = data.DataConfig(str(tmp_path / "set"), "", "train", "train", *one)
    rows = config.reader.open(config, "train", 0)
    assert len(rows) == 20 and rows.shape == (4, 4, 4) and rows.draws
    # Means over many draws are those of the encoder; the order is another.
    uses = np.stack([np.arange(400), np.zeros(400)], axis=1).astype(np.uint64)
    drawn, _ = rows.read(np.zeros(400, int), uses)
    encoded = coder.encode(images)
    off = abs(encoded[..., :4] - drawn.mean(0)) / encoded[..., 4:]
    assert off.max((1, 2, 3)).min() < 4.5 / 20  # standard errors
    record = json.loads((tmp_path / "set" / "prepared.json").read_text())
    assert record["made_of"]["vae"] == coder.digest
    assert record["made_of"]["pixels"] == "unit"
    for pixels in ("unit", "symmetric"):
        run = types.SimpleNamespace(
            data=config,
            evaluation=types.SimpleNamespace(decoder=latents.Vae(folder, pixels)),
        )
        if pixels == "unit":
            assert latents.pictures_of(run)
            continue
        with pytest.raises(ValueError, match="from pixels='unit'.*--pixels, to 'unit'"):
            latents.pictures_of(run)


def test_a_grid_of_latents_shows_decoded_pictures(tmp_path, folder, coder):
    means = coder.encode(random_weights.pictures(3, 16, 16))[..., :4]
    place = types.SimpleNamespace(
        raw_mean=(0.5,) * 4, raw_std=(2.0,) * 4, data_dir="", name="mine"
    )
    decoder = latents.Vae(folder)
    run = types.SimpleNamespace(
        data=place, evaluation=types.SimpleNamespace(decoder=decoder)
    )
    normalized = data.normalize(place, means)
    path, labels = tmp_path / "grid.png", np.arange(3)
    gallery.write_grid(path, normalized, labels, latents.pictures_of(run))
    grid = np.asarray(Image.open(path))[::4, ::4]  # small pictures are enlarged
    for i, picture in enumerate(coder.decode(means)):
        shown = grid[18 * i + 1 : 18 * i + 17, 1:17]
        np.testing.assert_allclose(shown.astype(int), picture, atol=1)
    assert latents.pictures_of(
        types.SimpleNamespace(
            evaluation=types.SimpleNamespace(decoder=latents.NotDecoded())
        )
    ) is None  # fmt: skip


def test_metrics_are_of_decoded_pictures(folder, coder):
    means = coder.encode(random_weights.pictures(5, 16, 16))[..., :4]
    place = types.SimpleNamespace(raw_mean=(0.5,) * 4, raw_std=(2.0,) * 4)
    found = sources.of_samples(place, data.normalize(place, means), latents.Vae(folder))
    assert found.shape == (5, 16, 16, 3) and len(found) == 5
    np.testing.assert_allclose(found[2:4].astype(int), coder.decode(means[2:4]), atol=1)
