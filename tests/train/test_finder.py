"""The finder on a run: its rates, its random numbers, and that it leaves no trace."""

import hashlib
import json
import sys

import jax
import numpy as np
import pytest
from driven_run import BATCH, arguments
from shared_steps import shared_steps

import configs
from edm_jax import data
from edm_jax.ema import snapshots
from edm_jax.optim import chain, plateau
from edm_jax.optim import finder as curves
from edm_jax.train import finder
from experiments import auto_rate, cli, find_lr, train

TINY = {"network.channel_mult": "(1,)", "evaluation.num_heldout": "40"}
FEW = curves.grid(1e-8, 1.0, 12)


@pytest.fixture(scope="module", autouse=True)
def _steps_are_shared():
    with shared_steps():
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def load(data_dir, **overrides):
    fields = {name.replace("__", "."): text for name, text in overrides.items()}
    return configs.load(
        f"{configs.letter_path('g')}:digits-tiny",
        TINY | {"data.data_dir": data_dir} | fields,
    )


@pytest.mark.parametrize("start", [0, 7, 1_000_000])
def test_the_rates_are_those_of_the_grid_whatever_the_step_it_starts_from(start):
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny")
    growing = finder._growing(config, finder.RATES, start)
    rate = chain.learning_rate(growing.optimizer, config.training.duration_mimg)
    steps = np.arange(len(finder.RATES)) + start
    found = [float(rate(np.float32(step * BATCH))) for step in steps]
    np.testing.assert_allclose(found, finder.RATES, rtol=1e-4)


def test_auto_is_taken_out_of_the_overrides_and_nothing_else_is():
    given = ["--config.seed=3", "-config.optimizer.alpha_ref", "auto", "--config.x"]
    rest = cli.overrides([given[0], given[3]])
    assert auto_rate.without(cli.overrides(given)) == (rest, True)
    number = {"optimizer.alpha_ref": "0.1"}
    assert auto_rate.without(number) == (number, False)


@pytest.mark.parametrize("schedule", ["plateau", "one_cycle", "cosine"])
def test_a_state_of_any_schedule_is_one_of_the_growing_rate(schedule):
    """A plateau's state is dropped, so that the rates are the grid's own, unscaled."""
    config = load("", optimizer__schedule__name=schedule)
    growing = finder._growing(config, FEW, 0).optimizer
    params = {"layer": {"kernel": np.ones((2, 2), np.float32)}}
    before, after = (
        chain.make_optimizer(opt, 1.0).init(params)
        for opt in (config.optimizer, growing)
    )
    form = jax.tree.structure(plateau.without(before))
    assert form == jax.tree.structure(after)


@pytest.mark.slow
def test_a_search_depends_on_its_seed_alone_and_its_losses_share_their_noise(data_dir):
    config = load(data_dir)
    first = finder.find(config, FEW, repeats=2)
    again = finder.find(config, FEW, repeats=1)
    np.testing.assert_array_equal(first.curves[0].losses, again.curves[0].losses)
    assert first.curves[0].losses[-1] != first.curves[1].losses[-1]
    # At rates too small to move a weight no noise is left: all of it is common.
    assert np.ptp(first.curves[0].losses[:3]) < 1e-4
    for curve, effective in zip(first.curves, first.effective, strict=True):
        assert effective.shape == curve.rates.shape


def run_train(monkeypatch, *command):
    monkeypatch.setattr(sys, "argv", ["train.py", *command])
    train.main()


def contents(directory):
    return {
        path.relative_to(directory): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def weights(run):
    return [
        (ref.path.name, name, array.tobytes())
        for ref in snapshots.list_snapshots(run / "snapshots")
        for name, array in snapshots.flatten(snapshots.read(ref.path)[0]).items()
    ]


@pytest.mark.slow
def test_a_training_after_the_finder_is_the_same_to_the_bit(
    monkeypatch, data_dir, tmp_path
):
    data.prepare(load(data_dir).data)
    monkeypatch.setattr(finder, "RATES", FEW)
    run, plain = tmp_path / "auto", tmp_path / "plain"
    auto = "--config.optimizer.alpha_ref=auto"
    run_train(monkeypatch, *arguments(run, data_dir, 40, auto))
    config = json.loads((run / "config.json").read_text())
    rate = config["optimizer"]["alpha_ref"]
    said = json.loads((run / "provenance.json").read_text())["learning_rate"]
    assert said["alpha_ref"] == pytest.approx(rate, rel=1e-2) and said["repeats"] == 3
    number = f"--config.optimizer.alpha_ref={rate!r}"
    run_train(monkeypatch, *arguments(plain, data_dir, 40, number))
    assert weights(run) == weights(plain) and len(weights(run)) > 0

    # A probe of the run reads it and changes nothing.
    before = contents(run)
    command = [f"--run={run}", "--num_steps=10", "--repeats=1"]
    out = f"--out={tmp_path / 'lr.svg'}"
    monkeypatch.setattr(sys, "argv", ["find_lr.py", *command, out])
    find_lr.main()
    assert contents(run) == before
    assert (tmp_path / "lr.svg").read_text().startswith("<?xml")

    # Resumed with auto, it keeps its rate, without another search.
    monkeypatch.setattr(finder, "find", None)
    more = [auto, "--allow=training.duration_mimg"]
    run_train(monkeypatch, *arguments(run, data_dir, 44, *more))
    config = json.loads((run / "config.json").read_text())
    assert config["optimizer"]["alpha_ref"] == rate
    assert json.loads((run / "provenance.json").read_text())["learning_rate"] == said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run=nowhere"], "no config.json"),
        (["--run=nowhere", "--config=x"], "uses that run.s config"),
        (["--repeats=0"], "must be at least 1"),
        (["--min=0"], "minimum above 0"),
        ([], "--config=FILE:WORKLOAD is missing"),
    ],
)
def test_an_impossible_search_is_one_sentence(monkeypatch, options, message):
    monkeypatch.setattr(sys, "argv", ["find_lr.py", *options])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_lr.main()
