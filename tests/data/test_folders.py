"""Claims about every reader of files: what it reads, the order, labels, and bad data."""

import io
import json
import logging
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tfds_sets import prepared

from edm_jax import data as data_room
from edm_jax.data import labels, measure, order, shares
from edm_jax.data.arrays import Arrays
from edm_jax.data.folders import Images, Original
from edm_jax.data.order import Balanced, Weighted
from edm_jax.data.readers import Tfds

RNG = np.random.default_rng(0)
COUNT = 30


def config(path, reader, channels=3, **changes):
    fields = {"name": str(path), "data_dir": "", "reader": reader}
    fields |= {"train_split": "train", "heldout_split": "heldout"}
    fields |= {"raw_mean": (100.0,) * channels, "raw_std": (50.0,) * channels}
    return data_room.DataConfig(**fields | changes)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in contents.items():
            archive.writestr(name, raw)
    return path


def with_labels(contents, classes):
    listed = [[name, i % classes] for i, name in enumerate(contents)]
    return contents | {"dataset.json": json.dumps({"labels": listed}).encode()}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """{name: config} of a small set for each reader."""
    root = tmp_path_factory.mktemp("sets")
    for i in range(COUNT):
        place = root / "photos" / "bca"[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 256, (*RNG.integers(8, 40, 2), 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    names = [f"{i // 10:05d}/img{i:08d}" for i in range(COUNT)]
    latents = {f"{n}.npy": npy(RNG.standard_normal((8, 4, 4), "f4")) for n in names}
    rgb = {f"{n}.png": png(RNG.integers(0, 256, (8, 8, 3), np.uint8)) for n in names}
    for name, raw in with_labels(rgb, 4).items():
        (root / "rgb" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "rgb" / name).write_bytes(raw)
    pack(root / "latents.zip", with_labels(latents, 4))
    images = RNG.integers(0, 256, (COUNT, 6, 5, 3), np.uint8)
    np.savez(root / "arrays.npz", image=images, label=np.arange(COUNT) % 4)
    sizes = RNG.integers(8, 40, (COUNT, 2)).tolist()
    pictures = [png(RNG.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
    examples = [{"photo": each, "kind": i % 4} for i, each in enumerate(pictures)]
    features = tfds.features.Image(), tfds.features.ClassLabel(num_classes=4)
    place = prepared(root / "tfds", examples, photo=features[0], kind=features[1])
    stored = {"train_split": "train[:80%]", "heldout_split": "train[80%:]"}
    return {
        "tfds": config(place, Tfds(resolution=8, fit="random"), **stored),
        "balanced tfds": config(
            place, Tfds(resolution=8), sampling=Balanced(0.5), classes=(0, 2), **stored
        ),
        "images": config(root / "photos", Images(resolution=8)),
        "random": config(root / "photos", Images(resolution=8, fit="random")),
        "rgb": config(root / "rgb", Original()),
        "latents": config(root / "latents.zip", Original(), 4),
        "numpy": config(root / "arrays.npz", Arrays()),
        "subset": config(root / "rgb", Original(), classes=(0, 3), max_size=9),
        "balanced": config(
            root / "latents.zip", Original(), 4, sampling=Balanced(), classes=(1, 2, 3)
        ),
        "weighted": config(
            root / "photos", Images(resolution=8, fit="random"),
            sampling=Weighted((1.0, 0.0, 2.5, 1.0)), max_size=20,
        ),
    }  # fmt: skip


READERS = ["images", "random", "rgb", "latents", "numpy"]
OPTIONS = ["tfds", "balanced tfds", "subset", "balanced", "weighted"]
DRAWN = {"random", "latents", "tfds"}


def take(data, steps, start=0, index=0, count=1):
    batches = data_room.train_batches(
        data, batch_size=8, seed=3, num_classes=4, start_step=start,
        process_index=index, process_count=count,
    )  # fmt: skip
    return [next(batches) for _ in range(steps)]


def assert_same(found, wanted):
    assert found.keys() == wanted.keys() == {"image", "label", "index"}
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])


@pytest.mark.parametrize("name", READERS + OPTIONS)
def test_a_batch_is_the_same_for_any_hosts_workers_and_resumes(sets, name):
    data = sets[name]
    whole = take(data, 12)  # over three epochs
    for start in (1, 5, 11):
        assert_same(take(data, 1, start)[0], whole[start])
    for count in (2, 4):
        parts = [take(data, 5, 0, index, count) for index in range(count)]
        for step in range(5):
            joined = {
                key: np.concatenate([part[step][key] for part in parts])
                for key in whole[0]
            }
            order = np.argsort(joined["index"])
            assert_same({k: v[order] for k, v in joined.items()}, whole[step])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "workers"),
    [("random", 2), ("latents", 1), ("numpy", 4), ("weighted", 3), ("tfds", 2)],
)
def test_worker_processes_read_the_same_batches(sets, name, workers):
    data = sets[name]
    work = data_room.DataConfig(**vars(data) | {"num_workers": workers})
    for found, wanted in zip(take(work, 3, 2), take(data, 3, 2), strict=True):
        assert_same(found, wanted)


@pytest.mark.parametrize("name", READERS)
def test_an_epoch_holds_every_example_and_splits_are_disjoint(sets, name, monkeypatch):
    data = sets[name]
    seen = {}
    for split in ("train", "heldout", "all"):
        rows = data.reader.open(data, split, 4)
        seen[split] = {rows.place(row) for row in range(len(rows))}
    assert seen["train"] | seen["heldout"] == seen["all"]
    assert not seen["train"] & seen["heldout"]
    assert 0 < len(seen["heldout"]) < 10 and len(seen["all"]) == COUNT
    orders = [order.batch_rows(s, 8, 3, len(seen["train"])) for s in range(12)]
    first = np.concatenate(orders)[: len(seen["train"])]
    assert sorted(first) == list(range(len(seen["train"])))


@pytest.mark.parametrize("name", [*READERS, "tfds"])
def test_only_what_is_drawn_differs_between_uses(sets, name):
    split = "all" if name in READERS else "train"
    rows = sets[name].reader.open(sets[name], split, 4)
    assert rows.draws == (name in DRAWN)
    uses = [rows.read(np.arange(9), np.full((9, 2), k, np.uint64))[0] for k in (1, 2)]
    assert np.array_equal(*uses) != (name in DRAWN)
    still = [rows.read(np.arange(9))[0] for _ in range(2)]
    np.testing.assert_array_equal(*still)


def test_every_epoch_draws_anew(sets):
    batches = take(sets["latents"], 8)
    label = np.concatenate([batch["label"] for batch in batches])
    image = np.concatenate([batch["image"] for batch in batches])
    assert len(label) == 64 > 2 * COUNT
    assert len({each.tobytes() for each in image}) == 64


def test_a_picture_is_held_out_by_its_own_name():
    names = [b"%d.png" % i for i in range(20_000)]
    held = shares.select(names, "heldout", 0.1, "here")
    assert len(held) == pytest.approx(2000, abs=4 * 43)  # binomial: sd 42.4
    fewer = shares.select(names[:1000], "heldout", 0.1, "here")
    np.testing.assert_array_equal(fewer, held[held < 1000])
    # However few there are, one is held out.
    assert all(len(shares.select(names[:n], "heldout", 0.01, "")) == 1 for n in (2, 9))
    with pytest.raises(ValueError, match="no split 'test'.*'train', 'heldout'"):
        shares.select(names, "test", 0.1, "here")


def test_latents_are_draws_from_their_means_and_deviations(tmp_path):
    moments = np.float32([5, -5, 0, 1, 1, 2, 3, 0])[:, None, None] * np.ones(
        (1, 64, 64)
    )
    pack(tmp_path / "a.zip", {"a.npy": npy(moments.astype(np.float32))})
    data = config(tmp_path / "a.zip", Original(heldout=0.0), 4)
    rows = data.reader.open(data, "train", 0)
    keys = np.stack([np.zeros(64, np.uint64), np.arange(64, dtype=np.uint64)], axis=1)
    drawn, _ = rows.read(np.zeros(64, int), keys)
    assert drawn.shape == (64, 64, 64, 4) and drawn.dtype == np.float32
    # 64 x 64 x 64 draws: the mean is good to std / 512.
    np.testing.assert_allclose(drawn.mean((0, 1, 2)), [5, -5, 0, 1], atol=0.03)
    np.testing.assert_allclose(drawn.std((0, 1, 2)), [1, 2, 3, 0], atol=0.03)
    noise = drawn[..., 0].reshape(64, -1)
    assert abs(np.corrcoef(noise[:8]) - np.eye(8)).max() < 0.08  # 5 / sqrt(4096)


def test_arrays_come_with_their_channels_last(tmp_path):
    means = RNG.standard_normal((4, 3, 5)).astype("f4")
    moments = np.concatenate([means, np.zeros_like(means)])  # no deviation
    pixels = RNG.integers(0, 256, (3, 4, 5), np.uint8)
    for array, wanted in ((moments, means), (pixels, pixels)):
        pack(tmp_path / "a.zip", {"a.npy": npy(array)})
        data = config(tmp_path / "a.zip", Original(heldout=0.0), len(wanted))
        (found,), _ = data.reader.open(data, "train", 0).read(np.zeros(1, int))
        for c, channel in enumerate(wanted):
            np.testing.assert_array_equal(found[..., c], channel)


def test_the_rows_of_arrays_are_those_of_the_split(sets):
    data = sets["numpy"]
    rows = data.reader.open(data, "heldout", 4)
    stored = np.load(data.name)
    for row, (image, label) in enumerate(zip(*rows.read(np.arange(len(rows))))):
        at = int(rows.place(row).split()[-1])
        np.testing.assert_array_equal(image, stored["image"][at])
        assert label == stored["label"][at]


def test_latents_are_whitened_per_channel(sets):
    data = sets["latents"]
    scaled = data_room.DataConfig(
        **vars(data)
        | {"raw_mean": (1.0, 2.0, 3.0, 4.0), "raw_std": (1.0, 2.0, 4.0, 8.0)}
    )
    plain = data_room.load_split(data, "all", num_classes=4)["image"]
    raw = data_room.denormalize(data, plain)
    want = (raw - [1, 2, 3, 4]) * (0.5 / np.array([1, 2, 4, 8]))
    found = data_room.load_split(scaled, "all", num_classes=4)["image"]
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_a_folder_of_the_originals_and_its_zip_are_the_same(sets, tmp_path):
    data = sets["rgb"]
    files = {
        str(path.relative_to(data.name)): path.read_bytes()
        for path in Path(data.name).rglob("*.*")
    }
    packed = config(pack(tmp_path / "rgb.zip", files), Original())
    found = data_room.load_split(packed, "all", num_classes=4)
    wanted = data_room.load_split(data, "all", num_classes=4)
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])
    assert found["label"].tolist() == [i % 4 for i in range(COUNT)]


def test_classes_are_folders_in_the_order_of_their_names(sets):
    rows = sets["images"].reader.open(sets["images"], "train", 4)
    for row in range(len(rows)):
        assert rows.place(row).split("/")[-2] == "abc"[rows.labels[row]]


def test_a_folder_that_holds_everything_is_no_class():
    names = np.array([b"all/sub/a/1.png", b"all/sub/b/1.png", b"all/sub/b/2.png"])
    assert labels.of_folders(names)[0].tolist() == [0, 1, 1]
    found, classes = labels.of_folders(names[1:])
    assert found.tolist() == [labels.UNLABELLED] * 2 and classes == []
    # Of two splits, one after the other.
    both = np.array([b"a/1.png", b"b/1.png", b"a/2.png"])
    assert labels.of_folders(both)[0].tolist() == [0, 1, 0]


def test_a_part_of_sorted_data_is_of_all_classes(sets):
    for limit in (3, 10):
        found = data_room.load_split(sets["images"], "all", limit, 3)["label"]
        counts = np.bincount(found, minlength=3)
        assert counts.sum() == limit and counts.max() - counts.min() <= 1


def test_splits_can_be_folders_whose_classes_are_numbered_alike(tmp_path):
    for name in ("train/cat", "train/dog", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(png(np.zeros((9, 9, 3), np.uint8)))
    data = config(tmp_path, Images(resolution=8), heldout_split="val")
    opened = {s: data.reader.open(data, s, 2) for s in ("train", "val")}
    assert [rows.labels.tolist() for rows in opened.values()] == [[0, 1], [1]]
    with pytest.raises(ValueError, match="no split 'heldout'"):
        data.reader.open(data, "heldout", 2)


LISTS = {
    "a.csv": "file_name,class\nx.png,7\ny.png,2\n",
    "b.csv": "y.png,2,more\nx.png,7,columns\n",
    "c.json": '{"labels": [["y.png", 2], ["x.png", 7]]}',
    "d.json": '[["x.png", 7], ["y.png", 2]]',
    "e.json": '{"x.png": 7, "y.png": 2}',
}


@pytest.mark.parametrize("name", LISTS)
def test_labels_come_from_a_list_of_any_of_its_forms(name):
    found, classes = labels.of_list(
        np.array([b"x.png", b"y.png"]), LISTS[name].encode(), name
    )
    assert found.tolist() == [7, 2] and classes is None


def test_texts_are_numbered_in_their_order_and_the_unlisted_have_no_class():
    names = np.array([b"w.png", b"x.png", b"y.png"])
    found, classes = labels.of_list(names, b"x.png,zebra\ny.png,ant\n", "a.csv")
    assert found.tolist() == [-1, 1, 0] and classes == ["ant", "zebra"]
    assert labels.of_list(names, b'{"labels": null}', "a.json")[0].tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"x.png,1\nz.png,2", "names 'z.png', and there is no such file"),
        (b"x.png,1\nx.png,2", "names 'x.png' twice"),
        (b"x.png\n", "a line of one column"),
        (b"\xff\xfe", "no CSV in UTF-8"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(raw, why):
    with pytest.raises(ValueError, match=why):
        labels.of_list(np.array([b"x.png", b"y.png"]), raw, "labels.csv")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b'{"labels": [["x.png", 1.5]]}', "types float"),
        (b'{"labels": [["x.png", 99999999999]]}', "beyond 32 bits"),
        (b'{"labels": ["x.png"]}', "holds no labels"),
        (b"3", "holds no labels"),
        (b'{"labels": ', "no valid JSON"),
    ],
)
def test_a_dataset_json_that_does_not_fit_is_refused(raw, why):
    with pytest.raises(ValueError, match=why):
        labels.of_list(np.array([b"x.png", b"y.png"]), raw, "dataset.json")


def test_labels_and_the_network_must_fit(sets, tmp_path):
    def refused(data, num_classes, why):
        with pytest.raises(ValueError, match=why):
            data_room.load_split(data, "train", num_classes=num_classes)

    refused(sets["images"], 2, r"3 classes \(a, b, c\).*num_classes=2; set it to 3")
    refused(sets["rgb"], 3, r"img00000003.png has the label 3; .*num_classes=3")
    refused(sets["numpy"], 3, r"arrays.npz: image \d+ has the label 3")
    (tmp_path / "1.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    flat = config(tmp_path, Images(resolution=8, heldout=0.0))
    refused(flat, 4, "has no labels, and the network has 4 classes; set")
    assert data_room.load_split(flat, "train", num_classes=0)["label"].tolist() == [0]
    no_json = config(pack(tmp_path / "a.zip", {"a.png": b""}), Original(heldout=0.0))
    refused(no_json, 4, "no labels|not a picture")


def test_bad_labels_can_be_left_out(sets):
    skip = data_room.DataConfig(**vars(sets["rgb"]) | {"on_bad": "skip"})
    found = data_room.load_split(skip, "all", num_classes=3)["label"]
    assert sorted(set(found.tolist())) == [0, 1, 2]
    batches = data_room.train_batches(skip, batch_size=4, seed=0, num_classes=3)
    next(batches)
    assert "without a class: " in batches.skipped[-1]


@pytest.fixture
def damaged(tmp_path):
    """A folder of pictures, some of which are bad; {name: what is said of it}."""
    bad = {
        "b.jpg": (b"text", "is not a picture"),
        "c.png": (png(RNG.integers(0, 9, (40, 40, 3), np.uint8))[:-60], "damaged PNG"),
        "d.png": (b"", "is not a picture"),
    }
    for i in range(12):
        pixels = np.full((9, 9, 3), 20 * i, np.uint8)
        (tmp_path / f"{i:02d}.png").write_bytes(png(pixels))
    for name, (raw, _) in bad.items():
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "e.png").symlink_to(tmp_path / "gone.png")
    bad["e.png"] = b"", "no longer there"
    (tmp_path / "readme.txt").write_text("not a picture, and not in the way")
    return tmp_path, {name: why for name, (_, why) in bad.items()}


def test_a_bad_picture_stops_the_run_with_its_name(damaged):
    path, _ = damaged
    data = config(path, Images(resolution=8, heldout=0.0))
    with pytest.raises(ValueError, match=f"{path}/b.jpg is not a picture"):
        next(data_room.train_batches(data, batch_size=15, seed=0, num_classes=0))


@pytest.mark.parametrize("fit", ["center", "random"])  # in memory, and not
def test_bad_pictures_are_skipped_counted_and_named_once(damaged, fit, caplog):
    path, bad = damaged
    reader = Images(resolution=8, heldout=0.0, fit=fit)
    data = config(path, reader, on_bad="skip")
    batches = data_room.train_batches(data, batch_size=16, seed=0, num_classes=0)
    with caplog.at_level(logging.WARNING):
        taken = [next(batches) for _ in range(4)]
    assert len(batches.skipped) == len(caplog.records) == 4
    for name, why in bad.items():
        (said,) = [each for each in batches.skipped.values() if f"/{name} " in each]
        assert why in said
    levels = np.rint(data_room.denormalize(data, taken[0]["image"]))[:, 4, 4, 0]
    # The first of those that follow takes their place: of the last four, the first.
    assert sorted(levels) == sorted([20 * i for i in range(12)] + [0] * 4)
    whole = data_room.load_split(data, "train", num_classes=0)
    assert len(whole["image"]) == 12


def test_where_everything_is_bad_the_run_stops(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"text")
    data = config(tmp_path, Images(resolution=8, heldout=0.0), on_bad="skip")
    with pytest.raises(
        ValueError, match="No example is good; the last: .*not a picture"
    ):
        data_room.load_split(data, "train", num_classes=0)


def test_examples_of_another_form_are_bad(tmp_path):
    def refused(name, raw, why):
        first = npy(np.zeros((3, 4, 4), np.uint8))
        pack(tmp_path / "a.zip", {"a.npy": first, name: raw})
        data = config(tmp_path / "a.zip", Original(heldout=0.0))
        with pytest.raises(ValueError, match=f"a.zip: {name} {why}"):
            data_room.load_split(data, "train", num_classes=0)

    refused("b.npy", npy(np.zeros((3, 4, 5), np.uint8)), r"holds an .*\(3, 4, 5\)")
    refused("b.npy", npy(np.zeros((3, 4, 4), "f4")), "holds an .* float32; the first")
    refused("b.npy", b"\x93NUMPY", "is a damaged NPY")
    refused("b.npy", npy(np.array([None])), "is a damaged NPY")  # a pickle
    refused("b.png", png(np.zeros((4, 5, 3), np.uint8)), "is a PNG of 5 x 4 pixels")
    refused("b.png", png(np.zeros((4, 4), np.uint8)), "is a PNG .* 8-bit grayscale")
    first = npy(np.full((8, 2, 2), np.nan, "f4"))
    pack(tmp_path / "n.zip", {"a.npy": first})
    data = config(tmp_path / "n.zip", Original(heldout=0.0), 4)
    with pytest.raises(ValueError, match="a.npy has values that are not finite"):
        data_room.load_split(data, "train", num_classes=0)


@pytest.mark.parametrize("compressed", [False, True])
def test_numpy_files_are_read_whatever_their_form(tmp_path, compressed):
    images = RNG.integers(0, 256, (10, 4, 4), np.uint8)
    classes = np.arange(10)
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "a.npz", x=np.asfortranarray(images), y=classes)
    np.save(tmp_path / "train.npy", images)
    np.save(tmp_path / "train.labels.npy", classes)
    for data in (
        config(tmp_path / "a.npz", Arrays("x", "y", heldout=0.0), 1),
        config(tmp_path, Arrays(), 1),
        config("a.npz", Arrays("x", "y", heldout=0.0), 1, data_dir=str(tmp_path)),
    ):
        found = data_room.load_split(data, "train", num_classes=10)
        raw = np.rint(data_room.denormalize(data, found["image"]))
        np.testing.assert_array_equal(raw[..., 0], images)
        assert found["label"].tolist() == classes.tolist()


def test_numpy_files_that_do_not_suit_are_refused(tmp_path):
    def refused(why, **arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        data = config(tmp_path / "a.npz", Arrays(heldout=0.0))
        with pytest.raises((ValueError, OSError), match=why):
            data_room.load_split(data, "train", num_classes=4)

    images = np.zeros((5, 4, 4, 3), "f4")
    refused("no array 'image'; name one .* it has x", x=images)
    refused("has no labels; set network.num_classes=0", image=images)
    refused(r"labels of shape \(4,\)", image=images, label=np.zeros(4, int))
    refused("images of shape", image=images[0, 0], label=np.zeros(4, int))
    refused("has the label -1", image=images, label=-np.ones(5, int))
    images[3, 0, 0, 0] = np.inf
    refused("image 3 has values that are not", image=images, label=np.zeros(5, int))
    (tmp_path / "b.npz").write_bytes(b"text")
    with pytest.raises(ValueError, match="not an NPZ file, or is damaged"):
        data_room.load_split(config(tmp_path / "b.npz", Arrays()), "train")


@pytest.mark.parametrize("name", READERS)
def test_a_fingerprint_is_of_the_data_not_of_their_place(sets, name, tmp_path):
    data = sets[name]
    source = Path(data.name)
    copy = shutil.copytree if source.is_dir() else shutil.copy
    copy(source, tmp_path / source.name)
    moved = data_room.DataConfig(
        **vars(data) | {"name": source.name, "data_dir": str(tmp_path)}
    )
    assert data_room.fingerprint(moved) == data_room.fingerprint(data)


@pytest.mark.parametrize("name", ["image", "label"])
def test_arrays_of_python_objects_are_refused(tmp_path, name):
    """Mapped into memory, their bytes would be taken for addresses."""
    arrays = {"image": np.zeros((COUNT, 4, 4, 3)), "label": np.arange(COUNT) % 4}
    arrays[name] = np.array([{"a": 1}] * COUNT, object)
    np.savez(tmp_path / "a.npz", **arrays)
    found = config(tmp_path / "a.npz", Arrays(heldout=0.0))
    with pytest.raises(
        ValueError, match=f"a.npz has a damaged array '{name}'.*objects"
    ):
        data_room.load_split(found, "train")


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_file_of_arrays_is_not_waited_for(tmp_path, suffix, make):
    path = tmp_path / f"a{suffix}"
    make(path)
    with pytest.raises(ValueError, match=f"a{suffix} is a .*, not a file"):
        data_room.load_split(config(path, Arrays(heldout=0.0)), "train")


def test_a_list_that_names_none_of_the_pictures_is_named(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("")
    found = config(tmp_path, Images(resolution=4, labels="labels.csv"))
    for num_classes in (None, 0):
        with pytest.raises(ValueError, match="labels.csv names none of the pictures"):
            data_room.load_split(found, "train", num_classes=num_classes)


def test_values_whose_squares_overflow_are_refused_by_number(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.full((9, 4, 4, 1), 1e300))
    found = config(tmp_path / "a.npz", Arrays(heldout=0.0), 1)
    rows = found.reader.open(found, "train", 0)
    with pytest.raises(ValueError, match=r"a.npz: image 0 .* to 1e\+300: too large"):
        measure.measure(rows, lambda *_: None)
