"""What personalize.py makes of a few pictures, before it trains as train.py does."""

import argparse

import numpy as np
import pytest

import configs
from edm_jax import data
from edm_jax.data import order
from experiments import personalize

CONFIG = configs.load(
    f"{configs.letter_path('g')}:digits-tiny", {"data.classes": "0,1,2,4"}
)


def options(**given):
    fields = {"base": "runs/base", "taught": 3, "prior": 1.0, "prior_images": 30}
    fields |= {"steps": 40, "batch": 16, "rate": None, "lora": False}
    return argparse.Namespace(**(fields | given))


def test_pictures_and_samples_of_the_base_come_in_the_ratio_of_the_loss(tmp_path):
    asked = {}

    def generate(params, seeds, labels, on_progress):
        del params, on_progress
        asked.update(seeds=list(seeds), labels=labels)
        return np.zeros((len(labels), 8, 8, 1), np.float32)

    for prior in (1.0, 0.25):
        given = options(prior=prior)
        samples, labels = personalize._prior(given, CONFIG, 3, generate, None)
        assert sorted(set(labels.tolist())) == [0, 1, 2, 4]  # what the base knows
        assert min(asked["seeds"]) >= 2**30 and len(set(asked["seeds"])) == 30
        pictures = np.ones((5, 8, 8, 1), np.float32)
        path = tmp_path / "train.npz"
        personalize._write(path, [pictures, samples], [3, labels])
        fields = personalize._fields(given, CONFIG, 3, tmp_path)
        weights = np.fromstring(fields["data.sampling.by_class"].strip("(),"), sep=",")
        stored = np.load(path)["label"]
        strata = order.Strata(stored, weights)
        drawn = np.concatenate(
            [stored[strata.order(0, epoch, len(stored))] for epoch in range(400)]
        )
        share = np.mean(drawn == 3)
        assert abs(share - 1 / (1 + prior)) < 0.01
        # Each sample of the base counts as much as any other.
        per_class = np.bincount(drawn, minlength=5) / np.bincount(stored, minlength=5)
        np.testing.assert_allclose(per_class[[1, 2, 4]], per_class[0], rtol=0.1)


def test_without_a_prior_there_are_no_samples():
    samples, labels = personalize._prior(options(prior=0.0), CONFIG, 3, None, None)
    assert samples.shape == (0, 8, 8, 1) and len(labels) == 0


def test_what_is_held_out_is_the_pictures_shifted():
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1)
    up, down, left, right = personalize._shifted(image)
    np.testing.assert_array_equal(down[:-1], image[0, 1:])
    np.testing.assert_array_equal(up[1:], image[0, :-1])
    np.testing.assert_array_equal(right[:, :-1], image[0, :, 1:])
    np.testing.assert_array_equal(left[:, 1:], image[0, :, :-1])


def test_distances_are_in_deviations_of_the_data():
    a, b = np.zeros((2, 4, 4, 1)), np.stack([np.full((4, 4, 1), x) for x in (0.5, 1)])
    np.testing.assert_allclose(personalize._distances(a, b), [[1, 2], [1, 2]])


def test_an_npz_of_pictures_is_in_the_units_of_the_data(tmp_path):
    path = tmp_path / "threes.npz"
    image = np.random.default_rng(0).integers(0, 17, (4, 8, 8, 1)).astype(np.float32)
    np.savez(path, image=image)
    found = personalize._pictures(path, CONFIG)
    order_free = sorted(map(bytes, np.round(found).astype(np.uint8)))
    assert order_free == sorted(map(bytes, image.astype(np.uint8)))


@pytest.mark.parametrize(
    ("shape", "why"),
    [((1, 8, 8, 1), "1 pictures"), ((4, 9, 9, 1), "the base makes")],
)
def test_unsuitable_pictures_are_refused(tmp_path, shape, why):
    path = tmp_path / "pictures.npz"
    np.savez(path, image=np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=why):
        personalize._pictures(path, CONFIG)
    with pytest.raises(FileNotFoundError, match="nothing of that name"):
        personalize._pictures(tmp_path / "none", CONFIG)


@pytest.mark.parametrize(
    ("given", "overrides", "why"),
    [
        ({"taught": 10}, {}, "classes 0 to 9"),
        ({"taught": -1}, {}, "classes 0 to 9"),
        ({"prior": float("nan")}, {}, "finite and not negative"),
        ({"steps": 0}, {}, "at least 1"),
        ({}, {"network.num_classes": "0", "data.classes": "()"}, "has no classes"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, overrides, why):
    path = f"{configs.letter_path('g')}:digits-tiny"
    with pytest.raises(ValueError, match=why):
        personalize._check(options(**given), configs.load(path, overrides))


def test_its_fields_are_a_config(tmp_path):
    data.prepare(CONFIG.data)
    personalize._write(tmp_path / "train.npz", [np.ones((5, 8, 8, 1))], [3])
    fields = personalize._fields(options(lora=True, rate=0.01), CONFIG, 3, tmp_path)
    texts = {name: str(value) for name, value in fields.items()}
    start = {"training.start.name": "weights", "training.start.source": "runs/base"}
    config = configs.changed(CONFIG, start | texts)
    assert config.is_adapted and config.optimizer.alpha_ref == 0.01
    assert config.total_steps == 40 and config.data.classes == ()
