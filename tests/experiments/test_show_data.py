"""Claims about show_data.py: it reads what training would, and warns of what is off."""

import sys

import numpy as np
import pytest
from PIL import Image

import configs
from experiments import show_data


@pytest.fixture
def data(tmp_path):
    """Overrides for two classes of pictures of 8 x 8 pixels, dark and bright."""
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((8, 8), 150 * label + 2 * i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "d" / name / f"{i}.png")
    return {
        "data.reader.name": "images",
        "data.reader.resolution": "8",
        "data.reader.channels": "1",
        "data.name": str(tmp_path / "d"),
        "data.heldout_split": "heldout",
        "network.num_classes": "2",
        "data.raw_mean": "94,",
        "data.raw_std": "76,",
    }


def look(fields):
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny", fields)
    return show_data.look(config, lambda *_: None)


def test_the_examples_are_the_classes_own_as_the_network_gets_them(data):
    page = look(data)
    assert [each.name for each in page.classes] == ["dark", "light"]
    dark, light = (each.images for each in page.classes)
    assert dark.shape == (14, 8, 8, 1)
    assert dark.max() <= (40 - 94) / 76 / 2 < (150 - 94) / 76 / 2 <= light.min()
    assert not page.warnings and not page.skipped
    assert sum(split.count for split in page.splits) == 40


@pytest.mark.slow
def test_statistics_that_are_not_the_datas_are_warned_of(data):
    (warning,) = look(data | {"data.raw_mean": "0,"}).warnings
    assert "raw_mean=(0.0,)" in warning and "measured: (91.6,)" in warning
    (warning,) = look(data | {"network.num_classes": "3"}).warnings
    assert "1 of the network's classes have no training examples" in warning


def test_bad_examples_are_listed_or_stop_it_as_they_stop_training(data):
    for number in range(40):  # as many as make sure that training meets one
        path = f"{data['data.name']}/dark/bad{number}.png"
        open(path, "w").close()
    with pytest.raises(ValueError, match="bad.*not a picture.*stops training, too"):
        look(data)
    skipped = look(data | {"data.on_bad": "skip"}).skipped
    assert len(skipped) == 40 and all("not a picture" in each for each in skipped)


def test_the_command_writes_one_file(data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "data.html"
    fields = [f"--config.{name}={value}" for name, value in data.items()]
    reference = f"--config={configs.letter_path('g')}:digits-tiny"
    monkeypatch.setattr(
        sys, "argv", ["show_data.py", reference, f"--out={out}", *fields]
    )
    show_data.main()
    assert "Data of d" in out.read_text(encoding="utf-8")
    assert f"Wrote {out}." in capsys.readouterr().out
