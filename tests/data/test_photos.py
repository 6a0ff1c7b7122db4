"""Claims about the photographs: which crops they give, and to which split."""

import numpy as np
import pytest
from PIL import Image

from configs.workloads import WORKLOADS
from edm_jax import data
from edm_jax.data import photos

SPLITS = ("train", "test")


@pytest.fixture(
    scope="module", params=["photos", pytest.param("photos-64", marks=pytest.mark.slow)]
)
def workload(request):
    return WORKLOADS[request.param]


@pytest.fixture(scope="module")
def stored(workload, tmp_path_factory):
    statistics = workload.raw_mean, workload.raw_std
    place = str(tmp_path_factory.mktemp("tfds"))
    config = data.DataConfig(workload.dataset, place, *SPLITS, *statistics)
    data.prepare(config)
    return {split: data.load_split(config, split) for split in SPLITS}


@pytest.mark.parametrize("size", [(64, 64), (96, 61), (61, 96)], ids=str)
def test_no_pixel_is_seen_by_both_splits_and_none_by_neither(size):
    black = np.zeros((*size, 3), np.uint8)
    for axis in (0, 1):
        for place in range(size[axis]):
            lit = black.copy()
            lit[(slice(None),) * axis + (place,)] = 255
            seen = {
                split: np.any(photos.crops(Image.fromarray(lit), split, 8))
                for split in SPLITS
            }
            if axis == int(size[1] >= size[0]):  # along the longer side
                assert sum(seen.values()) == 1, (axis, place)
            else:
                assert all(seen.values()), (axis, place)


def test_every_picture_gives_equally_many_crops_all_of_them_different(stored, workload):
    shape = (workload.resolution, workload.resolution, 3)
    for split, count in (("train", 800), ("test", 200)):
        assert stored[split]["image"].shape[1:] == shape
        assert np.bincount(stored[split]["label"]).tolist() == 10 * [count]
    picture = photos._read(*photos.PICTURES["astronaut"])
    for split, count in (("train", 800), ("test", 200)):
        crops = photos.crops(picture, split, workload.resolution)
        assert len({crop.tobytes() for crop in crops}) == count


def test_crops_show_their_part_of_the_picture():
    left, right = (200, 10, 60), (0, 120, 250)
    pixels = np.zeros((60, 91, 3), np.uint8)
    pixels[:, :45], pixels[:, 45:] = left, right
    seen = {}
    for split in SPLITS:
        crops = np.stack(photos.crops(Image.fromarray(pixels), split, 8))
        seen[split] = {tuple(c) for c in crops.reshape(-1, 3).tolist()}
    assert seen == {"train": {left, right}, "test": {right}}


@pytest.mark.slow
def test_the_training_crops_have_mean_0_and_std_sigma_data_in_every_channel(stored):
    pixels = stored["train"]["image"].reshape(-1, 3)
    np.testing.assert_allclose(pixels.mean(0, dtype=np.float64), 0, atol=1e-3)
    np.testing.assert_allclose(pixels.std(0, dtype=np.float64), 0.5, atol=1e-3)


def test_a_missing_package_is_named():
    with pytest.raises(FileNotFoundError, match="package absent_package.*install"):
        photos._read("absent_package", "picture.png")
