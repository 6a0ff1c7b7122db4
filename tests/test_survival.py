"""A run that is killed again and again ends as one that never was."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from driven_run import BATCH, ROOT

import configs
from edm_jax import data, trainer
from edm_jax.checkpoint import Checkpoints
from edm_jax.ema import snapshots

KILLS, STEPS = 20, 240


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The two directories, once both runs are done, and where the kills came."""
    directory, data_dir = map(tmp_path_factory.mktemp, ("runs", "tfds"))
    fields = {"data.data_dir": str(data_dir)}
    data.prepare(configs.load(f"{configs.letter_path('g')}:digits", fields).data)
    script = str(ROOT / "tests" / "killed_run.py")
    done = subprocess.run(
        [sys.executable, script, directory, data_dir, str(KILLS), str(STEPS)],
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    places = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    print(done.stdout)  # shown where a test fails
    return directory / "undisturbed", directory / "killed", places


def checkpoint(run):
    """The last state, and what JSON holds beside it."""
    config = configs.from_json(json.loads((run / "config.json").read_text()))
    made = trainer.make_trainer(config, jax.devices()[:1])
    checkpoints = Checkpoints(run / "checkpoints")
    found = checkpoints.restore(made.step.abstract(made.shapes))
    checkpoints.close()
    return found


@pytest.mark.slow
def test_every_kill_came_and_most_amid_training(runs):
    places = runs[2]
    assert len(places) == KILLS
    assert sum(0 < place < STEPS for place in places) > KILLS // 2
    assert len(set(places)) > KILLS // 3


@pytest.mark.slow
def test_killed_run_ends_with_the_same_parameters_moments_and_averages(runs):
    whole, killed = (checkpoint(run) for run in runs[:2])
    assert whole.step == killed.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, whole.state, killed.state)
    # The monitor, the position in the data, and metrics not yet logged.
    assert whole.extra == killed.extra


@pytest.mark.slow
def test_killed_run_ends_with_the_same_snapshots(runs):
    files = [sorted((run / "snapshots").iterdir()) for run in runs[:2]]
    assert len(files[0]) == 2 * STEPS // 20
    assert len(snapshots.list_snapshots(runs[1] / "snapshots")) == len(files[0])
    for one, other in zip(*files, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_killed_run_ends_with_the_same_metrics(runs):
    whole, killed = (
        [
            line
            for line in (run / "metrics.jsonl").read_text().splitlines()
            if json.loads(line)["kind"] != "speed"  # what a clock says
        ]
        for run in runs[:2]
    )
    assert len(whole) == STEPS // 5 + 2 * (STEPS // 60 + 1)
    assert killed == whole


@pytest.mark.slow
def test_killed_run_says_done_and_leaves_nothing_half_written(runs):
    killed = runs[1]
    status = json.loads((killed / "status.json").read_text())
    assert status["state"] == "done" and status["nimg"] == STEPS * BATCH
    names = [name for _, folders, files in os.walk(killed) for name in folders + files]
    odd = "tmp", "partial", "damaged"
    assert not [n for n in names if n.startswith(".") or any(o in n for o in odd)]
