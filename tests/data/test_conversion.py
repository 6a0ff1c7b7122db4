"""Claims about converted data: the same examples, whatever interrupted the conversion."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_jax import data as data_room
from edm_jax.data import conversion, shares
from edm_jax.data.folders import Images, Original
from edm_jax.data.readers import Tfds
from experiments import prepare_data

COUNT = 40


def convert(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
    prepare_data.main()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path, contents, labelled=True):
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in contents.items():
            archive.writestr(name, raw)
        labels = [[name, i % 3] for i, name in enumerate(contents)]
        text = json.dumps({"labels": labels if labelled else None})
        archive.writestr("dataset.json", text)
    return path


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)


@pytest.fixture
def pictures(tmp_path, pixels):
    for i, each in enumerate(pixels):
        place = tmp_path / "pictures" / "abc"[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02d}.png").write_bytes(png(each))
    return tmp_path / "pictures"


def loaded(path, reader, split="train", channels=3):
    """{image's bytes: label} of a split."""
    one = (0.0,) * channels, (0.5,) * channels
    config = data_room.DataConfig(str(path), "", split, split, *one, reader)
    found = data_room.load_split(config, split)
    images = found["image"].astype(np.float32)
    return {
        image.tobytes(): int(label)
        for image, label in zip(images, found["label"], strict=True)
    }


def test_pictures_become_a_tfds_set_of_the_same_splits(tmp_path, pictures, monkeypatch):
    convert(monkeypatch, pictures, f"--out={tmp_path / 'My set'}", "--resolution=6")
    found = Images(resolution=6)
    for split in ("train", "heldout"):
        wanted = loaded(pictures, found, split)
        assert loaded(tmp_path / "My set", Tfds(), split) == wanted
    assert not list(tmp_path.glob("*.unfinished"))
    names = {path.name for path in (tmp_path / "My set").glob("*.json")}
    assert names == {"dataset_info.json", "features.json", "prepared.json"}


def test_a_head_of_converted_folders_is_of_all_classes(tmp_path, pictures, monkeypatch):
    convert(monkeypatch, pictures, f"--out={tmp_path / 'set'}", "--heldout=0")
    one = (0.0,) * 3, (0.5,) * 3
    config = data_room.DataConfig(str(tmp_path / "set"), "", "train", "train", *one)
    assert set(data_room.load_split(config, "train", 12)["label"]) == {0, 1, 2}


def test_the_originals_zip_holds_the_pixels_and_labels(
    tmp_path, pictures, pixels, monkeypatch
):
    out = tmp_path / "set.zip"
    convert(monkeypatch, pictures, f"--out={out}")
    with zipfile.ZipFile(out) as archive:
        assert {info.compress_type for info in archive.infolist()} == {0}
        labels = dict(json.loads(archive.read("dataset.json"))["labels"])
        names = [n for n in archive.namelist() if n.endswith(".png")]
        assert names == [f"00000/img{i:08d}.png" for i in range(COUNT)]
        for i, place in enumerate(sorted(pictures.rglob("*.png"))):
            image = np.asarray(Image.open(io.BytesIO(archive.read(names[i]))))
            np.testing.assert_array_equal(image, pixels[int(place.stem)])
            assert labels[names[i]] == "abc".index(place.parent.name)
    # And as the reader reads it.
    assert loaded(out, Original(), "all") == loaded(
        pictures, Images(resolution=8), "all"
    )


@pytest.mark.parametrize("form", ["set", "set.zip"])
def test_means_and_deviations_stay_what_they_are(tmp_path, monkeypatch, form):
    rng = np.random.default_rng(0)
    moments = [rng.standard_normal((8, 4, 4), np.float32) for _ in range(COUNT)]
    names = [f"00000/img-mean-std-{i:08d}.npy" for i in range(COUNT)]
    source = pack(tmp_path / "a.zip", dict(zip(names, map(npy, moments))))
    convert(monkeypatch, source, f"--out={tmp_path / form}", "--heldout=0")
    if form == "set.zip":
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / form) as new:
            assert all(old.read(name) == new.read(name) for name in names)
        return
    one = (0.0,) * 4, (0.5,) * 4
    config = data_room.DataConfig(str(tmp_path / "set"), "", "train", "train", *one)
    rows = config.reader.open(config, "train", 3)
    assert rows.draws and rows.shape == (4, 4, 4)
    key = np.array([[7, 9]], np.uint64)
    drawn = {rows.read(np.array([row]), key)[0].tobytes() for row in range(COUNT)}
    noise = shares.generator(key[0], 0).standard_normal((4, 4, 4), np.float32)
    wanted = {(m[:4] + m[4:] * noise).transpose(1, 2, 0).tobytes() for m in moments}
    assert drawn == wanted


def test_arrays_of_any_numbers_are_kept(tmp_path, monkeypatch):
    images = np.random.default_rng(0).standard_normal((COUNT, 4, 4, 2), np.float32)
    np.savez(tmp_path / "a.npz", image=images)
    source = tmp_path / "a.npz"
    convert(monkeypatch, source, f"--out={tmp_path / 'set'}", "--heldout=0")
    one = (0.0,) * 2, (0.5,) * 2
    config = data_room.DataConfig(str(tmp_path / "set"), "", "train", "train", *one)
    found = data_room.load_split(config, "train", num_classes=0)["image"]
    assert {x.tobytes() for x in found} == {x.tobytes() for x in images}


def record(out):
    return json.loads((out / "prepared.json").read_text())


def test_the_fingerprint_is_of_contents_alone(tmp_path, pictures, pixels, monkeypatch):
    convert(monkeypatch, pictures, f"--out={tmp_path / 'one'}", "--workers=1")
    convert(monkeypatch, pictures, f"--out={tmp_path / 'two.zip'}", "--workers=3")
    contents = record(tmp_path / "one")["contents"]
    with zipfile.ZipFile(tmp_path / "two.zip") as archive:
        assert json.loads(archive.read("dataset.json"))["contents"] == contents
    config = data_room.DataConfig(
        str(tmp_path / "one"), "", "train", "heldout", (0.0,) * 3, (1.0,) * 3
    )
    assert data_room.fingerprint(config)["contents"] == contents
    labels = np.arange(COUNT) % 3
    total = sum(
        conversion.digest(conversion.Example(0, image, label))
        for image, label in zip(pixels, labels.tolist())
    )
    assert f"{total % 2**128:032x}" == contents
    # One pixel, and one label.
    other = pixels[0].copy()
    other[0, 0, 0] ^= 1
    seen = {
        conversion.digest(conversion.Example(0, *each))
        for each in ((pixels[0], 0), (other, 0), (pixels[0], 1))
    }
    assert len(seen) == 3


def test_what_was_finished_is_not_read_again(tmp_path, pictures, monkeypatch):
    convert(monkeypatch, pictures, f"--out={tmp_path / 'whole'}")
    decode, left, read = Images.picture, [25], []

    def failing(self, encoded, draw):
        left[0] -= 1
        read.append(hashlib.sha256(encoded).digest())
        if left[0] < 0:
            raise OSError("the disk is gone")
        return decode(self, encoded, draw)

    monkeypatch.setattr(Images, "picture", failing)
    out = f"--out={tmp_path / 'set'}"
    with pytest.raises(OSError, match="the disk is gone"):
        convert(monkeypatch, pictures, out, "--workers=1")
    assert not (tmp_path / "set").exists()
    left[0], first = 10**6, len(read)
    convert(monkeypatch, pictures, out, "--workers=2")
    # Parts have 16 examples: one was finished.
    assert len(read) - first == COUNT - 16
    assert record(tmp_path / "set") == record(tmp_path / "whole")
    assert loaded(tmp_path / "set", Tfds()) == loaded(tmp_path / "whole", Tfds())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["set", "set.zip"])
def test_a_killed_conversion_goes_on(tmp_path, monkeypatch, form):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3000, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", image=images, label=np.arange(3000) % 7)
    source, out = tmp_path / "a.npz", tmp_path / form
    command = [sys.executable, prepare_data.__file__, source, f"--out={out}"]
    root = Path(prepare_data.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    started = subprocess.Popen(command, env=environment)
    while len(list(tmp_path.glob(f"{form}.unfinished/*.json"))) < 4:
        assert started.poll() is None
        time.sleep(0.002)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not out.exists()
    convert(monkeypatch, source, f"--out={out}")
    convert(monkeypatch, source, f"--out={tmp_path / 'whole'}")
    whole = record(tmp_path / "whole")["contents"]
    if form == "set":
        assert record(out)["contents"] == whole
        assert loaded(out, Tfds()) == loaded(tmp_path / "whole", Tfds())
    else:
        with zipfile.ZipFile(out) as archive:
            assert json.loads(archive.read("dataset.json"))["contents"] == whole


def test_bad_examples_stop_or_are_skipped_and_named(
    tmp_path, pictures, monkeypatch, capsys
):
    (pictures / "a" / "zz.png").write_bytes(b"text")
    out = tmp_path / "set"
    arguments = pictures, f"--out={out}", "--resolution=8"
    with pytest.raises(ValueError, match="a/zz.png is not a picture"):
        convert(monkeypatch, *arguments)
    assert not out.exists()
    convert(monkeypatch, *arguments, "--on_bad=skip")
    said = capsys.readouterr().out
    assert "Skipped: " in said and "zz.png" in said and ", 1 skipped;" in said
    assert (
        record(out)["skipped"] == 1 and sum(record(out)["examples"].values()) == COUNT
    )


def test_what_cannot_be_converted_is_refused_and_nothing_is_lost(
    tmp_path, pictures, monkeypatch
):
    def refused(why, *arguments, error=(ValueError, OSError)):
        with pytest.raises(error, match=why):
            convert(monkeypatch, *arguments)

    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    refused("taken is there already", pictures, f"--out={taken}")
    assert (taken / "mine.txt").read_text() == "mine"
    refused("lies in .*, which is read", pictures, f"--out={pictures / 'out'}")
    refused("There are no data", tmp_path / "none", f"--out={tmp_path / 'out'}")
    (pictures / "a" / "wide.png").write_bytes(png(np.zeros((4, 9, 3), np.uint8)))
    refused("pictures of 8 x 8 to 9 x 4.*--resolution", pictures,
            f"--out={tmp_path / 'out'}")  # fmt: skip
    np.savez(tmp_path / "a.npz", image=np.zeros((5, 4, 4, 3), np.uint8))
    refused("resize pictures, and .* holds arrays", tmp_path / "a.npz",
            f"--out={tmp_path / 'out'}", "--resolution=8")  # fmt: skip
    for split in ("train", "val"):
        (tmp_path / "split" / split).mkdir(parents=True)
        (tmp_path / "split" / split / "1.png").write_bytes(
            png(np.zeros((8, 8, 3), np.uint8))
        )
    refused("splits train and val, and a ZIP holds one", tmp_path / "split",
            f"--out={tmp_path / 'out.zip'}")  # fmt: skip
    work = tmp_path / "out.unfinished"
    work.mkdir()
    (work / "plan.json").write_text('{"source": "other"}')
    refused("unfinished part of another conversion", pictures,
            f"--out={tmp_path / 'out'}", "--resolution=8")  # fmt: skip
    assert not (tmp_path / "out").exists()
