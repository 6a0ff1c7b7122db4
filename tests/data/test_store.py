"""Claims about data sets as others build them: what is read, what is refused and how."""

import dataclasses
import importlib.util
import io
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tfds_sets import prepared

from edm_jax import data
from edm_jax.data import pipeline, store
from edm_jax.data.readers import Tfds

CLASS = tfds.features.ClassLabel(num_classes=10)
BYTES = tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8, encoding="bytes")
PIXELS = np.zeros((2, 2, 1), np.uint8)


def config(name, data_dir="", channels=1):
    one = channels * (1.0,)
    splits = {"train_split": "train", "heldout_split": "train"}
    statistics = {"raw_mean": one, "raw_std": one}
    return data.DataConfig(str(name), str(data_dir), **splits, **statistics)


def stored(directory, examples, **features):
    """The config of a data set of these examples and features, prepared there."""
    place = prepared(directory, examples, **features)
    channels = features["image"].shape[-1] if "image" in features else 1
    return config(place, channels=channels)


def labelled(directory, labels, feature=CLASS):
    examples = [{"image": PIXELS, "label": label} for label in labels]
    return stored(directory, examples, image=BYTES, label=feature)


class Encoded(tfds.core.GeneratorBasedBuilder):
    """A data set whose images TFDS encodes, for which it needs TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name="small"),
        tfds.core.BuilderConfig(name="big"),
    )
    url_infos = None

    def _info(self):
        image = tfds.features.Image(shape=(2, 2, 3))
        features = tfds.features.FeaturesDict({"image": image})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"image": np.zeros((2, 2, 3), np.uint8)}


class Unreachable(Encoded):
    """A data set whose download fails."""

    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to host")


# --- Names and places ---


def test_a_data_set_is_also_opened_by_its_own_directory(tmp_path):
    kept = labelled(tmp_path, [3, 1, 2])
    assert sorted(data.load_split(kept, "train")["label"].tolist()) == [1, 2, 3]
    data.prepare(kept)  # nothing to do
    assert data.fingerprint(kept)["examples"] == {"train": 3}


def test_data_dir_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data.prepare(config("digits", "~/data"))
    assert "digits" in os.listdir(tmp_path / "data")


def test_an_unprepared_data_set_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*edm_jax.data.prepare"):
        data.load_split(config("digits", tmp_path), "train")


def test_a_data_set_that_cannot_be_built_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="ConnectionError: no route.*Mend that"):
        data.prepare(config("unreachable", tmp_path))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is here"
)
def test_a_data_set_that_needs_tensorflow_says_what_builds_it(tmp_path):
    place = tmp_path / "my data"
    with pytest.raises(FileNotFoundError, match="TensorFlow, which edm_jax does") as e:
        data.prepare(config("encoded", place))
    # Run by hand with TensorFlow 2.21, the command built what `load_split` reads.
    assert str(e.value).endswith(
        "python3 -m venv tfds-env && tfds-env/bin/pip install tensorflow "
        "tensorflow-datasets array_record && tfds-env/bin/python -c "
        f'"import {__name__}, tensorflow_datasets as tfds; '
        f"tfds.builder('encoded/small', data_dir='{place}')"
        ".download_and_prepare(file_format='array_record')\""
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("digitz", "no data set 'digitz'"),
        ("digits:7.0.0", "cannot be loaded at version 7.0.0"),
        ("photos/48x48", "BuilderConfig 48x48 not found"),
        ("", "data.name='' is no name that TFDS allows"),
        ("My Data", "no name that TFDS allows"),
        ("{}/absent.zip", "is not there: no such file"),
        ("./absent", "is not there: no such file"),
        ("{}/edm2.zip", r"a ZIP archive in the original EDM2 code's form \(with"),
        ("{}/other.zip", r"a ZIP archive\. The reader tfds reads TFDS"),
        ("{}/edm2", "a directory in the original EDM2 code's form"),
        ("{}/pictures", "a directory of images"),
        ("{}/empty", "a directory without a data set"),
        ("{}/array.npz", "a NumPy file"),
        ("{}/notes.txt", r"is a file\."),
        ("{}/tfds", "a directory above prepared data sets, such as .*digits/1.0.0"),
    ],
)
def test_a_name_that_is_none_is_answered_with_what_it_is(tmp_path, name, found):
    (tmp_path / "edm2").mkdir()
    (tmp_path / "edm2/dataset.json").write_text("{}")
    (tmp_path / "pictures/cats").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "pictures/cats/1.JPG", "JPEG")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "tfds/digits/1.0.0").mkdir(parents=True)
    (tmp_path / "tfds/digits/1.0.0/dataset_info.json").write_text("{}")
    np.savez(tmp_path / "array.npz", x=PIXELS)
    for archive, member in (("edm2", "dataset.json"), ("other", "1.png")):
        with zipfile.ZipFile(tmp_path / f"{archive}.zip", "w") as file:
            file.writestr(member, "{}")
    with pytest.raises(ValueError, match=found) as refusal:
        data.prepare(config(name.format(tmp_path), tmp_path / "none"))
    assert len(str(refusal.value)) < 600 + len(str(tmp_path))


def test_a_file_for_a_data_dir_is_refused(tmp_path):
    file = tmp_path / "edm2.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("dataset.json", "{}")
    with pytest.raises(ValueError, match="data_dir=.*is a ZIP archive.*takes the dir"):
        data.prepare(config("digits", file))


@pytest.mark.parametrize(("field", "given"), [("data_dir", ("digits", "\udcff")),
                                              ("name", ("\udcff", "here"))])  # fmt: skip
def test_a_path_that_is_not_utf8_is_one_sentence(field, given):
    with pytest.raises(ValueError, match=f"^data.{field}=.* not UTF-8.*: rename"):
        data.prepare(config(*given))


def test_a_directory_called_as_a_data_set_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    data.prepare(config("digits", tmp_path / "data"))
    assert (tmp_path / "data/digits").is_dir()


# --- Splits and files ---


def test_an_unknown_split_is_refused_with_those_there_are(tmp_path):
    kept = labelled(tmp_path, [1, 2])
    for split in ("test", "train[:0]", "train[:"):
        with pytest.raises(ValueError, match="no examples for .*: train .2 examples"):
            data.load_split(kept, split)


def test_a_data_set_whose_splits_are_lost_is_refused(tmp_path):
    kept = labelled(tmp_path, [1, 2])
    (info,) = tmp_path.rglob("dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"splits": None}))
    with pytest.raises(ValueError, match="no examples for .*: none;"):
        data.load_split(kept, "train")


def test_images_of_no_fixed_size_are_refused(tmp_path):
    ragged = tfds.features.Tensor(shape=(None, 2, 3), dtype=np.uint8)
    kept = stored(tmp_path, [{"image": np.zeros((1, 2, 3), np.uint8)}], image=ragged)
    with pytest.raises(
        ValueError,
        match="of several sizes.*'image': Tensor.shape=.None, 2, 3.*resolution",
    ):
        data.load_split(kept, "train")


def test_a_data_set_without_images_is_refused(tmp_path):
    kept = stored(tmp_path, [{"text": "a"}], text=tfds.features.Text())
    with pytest.raises(ValueError, match="must have a feature 'image'.*'text'"):
        data.load_split(kept, "train")


def test_files_that_cannot_be_read_by_row_are_refused(tmp_path):
    kept = labelled(tmp_path, [1])
    path = Path(kept.name) / "dataset_info.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"})
    )
    with pytest.raises(ValueError, match="stored as tfrecord.*array_record"):
        data.load_split(kept, "train")


# --- Sets of other forms, by name ---


def by_name(directory, **reader):
    """The config of the set `stored` below `directory`, its own code unknown."""
    found = config("stored", directory, channels=3)
    return dataclasses.replace(found, reader=Tfds(**reader))


def encoded(pixels, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def halves(height, width):
    """A picture whose left half is black, and its right half white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return pixels


def raw(data_config, **more):
    found = data.load_split(data_config, "train", **more)
    return np.rint(data.denormalize(data_config, found["image"])), found["label"]


def test_a_set_of_images_alone_is_read_by_its_name(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    feature = tfds.features.Image(shape=(4, 4, 3), encoding_format="png")
    examples = [{"picture": encoded(each)} for each in pixels]
    prepared(tmp_path, examples, picture=feature)
    found, label = raw(by_name(tmp_path), num_classes=0)
    assert sorted(x.tobytes() for x in found.astype(np.uint8)) == sorted(
        x.tobytes() for x in pixels
    )
    assert label.tolist() == [0] * 5
    with pytest.raises(ValueError, match="no feature 'label', only 'picture'"):
        data.load_split(by_name(tmp_path), "train", num_classes=2)


@pytest.mark.parametrize("as_arrays", [False, True])
def test_a_set_of_several_sizes_is_made_square(tmp_path, as_arrays):
    features = {"photo": tfds.features.Image(), "species": CLASS}
    sizes = [(24, 40), (64, 16), (8, 8)]
    photos = [halves(*size) for size in sizes]
    if as_arrays:
        shape = (None, None, 3)
        features["photo"] = tfds.features.Tensor(
            shape=shape, dtype=np.uint8, encoding="bytes"
        )
    examples = [
        {"photo": each if as_arrays else encoded(each), "species": i}
        for i, each in enumerate(photos)
    ]
    prepared(tmp_path, examples, **features)
    with pytest.raises(ValueError, match="several sizes, 'photo'.*reader.resolution"):
        data.load_split(by_name(tmp_path), "train", num_classes=3)
    found, label = raw(by_name(tmp_path, resolution=8), num_classes=3)
    assert found.shape == (3, 8, 8, 3) and sorted(label) == [0, 1, 2]
    # Of whatever size, half is black and half is white, but for the filter's overshoot.
    assert found[:, :, :2].max() < 20 and found[:, :, 6:].min() > 235
    gray = by_name(tmp_path, resolution=4, channels=1)
    gray = dataclasses.replace(gray, raw_mean=(0.0,), raw_std=(1.0,))
    assert raw(gray, num_classes=3)[0].shape == (3, 4, 4, 1)


def test_features_of_other_names_are_found_or_named(tmp_path):
    square = np.zeros((4, 4, 3), np.uint8)
    png = tfds.features.Image(shape=(4, 4, 3))
    fine = tfds.features.ClassLabel(num_classes=3)
    example = {"a": encoded(square), "b": encoded(square + 9), "fine": 2, "coarse": 7}
    prepared(tmp_path, [example], a=png, b=png, fine=fine, coarse=CLASS)
    with pytest.raises(ValueError, match="several .*data.reader.image, of a, b"):
        data.load_split(by_name(tmp_path), "train", num_classes=0)
    with pytest.raises(ValueError, match="name one of coarse, fine with .*label"):
        data.load_split(by_name(tmp_path, image="b"), "train", num_classes=3)
    found, label = raw(by_name(tmp_path, image="b", label="fine"), num_classes=3)
    assert np.all(found == 9) and label.tolist() == [2]
    with pytest.raises(ValueError, match="must have a feature 'c' of images"):
        data.load_split(by_name(tmp_path, image="c"), "train", num_classes=0)


def test_classes_can_be_chosen_of_a_set_without_decoding_its_images(tmp_path):
    examples = [{"image": PIXELS + i, "label": i % 4} for i in range(12)]
    kept = stored(tmp_path, examples, image=BYTES, label=CLASS)
    kept = dataclasses.replace(kept, classes=(1, 3))
    image, label = raw(kept, num_classes=10)
    assert sorted(label) == [1] * 3 + [3] * 3
    np.testing.assert_array_equal(image[:, 0, 0, 0] % 4, label)


# --- Labels ---


def test_labels_are_checked_against_the_networks_classes(tmp_path):
    kept = labelled(tmp_path, [0, 9, 4])
    batch = data.load_split(kept, "train", num_classes=10)
    assert sorted(batch["label"].tolist()) == [0, 4, 9]
    assert batch["label"].dtype == np.int32
    where = data.load_split(kept, "train")["label"].tolist().index(9)
    found = f"example {where}: has the label 9; labels must be from 0 to 4"
    with pytest.raises(ValueError, match=f"split 'train', {found}.*num_classes"):
        data.load_split(kept, "train", num_classes=5)


def test_labels_of_minus_1_are_refused_before_the_first_step(tmp_path):
    kept = labelled(tmp_path, [1, -1])
    with pytest.raises(ValueError, match="has the label -1.*-1 for unknown"):
        data.train_batches(kept, batch_size=1, seed=0, num_classes=10)


def test_a_bad_label_in_a_large_set_is_refused_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "MEMORY_LIMIT_BYTES", 0)
    kept = labelled(tmp_path, [1, -1])
    batches = data.train_batches(kept, batch_size=2, seed=0, num_classes=10)
    with pytest.raises(ValueError, match="has the label -1"):
        next(batches)


@pytest.mark.parametrize(
    ("feature", "label", "found"),
    [
        (tfds.features.Scalar(np.float32), 0.5, "are not whole numbers"),
        (tfds.features.Sequence(CLASS), [1, 2], "are several for each image"),
        (tfds.features.Tensor(shape=(2,), dtype=np.int64), [1, 2], "are several"),
        (tfds.features.Text(), "cat", "are texts"),
        ({"fine": CLASS, "coarse": CLASS}, {"fine": 1, "coarse": 2}, "are several"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_labels_that_are_no_class_numbers_are_refused(tmp_path, feature, label, found):
    kept = labelled(tmp_path, [label], feature)
    with pytest.raises(ValueError, match=f"labels of .*{found}.*num_classes=0"):
        data.train_batches(kept, batch_size=1, seed=0, num_classes=10)
    batch = next(data.train_batches(kept, batch_size=1, seed=0, num_classes=0))
    assert batch["label"].tolist() == [0]


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32])
def test_whole_numbers_of_any_kind_are_labels(tmp_path, dtype):
    kept = labelled(tmp_path, [dtype(1)], tfds.features.Scalar(dtype))
    label = data.load_split(kept, "train", num_classes=2)["label"]
    assert (label.tolist(), label.dtype) == ([1], np.int32)


def test_images_without_labels_suit_an_unconditional_network_only(tmp_path):
    kept = stored(tmp_path, [{"image": PIXELS}], image=BYTES)
    batch = next(data.train_batches(kept, batch_size=2, seed=0, num_classes=0))
    assert batch["label"].tolist() == [0, 0]
    with pytest.raises(
        ValueError, match="no feature 'label', only 'image': .*classes=0"
    ):
        data.train_batches(kept, batch_size=2, seed=0, num_classes=10)


# --- Pixels ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(tmp_path, value):
    feature = tfds.features.Tensor(shape=(2, 2, 1), dtype=np.float32)
    fine, broken = (np.zeros((2, 2, 1), np.float32) for _ in range(2))
    broken[1, 0, 0] = value
    kept = stored(tmp_path, [{"image": fine}, {"image": broken}], image=feature)
    with pytest.raises(
        ValueError, match=r"example [01]: has pixels that are not finite"
    ):
        data.train_batches(kept, batch_size=1, seed=0, num_classes=0)


def test_encoded_images_are_decoded_without_opencv_or_a_warning(tmp_path, caplog):
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    feature = tfds.features.Image(shape=(2, 2, 3))
    kept = stored(tmp_path, [{"image": Image.fromarray(pixels)}], image=feature)
    kept = dataclasses.replace(kept, raw_mean=(0.0,) * 3, raw_std=(0.5,) * 3)
    loaded = data.load_split(kept, "train", num_classes=0)["image"]
    np.testing.assert_array_equal(loaded[0], pixels)
    assert not caplog.records


def test_an_encoded_image_that_is_not_as_declared_is_named(tmp_path):
    Image.new("I;16", (2, 2)).save(tmp_path / "deep.png")
    feature = tfds.features.Image(shape=(2, 2, 1))
    kept = stored(tmp_path, [{"image": str(tmp_path / "deep.png")}], image=feature)
    found = "example 0: is a PNG of 2 x 2 pixels, 16-bit grayscale; accepted is"
    with pytest.raises(ValueError, match=f"data set .*, split 'train', {found}"):
        data.load_split(kept, "train", num_classes=0)


@pytest.mark.parametrize(
    ("name", "harm", "found"),
    [
        ("dataset_info.json", Path.unlink, "Could not read dataset info from .*stored"),
        ("dataset_info.json", lambda p: p.write_text("[" * 10**5), "Failed to load"),
        ("dataset_info.json", lambda p: p.write_text("null"), "Failed to parse JSON"),
        ("*array_record*", Path.unlink, "restore its files"),
        ("*array_record*", lambda p: p.write_bytes(b""), "restore its files"),
        ("*array_record*", lambda p: p.write_bytes(p.read_bytes()[::-1]), "restore"),
    ],
)
def test_damaged_files_are_answered_with_what_to_do(tmp_path, name, harm, found):
    kept = labelled(tmp_path, [1])
    for path in Path(kept.name).glob(name):
        harm(path)
    with pytest.raises((OSError, ValueError), match=f"'stored'.*{found}"):
        data.load_split(config("stored", tmp_path), "train")


def test_a_half_deleted_data_set_says_to_delete_the_rest(tmp_path):
    digits = config("digits", tmp_path)
    data.prepare(digits)
    (tmp_path / "digits/1.0.0/dataset_info.json").unlink()
    with pytest.raises(ValueError, match="lost its dataset_info.json; delete"):
        data.load_split(digits, "train")


@pytest.mark.parametrize("name", ["dataset_info.json", "stored-train.array_record-*"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path)])
def test_a_file_that_would_be_waited_for_is_refused_by_name(tmp_path, name, make):
    data = labelled(tmp_path, [0, 1])
    (path,) = Path(data.name).glob(name)
    path.unlink()
    make(path)
    for named in (data, config("stored", tmp_path)):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            store.open_builder(named)
