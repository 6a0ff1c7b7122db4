"""Claims about subsets, and about classes that are drawn more often than others."""

import dataclasses

import numpy as np
import pytest

from edm_jax import data as data_room
from edm_jax.data import order
from edm_jax.data.order import Balanced, Strata, Weighted
from edm_jax.data.readers import InMemory

COUNTS = (50, 5, 20, 25)  # of classes 0 ... 3
LABELS = np.repeat(np.arange(4), COUNTS)


@dataclasses.dataclass(frozen=True)
class Numbered(InMemory):
    """100 images of one pixel, which hold their numbers."""

    def arrays(self, data, split):
        chosen = np.arange(100) if split == "train" else np.arange(0, 100, 10)
        return chosen.reshape(-1, 1, 1, 1), LABELS[chosen]


def config(**changes):
    fields = {"name": "n", "data_dir": "", "raw_mean": (0.0,), "raw_std": (0.5,)}
    fields |= {"train_split": "train", "heldout_split": "test", "reader": Numbered()}
    return data_room.DataConfig(**fields | changes)


def drawn(data, count, seed=0, batch_size=20, num_classes=4):
    """Numbers (count,) of the first training images, and their labels."""
    batches = data_room.train_batches(
        data, batch_size=batch_size, seed=seed, num_classes=num_classes
    )
    taken = [next(batches) for _ in range(count // batch_size)]
    image = np.concatenate([batch["image"] for batch in taken]).ravel().astype(int)
    label = np.concatenate([batch["label"] for batch in taken])
    if num_classes:
        np.testing.assert_array_equal(label, LABELS[image])
    return image, label


def test_a_subset_of_classes_keeps_their_numbers_in_every_split():
    data = config(classes=(3, 1))
    image, label = drawn(data, 60)  # two epochs of 30
    assert set(label) == {1, 3}
    for epoch in (image[:30], image[30:]):
        assert sorted(epoch) == np.flatnonzero(np.isin(LABELS, [1, 3])).tolist()
    held = data_room.load_split(data, "test", num_classes=4)["label"]
    assert held.tolist() == [1, 3, 3]  # 50, 80 and 90; class 2 lies between


def test_a_subset_is_the_same_for_every_seed_and_part_of_every_larger_one():
    subsets = [set(drawn(config(max_size=20), 20, seed)[0]) for seed in (0, 7)]
    assert subsets[0] == subsets[1] and len(subsets[0]) == 20
    larger = set(drawn(config(max_size=60), 60)[0])
    assert subsets[0] < larger
    # At random: of half the examples, class 0, about as many; 3.6 standard deviations.
    assert 12 <= sum(LABELS[i] == 0 for i in drawn(config(max_size=40), 40)[0]) <= 28
    whole = data_room.load_split(config(), "test", num_classes=4)["image"]
    kept = data_room.load_split(config(max_size=20), "test", num_classes=4)["image"]
    np.testing.assert_array_equal(kept, whole)
    both = config(max_size=2, classes=(0,))
    assert len(data_room.load_split(both, "test", num_classes=4)["label"]) == 5


def test_a_subset_of_classes_needs_no_network_with_classes():
    image, label = drawn(config(classes=(2,)), 20, num_classes=0)
    assert set(LABELS[image]) == {2} and set(label) == {0}


def test_balanced_classes_come_equally_often_and_their_examples_too():
    data = config(sampling=Balanced())
    image, label = drawn(data, 1000)  # ten epochs
    for epoch in range(10):
        assert np.bincount(label[100 * epoch :][:100]).tolist() == [25] * 4
    seen = np.bincount(image, minlength=100)
    for k, count in enumerate(COUNTS):
        # 250 draws of the class: each epoch floor(25 / n) or one more of an example.
        low, high = 10 * (25 // count), 10 * -(-25 // count)
        of_class = seen[LABELS == k]
        assert low <= of_class.min() and of_class.max() <= high
        assert of_class.sum() == 250
    assert (seen > 0).all()


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_the_power_is_between_all_examples_and_all_classes_equally(power):
    _, label = drawn(config(sampling=Balanced(power)), 4000)
    shares = np.array(COUNTS) ** (1 - power)
    wanted = 4000 * shares / shares.sum()
    # Each of 40 epochs is at most 2 off.
    np.testing.assert_allclose(np.bincount(label), wanted, atol=80 * (power > 0))


def test_weights_are_those_of_examples_and_0_leaves_a_class_out():
    _, label = drawn(config(sampling=Weighted((1.0, 0.0, 2.0, 1.0))), 2300)
    counts = np.bincount(label, minlength=4)
    assert counts[1] == 0
    # Examples weigh 50, 0, 40 and 25 of 115 in all.
    np.testing.assert_allclose(counts, 20 * np.array([50, 0, 40, 25]), atol=46)


def test_equal_weights_visit_every_example_once_per_epoch():
    strata = Strata(LABELS, np.full(4, 0.3))
    for epoch in range(3):
        assert sorted(strata.order(5, epoch, 100)) == list(range(100))
    orders = [tuple(strata.order(seed, 0, 100)) for seed in range(3)]
    assert len(set(orders)) == 3


def test_which_examples_a_small_class_is_left_with_changes_by_epoch():
    strata = Strata(LABELS, Balanced().weights(np.array(COUNTS)))
    kept = [
        set(rows[LABELS[rows] == 0])
        for rows in (strata.order(0, epoch, 100) for epoch in range(8))
    ]
    assert all(len(each) == 25 for each in kept)
    assert len(set.union(*kept)) == 50  # each is missed 8 times once in 256


def test_the_drawn_order_is_that_of_numpys_frozen_bit_generator():
    # A stored run must find its order again: these numbers may never change.
    found = order.batch_rows(2, 4, 0, 8, Strata(np.arange(8) // 4, np.array([1.0, 3])))
    assert found.tolist() == [1, 5, 4, 4]


@pytest.mark.parametrize(
    ("changes", "num_classes", "why"),
    [
        ({"classes": (1, 9)}, 10, r"classes=\(1, 9\).* has no examples of class 9"),
        ({"max_size": 101}, 4, "max_size=101, but there are only 100"),
        ({"max_size": 6, "classes": (1,)}, 4, "max_size=6, but there are only 5"),
        ({"sampling": Weighted((1.0,))}, 4, "by_class has 1 weights, .* 4 classes"),
        ({"sampling": Weighted((0.0,) * 4)}, 4, "leaves no example"),
    ],
)
def test_what_leaves_nothing_is_refused(changes, num_classes, why):
    with pytest.raises(ValueError, match=why):
        drawn(config(**changes), 20, num_classes=num_classes)
