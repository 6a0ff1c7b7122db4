"""Claims about init_config.py: from a folder of pictures to runs and their comparison."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import user_pictures
from PIL import Image

import configs
from edm_jax import data
from edm_jax.data import measure
from experiments import init_config

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    place = tmp_path_factory.mktemp("mixed")
    user_pictures.write(place, 120)
    return place


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """Runs the command; returns the file that it wrote and what it said."""

    def init(place, *options):
        out = tmp_path / "mine.py"
        command = ["init_config.py", f"--data={place}", f"--out={out}", *options]
        monkeypatch.setattr(sys, "argv", command)
        init_config.main()
        return out, capsys.readouterr().out

    return init


def test_mixed_pictures_give_a_config_that_normalizes_them(mixed, init):
    out, said = init(mixed, "--resolution=16")
    config = configs.load(f"{out}")
    assert (config.letter, config.workload) == ("g", str(out))
    assert (config.network.resolution, config.network.num_classes) == (16, 3)
    assert (config.data.on_bad, config.data.heldout_split) == ("skip", "heldout")
    images = data.load_split(config.data, "train", num_classes=3)["image"]
    np.testing.assert_allclose(images.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(images.std((0, 1, 2)), 0.5, atol=1e-4)
    assert "One example is bad; the first: " in said and "broken.png" in said
    assert "other kinds, passed over: 1" in said


@pytest.mark.slow
@pytest.mark.parametrize("letter", configs.LETTERS)
def test_the_file_is_a_workload_of_every_letter(mixed, init, letter):
    out, _ = init(mixed, f"--letter={letter}", "--duration_mimg=0.5")
    own = configs.load(f"{out}")
    config = configs.load(f"{configs.letter_path(letter)}:{out}")
    assert own == config and config.letter == letter
    assert config.training.duration_mimg == 0.5
    assert config.total_steps > 500
    assert config.model.shapes


def test_every_line_says_why_and_none_is_long(mixed, init):
    text = init(mixed)[0].read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 110
    assert len(text.splitlines()) < 60
    fields = re.findall(r"^    (\w+)=.*?(#.*)?$", text, re.MULTILINE)
    assert sum(bool(why) for _, why in fields) > 0.75 * len(fields)


def test_a_file_is_not_written_over(mixed, init):
    init(mixed)
    with pytest.raises(FileExistsError, match="--force replaces it"):
        init(mixed)
    init(mixed, "--force")


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_each_kind_of_data_is_told_by_what_is_there(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", image=images)
    assert measure.find(str(tmp_path / "a.npz")).reader == "numpy"
    for name in ("train", "test"):
        (tmp_path / "split").mkdir(exist_ok=True)
        np.save(tmp_path / "split" / f"{name}.npy", images)
    found = measure.find(str(tmp_path / "split"))
    assert (found.reader, found.splits) == ("numpy", ("train", "test"))
    with zipfile.ZipFile(tmp_path / "latents.zip", "w") as archive:
        archive.writestr("0/a.npy", b"")
    assert measure.find(str(tmp_path / "latents.zip")).reader == "original"
    write(tmp_path / "gray" / "train" / "1.png", images[0, ..., 0])
    write(tmp_path / "gray" / "val" / "1.png", images[1, ..., 0])
    found = measure.find(str(tmp_path / "gray"))
    assert (found.reader, found.splits) == ("images", ("train", "val"))
    assert found.settings == {"channels": 1}
    (tmp_path / "gray" / "labels.csv").write_text("train/1.png,3\nval/1.png,2\n")
    found = measure.find(str(tmp_path / "gray"))
    assert found.settings == {"labels": "labels.csv", "channels": 1}
    assert found.ignored == 0  # the list is none of the data
    with pytest.raises(FileNotFoundError, match="There are no data"):
        measure.find(str(tmp_path / "none"))


def test_repeated_pictures_are_named_above_all_across_splits(tmp_path, init):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(3):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            write(tmp_path / "d" / split / f"{i}.png", pixels)
    folder = tmp_path / "d"
    (folder / "train" / "copy.png").write_bytes((folder / "train/1.png").read_bytes())
    (folder / "val" / "seen.png").write_bytes((folder / "train/2.png").read_bytes())
    _, said = init(folder)
    assert re.search(r"1 training examples repeat .*/train/copy.png and .*/1.png", said)
    assert re.search(r"1 held-out .*/val/seen.png, which is .*/train/2.png", said)


def test_the_statistics_are_those_of_the_definition():
    images = np.random.default_rng(0).integers(0, 9, (20, 6, 6, 2)).astype(np.float32)

    class Rows:
        shape = (6, 6, 2)

        def __len__(self):
            return 20

        def read(self, rows, keys=None):
            if rows[0] == 7:
                raise ValueError("row 7 is bad")
            return images[rows], rows % 3

    m = measure.measure(Rows(), lambda *_: None)
    good = np.delete(images, 7, axis=0).astype(np.float64)
    np.testing.assert_allclose(m.mean, good.mean((0, 1, 2)))
    np.testing.assert_allclose(m.std, good.std((0, 1, 2)))
    # Of independent pixels, neighbours differ as much as any two.
    assert m.detail == pytest.approx(1, abs=0.1)
    assert m.bad == {7: "row 7 is bad"} and m.counts.sum() == 19
    assert (m.lowest, m.highest) == (0, 8)


def test_images_that_no_network_takes_are_refused(tmp_path, init):
    np.savez(tmp_path / "a.npz", image=np.zeros((40, 4, 6, 1), np.uint8))
    with pytest.raises(ValueError, match="4 x 6 pixels, and the network takes square"):
        init(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="--resolution and --channels resize pictures"):
        init(tmp_path / "a.npz", "--resolution=8")


@pytest.mark.slow
def test_three_commands_lead_from_500_mixed_pictures_to_a_comparison(tmp_path):
    user_pictures.write(tmp_path / "pictures", 500)
    (tmp_path / "plain.py").write_text(
        "from edm_jax.studies import RunSpec\n"
        "def runs(workload):\n"
        "    return [RunSpec('plain', f'configs/config_g.py:{workload}')]\n"
    )
    for name in ("configs", "experiments", "edm_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    budget = "--resolution=8 --duration_mimg=0.00064 --batch_size=16"
    small = (
        "--config.network.model_channels=8 --config.network.channel_mult=(1,) "
        "--config.evaluation.num_samples=20 --config.evaluation.num_steps=2 "
        "--config.evaluation.sigma_rels=(0.1,)"
    )
    for command in (
        f"init_config.py --data=pictures --out=mine.py {budget}",
        f"launch.py --study=plain.py --workload=mine.py {small}",
        "compare.py runs/plain-mine --out=report",
    ):
        script, *options = command.split()
        subprocess.run(
            [sys.executable, f"experiments/{script}", *options],
            cwd=tmp_path,
            check=True,
            timeout=600,
        )
    assert len(list((tmp_path / "runs" / "plain-mine").glob("*/evaluation.json"))) == 1
    assert "broken.png" in (tmp_path / "report" / "index.html").read_text()
