"""A reader of one's own gives arrays; what it gives is checked like any data."""

import dataclasses

import numpy as np
import pytest

from edm_jax import data
from edm_jax.data.readers import InMemory


@dataclasses.dataclass(frozen=True)
class Given(InMemory):
    """Arrays that a test makes."""

    images: object
    labels: object

    def arrays(self, data, split):
        return self.images[split], self.labels[split]


def config(images, labels=(0, 1, 2)):
    reader = Given({"train": images}, {"train": np.asarray(labels)})
    return data.DataConfig("mine", "", "train", "test", (10.0,), (4.0,), reader)


RAW = np.arange(12.0).reshape(3, 2, 2, 1)


def test_arrays_are_read_by_row_and_normalised():
    whole = data.load_split(config(RAW), "train")
    np.testing.assert_allclose(whole["image"], (RAW - 10) * 0.5 / 4)
    batches = data.train_batches(config(RAW), batch_size=3, seed=0, num_classes=3)
    batch = next(batches)
    order = batch["label"]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_array_equal(batch["image"], whole["image"][order])
    unlabelled = data.load_split(config(RAW), "train", num_classes=0)
    assert unlabelled["label"].tolist() == [0, 0, 0]


def test_other_images_have_another_fingerprint():
    one, same, other = (data.fingerprint(config(r)) for r in (RAW, RAW, RAW + 1))
    assert one == same != other


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (RAW[..., 0], (0, 1, 2), r"images \(N, H, W, C\) and labels \(N,\)"),
        (RAW, (0, 1), "this one gives"),
        (np.where(RAW == 3, np.nan, RAW), (0, 1, 2), "not finite"),
        (RAW, (0, 1, 3), "labels from 0 to 3"),
        (RAW, (0, 1, -1), "labels from -1"),
    ],
)
def test_arrays_that_do_not_suit_are_refused(images, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        data.load_split(config(images, labels), "train", num_classes=3)
