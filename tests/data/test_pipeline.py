"""Claims about the data: what is in it, in which order it comes, in which units."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from edm_jax import data as data_room
from edm_jax.data import order, pipeline
from edm_jax.data.digits import Digits

PREPARE = """
import sys
from edm_jax import data
data.prepare(data.DataConfig("digits", sys.argv[1], "train", "test", (0.0,), (1.0,)))
"""


def config(data_dir, **changes):
    fields = {"name": "digits", "data_dir": str(data_dir), "train_split": "train"}
    fields |= {"heldout_split": "test", "raw_mean": (4.8834,), "raw_std": (6.0130,)}
    return data_room.DataConfig(**fields | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    prepared = config(tmp_path_factory.mktemp("tfds"))
    data_room.prepare(prepared)
    return prepared


@pytest.fixture(scope="module")
def stored(data):
    builder = tfds.builder("digits", data_dir=data.data_dir)
    return {split: list(builder.as_data_source(split)) for split in ("train", "test")}


def take(batches, count):
    return [next(batches) for _ in range(count)]


def rows_of(images):
    return [image.tobytes() for image in images]


class Stripes(tfds.core.GeneratorBasedBuilder):
    """A data set of somebody else: three colours, wider than high."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (2, 5, 3)

    def _info(self):
        image = tfds.features.Tensor(shape=self.SHAPE, dtype=np.uint8, encoding="bytes")
        label = tfds.features.ClassLabel(num_classes=2)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for row in range(6):
            yield row, {"image": np.full((2, 5, 3), row, np.uint8), "label": row % 2}


def test_splits_are_disjoint_and_hold_all_1797_digits(stored):
    train, test = ([int(e["id"]) for e in stored[s]] for s in ("train", "test"))
    assert (len(train), len(test)) == (1438, 359)
    assert sorted(train + test) == list(range(1797))


def test_a_fifth_of_each_class_is_held_out(stored):
    counts = {s: np.bincount([e["label"] for e in stored[s]]) for s in stored}
    classes = counts["train"] + counts["test"]
    assert np.all(np.abs(counts["test"] - classes / 5) < 1)


def test_contents_are_those_of_scikit_learn(stored):
    examples = sorted(stored["train"] + stored["test"], key=lambda e: e["id"])
    image = np.stack([e["image"] for e in examples])
    label = [int(e["label"]) for e in examples]
    bunch = load_digits()
    assert (image.shape, image.dtype) == ((1797, 8, 8, 1), np.uint8)
    wanted = hashlib.sha256(bunch.images.astype(np.uint8).tobytes()).hexdigest()
    assert hashlib.sha256(image.tobytes()).hexdigest() == wanted
    assert label == bunch.target.tolist()


def test_normalized_training_images_have_mean_0_and_std_sigma_data(data):
    image = data_room.load_split(data, "train")["image"]
    assert image.dtype == np.float32
    assert image.mean(dtype=np.float64) == pytest.approx(0, abs=1e-3)
    assert image.std(dtype=np.float64) == pytest.approx(0.5, abs=1e-3)


def test_each_channel_is_normalized_with_its_own_statistics():
    rgb = config("", raw_mean=(0.0, 10.0, 20.0), raw_std=(1.0, 2.0, 4.0))
    raw = np.full((1, 2, 2, 3), 20, np.uint8)
    image = data_room.normalize(rgb, raw)
    np.testing.assert_array_equal(image[0, 0, 0], [10.0, 2.5, 0.0])


def test_denormalize_returns_the_stored_units(data, stored):
    images = data_room.denormalize(data, data_room.load_split(data, "test")["image"])
    wanted = np.stack([e["image"] for e in stored["test"]])
    np.testing.assert_allclose(images, wanted, atol=1e-5)


def test_a_split_is_read_in_one_order_and_limit_takes_its_head(data):
    whole = data_room.load_split(data, "test")
    head = data_room.load_split(data, "test", limit=7)
    np.testing.assert_array_equal(head["image"], whole["image"][:7])
    np.testing.assert_array_equal(head["label"], whole["label"][:7])
    assert len(data_room.load_split(data, "test", limit=10_000)["label"]) == 359


@pytest.mark.parametrize("batch_size", [100, 2000])
def test_every_epoch_visits_every_example_once_in_an_order_of_its_own(data, batch_size):
    split = data_room.load_split(data, "train")
    batches = data_room.train_batches(data, batch_size=batch_size, seed=0)
    taken = take(batches, -(-3 * 1438 // batch_size))
    rows = rows_of(np.concatenate([batch["image"] for batch in taken]))
    epochs = [rows[epoch * 1438 : (epoch + 1) * 1438] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(rows_of(split["image"]))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_every_image_keeps_its_label(data):
    split = data_room.load_split(data, "train")
    labels = dict(zip(rows_of(split["image"]), split["label"].tolist(), strict=True))
    batch = next(data_room.train_batches(data, batch_size=512, seed=0))
    assert batch["label"].dtype == np.int32
    wanted = [labels[row] for row in rows_of(batch["image"])]
    assert batch["label"].tolist() == wanted


@pytest.mark.slow
def test_the_seed_decides_the_order(data):
    def first(seed):
        return next(data_room.train_batches(data, batch_size=64, seed=seed))["image"]

    np.testing.assert_array_equal(first(3), first(3))
    assert not np.array_equal(first(3), first(4))


def test_the_order_is_that_of_numpys_frozen_bit_generator():
    # A stored run must find its order again: these numbers may never change.
    found = order.epoch_order(seed=0, epoch=1, size=8)
    assert found.tolist() == [3, 7, 4, 2, 1, 6, 5, 0]


@pytest.mark.slow
@pytest.mark.parametrize("start", [1, 14, 15, 40])
def test_a_stream_started_at_a_step_is_the_undisturbed_one_from_there(data, start):
    whole = take(data_room.train_batches(data, batch_size=100, seed=5), start + 3)
    later = data_room.train_batches(data, batch_size=100, seed=5, start_step=start)
    for wanted, batch in zip(whole[start:], take(later, 3), strict=True):
        assert batch.keys() == {"image", "label", "index"}
        for name in batch:
            np.testing.assert_array_equal(batch[name], wanted[name])


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_together_hold_the_global_batch(data, process_count):
    def batches(index, count):
        stream = data_room.train_batches(
            data, batch_size=256, seed=1, process_index=index, process_count=count
        )
        return take(stream, 7)

    shares = [batches(index, process_count) for index in range(process_count)]
    for step, wanted in enumerate(batches(0, 1)):
        parts = [share[step] for share in shares]
        assert all(len(part["label"]) == 256 // process_count for part in parts)
        index = np.concatenate([part["index"] for part in parts])
        assert sorted(index.tolist()) == list(range(256))
        for name in ("image", "label"):
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, wanted[name][index])


def test_a_split_too_large_for_memory_gives_the_same_batches(data, monkeypatch):
    kept = take(data_room.train_batches(data, batch_size=64, seed=2), 3)
    monkeypatch.setattr(pipeline, "MEMORY_LIMIT_BYTES", 0)
    decoded = take(data_room.train_batches(data, batch_size=64, seed=2), 3)
    for wanted, batch in zip(kept, decoded, strict=True):
        np.testing.assert_array_equal(batch["image"], wanted["image"])
        np.testing.assert_array_equal(batch["label"], wanted["label"])


def test_any_tfds_data_set_goes_the_same_way(tmp_path):
    stripes = config(tmp_path, name="stripes", raw_mean=(0,) * 3, raw_std=(0.5,) * 3)
    data_room.prepare(stripes)
    split = data_room.load_split(stripes, "train[:50%]")
    assert split["image"].shape == (3, 2, 5, 3)
    batch = next(data_room.train_batches(stripes, batch_size=6, seed=0))
    assert sorted(batch["image"][:, 1, 4, 2].tolist()) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0] % 2)


def test_prepare_ends_well_when_another_process_finishes_first(tmp_path, monkeypatch):
    generate = Digits._generate_examples

    def overtaken(self, *arguments):
        monkeypatch.setattr(Digits, "_generate_examples", generate)
        data_room.prepare(config(tmp_path))
        return generate(self, *arguments)

    monkeypatch.setattr(Digits, "_generate_examples", overtaken)
    data_room.prepare(config(tmp_path))
    assert len(data_room.load_split(config(tmp_path), "train")["label"]) == 1438
    assert os.listdir(tmp_path / "digits") == ["1.0.0"]


@pytest.mark.slow
def test_two_processes_may_prepare_at_once_where_tfds_data_dir_says(data, tmp_path):
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PREPARE, ""]
    pair = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    # Built twice, the data set comes in the same order.
    built = data_room.load_split(config(tmp_path), "train")
    wanted = data_room.load_split(data, "train")
    np.testing.assert_array_equal(built["image"], wanted["image"])


@pytest.mark.slow
def test_the_room_imports_without_tfds_grain_and_scikit_learn():
    code = "import sys, edm_jax.data; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "edm_jax.data.pipeline" in loaded
    assert not {"tensorflow_datasets", "grain", "sklearn"} & set(loaded)


def test_a_batch_that_processes_cannot_share_is_refused(data):
    with pytest.raises(ValueError, match="choose a multiple of 3"):
        data_room.train_batches(data, batch_size=64, seed=0, process_count=3)


def test_statistics_for_another_number_of_channels_are_refused(data):
    rgb = config(data.data_dir, raw_mean=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="raw_mean.*one number for each"):
        data_room.load_split(rgb, "train")
