"""A network on effective kernels computes what the network on parameters does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from edm_jax.models.effective import effective

TINY = {
    "network.resolution": "4",
    "network.channel_mult": "(1,)",
    "network.model_channels": "16",
    "network.compute_dtype": "bfloat16",
}


@pytest.mark.slow
@pytest.mark.parametrize("letter", "bg")
def test_kernels_made_beforehand_give_the_same_image_to_the_bit(letter):
    path = f"{configs.letter_path(letter)}:digits-tiny"
    overrides = TINY | ({"network.zero_last": "False"} if letter == "b" else {})
    model = configs.load(path, overrides).model
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda w: np.float32(rng.normal(1, 0.3)) if w.ndim == 0 else w, model.init(0)
    )
    inputs = [jnp.ones(x.shape) * 0.3 for x in model.inputs(2)]
    of = effective(model)
    weights = jax.tree.map(jnp.asarray, of.weights(params), of.dtypes)
    expected, found = model.apply(params, *inputs), of.model.apply(weights, *inputs)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert np.std(expected[0]) > 0
    # Convolutions are in half precision, the embedding network is not.
    assert (
        of.dtypes["unet"]["enc_4x4_block0"]["branch"]["conv0"]["kernel"] == "bfloat16"
    )
    assert of.dtypes["unet"]["embedding"]["noise0"]["kernel"] == "float32"
