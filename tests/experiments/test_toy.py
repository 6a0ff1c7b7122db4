"""toy.py and the workload of points: what is trained, sampled, measured and drawn."""

import json
import sys

import numpy as np
import pytest

import configs
from edm_jax.evals import evaluation, generation
from edm_jax.runs.directory import RunDir
from edm_jax.train.loop import train
from experiments import cli, guides, sweep, toy


def config():
    """Of a network that can also be asked without a class."""
    fields = {"loss.label_dropout": "0.1"}
    return configs.load(f"{configs.letter_path('g')}:toy-tiny", fields)


@pytest.mark.parametrize("letter", configs.LETTERS)
def test_the_network_of_points_is_a_perceptron(letter):
    model = configs.load(f"{configs.letter_path(letter)}:toy-tiny").model
    kernels = {
        name: leaf.shape
        for name, leaf in configs.flatten(model.shapes).items()
        if name.endswith("kernel")
    }
    assert all(len(shape) == 2 for shape in kernels.values())
    assert not any("attention" in name for name in kernels)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path, whole = tmp_path_factory.mktemp("toy") / "run", config()
    train(whole, RunDir(path, whole))
    return path


@pytest.mark.slow
def test_training_lowers_the_loss_and_is_measured_against_the_density(run):
    found = evaluation.evaluate(config(), RunDir(run, config()))
    assert found["best"]["loss"] < 0.97 * found["untrained_loss"]
    assert found["density_kl"] > found["density_kl_floor"] + 0.3


@pytest.mark.slow
def test_the_picture_shows_the_kinds_side_by_side(run, monkeypatch, capsys, tmp_path):
    guide = sorted((run / "snapshots").iterdir())[4]
    arguments = [
        *(f"--run={run}", f"--guide={guide}", "--samples=64", "--force"),
        *("--unconditional=unconditional", f"--out={tmp_path / 'a.png'}"),
    ]
    monkeypatch.setattr(sys, "argv", ["toy", *arguments])
    cli.run(toy.main)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines[:4]] == [
        "exact density",
        "no guidance",
        "classifier-free, w = 2",
        "autoguidance, w = 2",
    ]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_both_lengths_are_swept_and_drawn_and_nothing_is_measured_twice(
    run, monkeypatch, capsys, tmp_path
):
    arguments = [
        *(f"--run={run}", f"--guide={guides.UNCONDITIONAL}", "--metric=density"),
        *("--sigma_rel=0.05,0.1", "--kinds=lengths,weights", "--strengths=1,2"),
        *("--samples=32", "--steps=2", f"--out={tmp_path}"),
    ]
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    cli.run(sweep.main)
    first = capsys.readouterr().out
    assert "lengths   best" in first and "weights   best" in first
    found = json.loads((tmp_path / "guided-density.json").read_text())
    value = np.array(found["lengths"]["value"])
    assert value.shape == (2, 2) and len(np.unique(value)) == 4
    assert (tmp_path / "guided-density.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(generation.Generator, "__call__", None)
    cli.run(sweep.main)
    assert capsys.readouterr().out == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--metric=precison", "--metric is 'precison', but must be one of"),
        ("--metric=pr_effnetlite0", "looks for the lowest"),
        ("--kinds=groups", "with a guide, choose from lengths"),
        ("--guidance=1:1,2:2", "a sweep takes one strength"),
        ("--guide=SNAPSHOT", "has one EMA length"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(
    run, monkeypatch, capsys, option, sentence
):
    snapshot = min((run / "snapshots").iterdir())
    arguments = [f"--run={run}", f"--guide={guides.UNCONDITIONAL}"]
    arguments += [option.replace("SNAPSHOT", str(snapshot))]
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(sweep.main)
    assert stop.value.code == 2 and sentence in capsys.readouterr().err
