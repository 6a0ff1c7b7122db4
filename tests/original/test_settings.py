"""A pickled network's settings are used, or refused by name."""

import dataclasses

import jax
import numpy as np
import oracle_original
import pytest
from pickle_writer import Code, called, dump, snapshot, tree

from configs import config_g
from edm_jax import diffusion, original
from edm_jax.original import mapping
from edm_jax.train.config import RunConfig

NAME = "tiny-0000001-0.050.pkl"
SMALL = original.OriginalNetwork(8, 1, 10, 32, (1, 2), 1, (4,))


def random_tensors(net):
    rng = np.random.default_rng(0)
    shapes = {slot.name: slot.shape for slot in mapping.slots(net)}
    return {n: rng.standard_normal(s).astype(np.float16) for n, s in shapes.items()}


def load(directory, tensors, **given):
    path = directory / NAME
    path.write_bytes(snapshot(tree(tensors, **given)))
    return original.load(path)


@pytest.mark.parametrize(
    ("sizes", "given"),
    [
        # Two heads at 4x4: one would not tell the order of heads.
        ({"model_channels": 64}, {}),
        (
            {"noise_channels": 24, "embedding_channels": 40},
            {
                "channels_per_head": 32,
                "sigma_data": 1.0,
                "res_balance": 0.5,
                "attn_balance": 0.5,
                "label_balance": 0.25,
                "concat_balance": 0.75,
                "clip_act": 1.5,
            },
        ),
        # Two heads of 72 channels, where 64 do not divide 144.
        ({"model_channels": 48, "channel_mult": (1, 3)}, {"clip_act": None}),
        # Levels of 64 and 96 channels, and a head of 96.
        ({"channel_mult": (2, 3)}, {}),
    ],
    ids=["published", "all settings", "uneven heads", "an uneven level"],
)
def test_a_network_computes_what_its_pickle_says(tmp_path, sizes, given):
    net = dataclasses.replace(SMALL, **sizes)
    tensors = random_tensors(net)
    loaded = load(tmp_path, tensors, **given)
    assert (loaded.nimg, loaded.sigma_rel) == (1024, 0.05)
    rng = np.random.default_rng(1)
    x, label = rng.standard_normal((2, 8, 8, 1)), np.eye(10)[[3, 7]]
    sigma = np.array([0.3, 2.0])
    image, logvar = oracle_original.denoise(
        tensors, x.transpose(0, 3, 1, 2), sigma, label, **given
    )
    config = config_g.get_config("digits")
    config.network.update(dataclasses.asdict(loaded.settings.network))
    model = RunConfig.of(config).model
    denoiser = diffusion.Denoiser(model, loaded.settings.sigma_data)
    params = jax.tree.map(np.float32, loaded.params())
    ours = jax.jit(denoiser)(params, *(np.float32(z) for z in (x, sigma, label)))
    # Measured: 2e-6, float32's own rounding; the image's RMS is .6.
    np.testing.assert_allclose(ours.image, image.transpose(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(ours.logvar, logvar, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"attn_balance": 0.5},
            "'attn_balance' of 'unet.enc.4x4_block0' is 0.5, but only the res_balance, 0.3",
        ),
        (
            {"res_balance": 1.5},
            "'res_balance' of 'unet.enc.8x8_block0' is 1.5, but only",
        ),
        ({"label_balance": "x"}, "'label_balance' of 'unet' is 'x', but only a number"),
        ({"concat_balance": None}, "'concat_balance' of 'unet' is None"),
        (
            {"sigma_data": 0},
            "'sigma_data' of the network is 0, but only a number above",
        ),
        ({"sigma_data": 2**2000}, "'sigma_data' of the network is 1148"),
        (
            {"clip_act": -1},
            "'clip_act' of .* is -1, but only a number above 0, or None",
        ),
        ({"dropout": True}, "'dropout' of .* is True"),
        ({"use_fp16": 16}, "'use_fp16' of the network is 16, but only True or False"),
        ({"resample_filter": [1, 3, 3, 1]}, r"is \[1, 3, 3, 1\], but only \[1, 1\]"),
        ({"swish_gain": 1.7}, "made with 'swish_gain', a setting that the original"),
    ],
    ids=str,
)
def test_settings_that_no_network_here_supports_are_refused_by_name(
    tmp_path, given, sentence
):
    with pytest.raises(ValueError, match=f"{NAME}: .*{sentence}.*: name a snapshot"):
        load(tmp_path, random_tensors(SMALL), **given)


def test_settings_that_a_run_can_hold_are_read(tmp_path):
    loaded = load(tmp_path, random_tensors(SMALL), use_fp16=False, dropout=0.25)
    assert not loaded.settings.half_precision
    assert loaded.settings.network.dropout == 0.25


def test_numbers_that_numpy_made_are_read(tmp_path):
    # As np.float32(0.25) is pickled.
    dtype = Code(called("numpy.dtype", "f4", False, True))
    state = (3, "<", None, None, None, -1, -1, 0)
    dtype = Code(dtype + dump(state) + b"b")
    number = called("numpy._core.multiarray.scalar", dtype, np.float32(0.25).tobytes())
    loaded = load(tmp_path, random_tensors(SMALL), dropout=number)
    assert loaded.settings.network.dropout == 0.25


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"MPConv", b"MyConv", "class of 'unet.emb_noise' is 'MyConv', but only 'MPC"),
        (
            b"num_heads",
            b"mum_heads",
            "no attribute 'num_heads' of 'unet.enc.4x4_block0'",
        ),
        (b"sigma_data", b"sigma_dada", "no attribute 'sigma_data' of the network"),
    ],
)
def test_a_changed_class_or_a_lost_attribute_is_named(tmp_path, old, new, sentence):
    content = snapshot(tree(random_tensors(SMALL)))
    # Settings that the constructors were given would tell what the attributes do not.
    content = content.replace(b"_init_kwargs", b"_xnit_kwargs").replace(old, new)
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(ValueError, match=f"{NAME}: .*{sentence}"):
        original.load(tmp_path / NAME)


def test_missing_attributes_come_from_the_constructors_arguments(tmp_path):
    content = snapshot(tree(random_tensors(SMALL), concat_balance=0.75))
    before, after = content.split(b"concat_balance", 1)  # the attribute, then the other
    (tmp_path / NAME).write_bytes(before + b"convat_balance" + after)
    network = original.load(tmp_path / NAME).settings.network
    assert network.cat_balance == 0.75
    content = content.replace(b"label_balance", b"labal_balance")
    (tmp_path / NAME).write_bytes(content)
    assert original.load(tmp_path / NAME).settings.network.embedding_balance == 0.5


def test_the_decoders_first_block_needs_attention(tmp_path):
    tensors = random_tensors(SMALL)
    tensors = {n: t for n, t in tensors.items() if "attn" not in n}
    with pytest.raises(ValueError, match="4x4_in0' has no attention, so it has"):
        load(tmp_path, tensors)
